"""Sessions whose data a host sends without being their primary's node: configured on that host, in files of their own.

`seamark workers export` writes such a file on the primary's node; where the volume is mounted, and how the secondary
is reached, is this host's to say. What else a worker needs to know, the primary's node tells it (tasks/terms.py).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from replication import session_file
from replication.errors import ExitCode, NotFoundError, SeamarkError
from replication.session import Session, SessionDir, SessionState, config_dir_of
from replication.setting_tables import about
from replication.settings import SessionConfig, SshSettings

_SUFFIX = ".toml"


class JoinedConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A joined session's file."""

    primary: Annotated[str, Meta(pattern="^/"), about("where this host has the volume mounted")]
    secondary: Annotated[str, about("where to: as on the primary's node, or another way to the same place")]
    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$"), about("by which the secondary knows the session")]
    instance: Annotated[str, Meta(pattern="^[0-9a-z]{1,40}$"), about("by which the broker knows it")]
    ssh: SshSettings = msgspec.field(default_factory=SshSettings)


class JoinedDir(SessionDir):
    """A joined session on this host: its file, and a directory for its key, known hosts and sockets."""

    def __init__(self, state_dir: Path, name: str) -> None:
        super().__init__(state_dir, name)
        self.named_config = joined_file(state_dir, name)
        self.path = state_dir / "workers" / name
        self.known_hosts = self.path / "known_hosts"
        self.key = self.path / "id_ed25519"
        self.ssh_run = self.path / "ssh"

    @property
    def config(self) -> Path:
        return self.named_config

    def state(self) -> SessionState | None:
        """Nothing is remembered here: the primary's node does that."""
        return None

    def stamp(self) -> tuple[int, ...]:
        return (*super().stamp(), int(self.key.exists()))

    def load(self) -> Session:
        """As the file has it, with the defaults of all that the primary's node tells. Raises SeamarkError."""
        try:
            said = session_file.read(self.config, JoinedConfig)
        except FileNotFoundError:
            raise NotFoundError(
                f"session {self.name} was not joined here: 'seamark workers export {self.name}' on the primary's node "
                f"prints {self.config}"
            ) from None
        ssh = said.ssh
        if ssh.identity is None and self.key.exists():
            ssh = msgspec.structs.replace(ssh, identity=str(self.key))
        settings = SessionConfig(primary=said.primary, secondary=said.secondary, ssh=ssh)
        return Session.of(self.name, settings, SessionState(id=said.id, instance=said.instance))


def joined_file(state_dir: Path, name: str) -> Path:
    """Where a host keeps the file of a session that it has joined."""
    return config_dir_of(state_dir) / "workers" / f"{name}{_SUFFIX}"


def joined_names(state_dir: Path) -> list[str]:
    """The sessions that this host has joined, damaged files included, in the order of their names."""
    folder = joined_file(state_dir, "x").parent
    return sorted(path.name[: -len(_SUFFIX)] for path in folder.glob(f"*{_SUFFIX}"))


def joined(state_dir: Path, name: str) -> JoinedDir:
    """A session that this host has joined. Raises NotFoundError, and UsageError for one that is its own as well."""
    place = JoinedDir(state_dir, name)
    if not place.config.exists():
        place.load()  # says what is missing
    if SessionDir(state_dir, name).config.exists():
        raise SeamarkError(
            f"session {name} is this host's own, and {place.config} joins another of that name: remove one of them, or "
            "run the worker with a --state-dir of its own",
            ExitCode.USAGE,
        )
    return place


def export(session: Session, key: Path) -> str:
    """The file that joins another host to this session; ``key``: the session's own key, if it has one. No secrets."""
    said = JoinedConfig(
        primary=session.primary, secondary=session.secondary, id=session.id, instance=session.instance,
        ssh=msgspec.structs.replace(session.ssh, identity=None if _is(session, key) else session.ssh.identity),
    )  # fmt: skip
    lines = [
        f"Seamark: data workers of this host serve session {session.name}. Put this file at",
        f"/etc/seamark/workers/{session.name}.toml, or ~/.config/seamark/workers/{session.name}.toml for a user; then:",
        f"seamark worker {session.name}",
        "primary is where this host has the volume mounted; the rest has to fit this host as well.",
    ]
    if _is(session, key):
        lines += [
            f"The session's own key is not in here: copy {key} to",
            f"/var/lib/seamark/workers/{session.name}/id_ed25519 there (mode 0600).",
        ]
    return session_file.text_of(said, "\n".join(lines))


def _is(session: Session, key: Path) -> bool:
    return session.ssh.identity is not None and os.path.abspath(session.ssh.identity) == str(key)
