"""The copy of a session's settings that its secondary keeps, for the day when the primary's side has lost them.

Whoever may read the secondary may read it: whom events go to, and how, is left out, as addresses and commands hold
secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from replication import session_file
from replication.settings import EventSettings, SessionConfig

if TYPE_CHECKING:
    from pathlib import Path

    from replication.session import Session

_COMMENT = "The settings of session {name}, kept for 'seamark recover'. Whom events go to is not."


def kept_settings(session: Session) -> str:
    """What the secondary is to keep: the session's file, without secrets."""
    settings = {name: getattr(session, name) for name in SessionConfig.__struct_fields__}
    settings["events"] = EventSettings()
    return session_file.text_of(SessionConfig(**settings), _COMMENT.format(name=session.name))


def kept_config(text: str, scratch: Path) -> SessionConfig:
    """What such a text says. ``scratch``: a file that may be made for it. Raises SettingsError.

    Whom events go to is left out here as well: it is not there, unless somebody put it there, and it may be a command.
    """
    scratch.write_text(text, encoding="utf-8", errors="surrogateescape")
    return msgspec.structs.replace(session_file.read(scratch), events=EventSettings())
