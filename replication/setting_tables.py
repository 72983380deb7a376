"""What settings are made of: a meaning for each key, and tables that stand for themselves."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from replication.quantities import Duration
from replication.remote.ssh_words import check_options
from replication.windows import check_expression


def about(meaning: str, *, restart: bool = False) -> Meta:
    """What a key means, for people. ``restart``: it counts only when the session is started again."""
    return Meta(description=meaning, extra={"restart": restart})


Port = Annotated[int, Meta(ge=1, le=65535)]
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


LONGEST_CHECK = Duration(7 * 86400)


class DrillSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How failover is tested, without a failover: a view of the secondary is made, checked, and thrown away."""

    at: Annotated[str, about("cron expression: when a drill is held by itself; empty: never")] = ""
    check: Annotated[
        str,
        about(
            "shell command that a drill runs on the secondary's host, in the view ($SEAMARK_DRILL_PATH): it passes if that "
            "ends with 0; empty: it passes if the view can be made"
        ),
    ] = ""
    method: Annotated[
        Literal["auto", "btrfs", "reflink", "overlay", "copy"],
        about("how the view is made; auto: the first of btrfs, reflink, overlay that is possible there"),
    ] = "auto"
    timeout: Annotated[
        Duration, about("how long the check may take; after that it is ended, and has failed")
    ] = Duration(3600)

    def __post_init__(self) -> None:
        if self.at:
            check_expression(self.at)
        if not Duration(1) <= self.timeout <= LONGEST_CHECK:
            raise ValueError("timeout: it must be from 1 to 7d")


class NodesSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the other nodes of the primary's Gluster pool are reached, whose bricks are followed; see `push-pem --nodes`."""

    user: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$"),
        about("who logs in on the other nodes of a Gluster pool: bricks are root's", restart=True),
    ] = "root"
    port: Annotated[
        Port | None,
        about("port of the sshd of these nodes; unset: what ~/.ssh/config says, else 22", restart=True),
    ] = None
    options: Annotated[
        tuple[str, ...],
        about("options of ssh_config for the way to these nodes, as ssh.options", restart=True),
    ] = ()

    def __post_init__(self) -> None:
        try:
            check_options(self.options)
        except ValueError as error:
            raise ValueError(f"options: {error}") from None
