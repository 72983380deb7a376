"""What settings are made of: a meaning for each key, and tables that stand for themselves."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


def about(meaning: str, *, restart: bool = False) -> Meta:
    """What a key means, for people. ``restart``: it counts only when the session is started again."""
    return Meta(description=meaning, extra={"restart": restart})


LogLevel = Literal["debug", "info", "warning", "error"]


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much each role writes to the session's log."""

    agent: Annotated[LogLevel, about("how much the agent logs; debug: each segment")] = "info"
    control: Annotated[
        LogLevel, about("how much the control worker logs; debug: each unit of work, and each name looked at")
    ] = "info"
    data: Annotated[
        LogLevel, about("how much the data worker logs; debug: each unit of work, and each file")
    ] = "info"
    beat: Annotated[LogLevel, about("how much beat logs; debug: each job that it sends")] = "info"
    secondary: Annotated[
        LogLevel,
        about(
            "how much the secondary agent logs; debug: each request, with the time it took; else what it did not expect"
        ),
    ] = "info"
