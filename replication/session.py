"""A session: one primary volume replicated to one secondary, and where its state lives on this host.

Workers act only on sessions that are configured on their own host: a task message names a session,
and everything else (paths, hosts, keys) is read from here.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from replication.errors import ExitCode, SeamarkError

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class SessionError(SeamarkError):
    """A session that cannot be found, read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings:
    """How the secondary's host is reached; unused for a local secondary."""

    port: int | None = None
    identity: str | None = None
    accept_new_host_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The configuration of one session. Paths are text as os.fsdecode gives it."""

    name: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    primary: str
    secondary: str
    root: str = ""  # identity of the primary's root when it was last replicated
    sync_method: str = "auto"
    jobs: int = 2
    change_detector: str = "auto"
    adopt: bool = False
    ssh: SshSettings = field(default_factory=SshSettings)


class SessionDir:
    """The directory that holds all of one session's state on this host."""

    def __init__(self, state_dir: Path, name: str) -> None:
        if not _NAME.match(name):
            raise SessionError(
                f"session name {name!r}: use letters, digits, '.', '_' and '-', 64 at most", ExitCode.USAGE
            )
        self.path = state_dir / "sessions" / name
        self.config = self.path / "session.json"
        self.changelog = self.path / "changelog"
        self.progress = self.path / "progress.sqlite"
        self.run_lock = self.path / "run.lock"
        self.known_hosts = self.path / "known_hosts"
        self.ssh_run = self.path / "ssh"
        self._detector = self.path / "detector"

    def detector(self) -> str:
        """How changes are noticed at the moment.

        "filesystem" or "directories": recorded, by what fanotify marks; "fanotify": the recorder is being
        started; "scan": the tree is compared again and again.
        """
        try:
            return self._detector.read_text(encoding="ascii").strip() or "scan"
        except FileNotFoundError:
            return "scan"

    def set_detector(self, detector: str) -> None:
        self._detector.write_text(detector, encoding="ascii")

    def save(self, session: Session) -> None:
        """Write the configuration aside, then rename: a reader sees the old or the new one, whole."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self.config.with_suffix(f".{os.getpid()}.new")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(asdict(session), file, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.config)

    def load(self) -> Session:
        """Read the configuration. Raises SessionError when it is missing or damaged."""
        try:
            raw: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
            raw["ssh"] = SshSettings(**raw["ssh"])
            return Session(**raw)
        except FileNotFoundError:
            raise SessionError(f"no session is configured in {self.path}", ExitCode.NOT_FOUND) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SessionError(
                f"{self.config} is damaged ({error}); restore it from a backup, or remove that one file: "
                "nothing on the secondary is lost, and what is right there is not sent again",
                ExitCode.USAGE,
            ) from None


def state_dir_of_this_process() -> Path:
    """The state directory that a worker was started with (SEAMARK_STATE_DIR)."""
    value = os.environ.get("SEAMARK_STATE_DIR")
    if not value:
        raise SessionError(
            "SEAMARK_STATE_DIR is not set: start workers with 'seamark run', or set it to the state directory",
            ExitCode.USAGE,
        )
    return Path(value)


def open_session(name: str) -> tuple[SessionDir, Session]:
    """The directory and configuration of a session that this host knows. Raises SessionError."""
    place = SessionDir(state_dir_of_this_process(), name)
    return place, place.load()
