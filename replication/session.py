"""A session: one primary volume replicated to one secondary, and where its state lives on this host.

Workers act only on sessions that are configured on their own host: a task message names a session,
and everything else (paths, hosts, keys) is read from here. What a person decides about a session
(settings.py) stands in a file of its own; what Seamark has to remember of it (SessionState) in the
state directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import uuid
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec
from msgspec import Struct

from replication import session_file
from replication.errors import ExitCode, NotFoundError, SeamarkError
from replication.gluster.address import GlusterAddress, parse_address
from replication.private import private_dir
from replication.settings import SessionConfig, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SUFFIX = ".toml"
_MOUNTS = Path("/run/seamark/primary")


class SessionError(SeamarkError):
    """A session that cannot be found, read or written."""


class Desired(StrEnum):
    """What a person wants of a session. The monitor brings it about, also after a reboot."""

    CREATED = "created"  # never started
    STARTED = "started"
    PAUSED = "paused"  # recorded, but nothing is sent
    STOPPED = "stopped"
    RECORDING = "recording"  # the way back of a promoted root: recorded, until its old primary is back


def new_instance() -> str:
    """What tells the state of a session on this node from that on any other."""
    return uuid.uuid4().hex[:12]


class Recording(Struct, frozen=True, kw_only=True):
    """From where on the changelog of a session says what was changed on its primary since that was promoted."""

    term: int  # of the promotion
    position: int  # later ones are of what came after it
    since_ns: int  # when it was done
    used: bool = False  # the old primary was made the secondary by it


class SessionState(Struct, frozen=True, kw_only=True):
    """What has to be remembered of a session, beside its progress."""

    id: str  # by which the secondary knows it
    instance: str = msgspec.field(default_factory=new_instance)  # by which a broker does
    root: str = ""  # identity of the primary's root when it was last replicated
    adopt: bool = False  # take over what is there, until all of it was compared once
    believes_ns: int = 0  # adopting: another replication had brought everything there by then
    desired: Desired = Desired.CREATED
    deletes_allowed_ns: int = 0  # a person agreed to what was gone from the primary by then
    back_from: str = ""  # the way back of a promoted root: the id of the session whose secondary that was
    recording: Recording | None = None


class Session(SessionConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session as the code sees it: its settings, and its identity."""

    name: str
    id: str
    instance: str
    root: str = ""
    adopt: bool = False
    believes_ns: int = 0
    deletes_allowed_ns: int = 0
    back_from: str = ""
    mount: str = ""  # where a Gluster volume is mounted for the session

    @property
    def gluster(self) -> GlusterAddress | None:
        """The Gluster volume that is its primary, if it is one."""
        return parse_address(self.primary)

    @property
    def tree(self) -> str:
        """The directory of this host in which the primary is seen."""
        address = self.gluster
        return self.primary if address is None else os.path.join(self.mount, address.subdir).rstrip("/")

    @classmethod
    def of(cls, name: str, config: SessionConfig, state: SessionState, mount: Path | None = None) -> Self:
        settings = msgspec.structs.asdict(config)
        return cls(
            name=name, id=state.id, instance=state.instance, root=state.root, adopt=state.adopt, believes_ns=state.believes_ns,
            deletes_allowed_ns=state.deletes_allowed_ns, back_from=state.back_from, mount=str(mount or ""), **settings,
        )  # fmt: skip


def pair_id(primary: str, secondary: str) -> str:
    """The id of the session that replicates one to the other: the same on every node that sees both."""
    where = primary if parse_address(primary) is not None else os.path.realpath(primary)
    pair = os.fsencode(f"{where}\0{secondary}")
    return hashlib.blake2b(pair, digest_size=16).hexdigest()


def _short(path: Path) -> str:
    """The same name each time for the same path, and another one for each other."""
    return hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=8).hexdigest()


class SessionDir:
    """Where one session lives on this host: its file, and the directory that holds all of its state."""

    def __init__(self, state_dir: Path, name: str, config_dir: Path | None = None) -> None:
        if not NAME.fullmatch(name):
            raise SessionError(
                f"session name {name!r}: use letters, digits, '.', '_' and '-', 64 at most", ExitCode.USAGE
            )
        self.name = name
        self.path = state_dir / "sessions" / name
        self.named_config = (config_dir or config_dir_of(state_dir)) / "sessions" / f"{name}{_SUFFIX}"
        self.run_config = self.path / "session.toml"  # made by `seamark run`, anew each time
        self.state_file = self.path / "state.json"
        self.changelog = self.path / "changelog"
        # Of a Gluster volume. Elsewhere: whoever removes this directory, by whatever means, means our files alone.
        self.mount = _MOUNTS / f"{name}-{_short(self.path)}" / "mount"
        self.progress = self.path / "progress.sqlite"
        self.run_lock = self.path / "run.lock"
        self.servers = self.path / "servers.json"  # broker and Redis in use, mode 0600
        self.known_hosts = self.path / "known_hosts"
        self.key = self.path / "id_ed25519"  # the session's own, where it has one (push-pem)
        self.nodes_key = (
            self.path / "nodes_ed25519"
        )  # for the other nodes of a Gluster pool, where it has one
        self.ssh_run = self.path / "ssh"
        self._detector = self.path / "detector"

    @property
    def config(self) -> Path:
        """The file with the session's settings: that of a named session goes before that of a run."""
        return self.named_config if self.named_config.exists() else self.run_config

    def stamp(self) -> tuple[int, ...]:
        """Changes when what is in the files does."""
        found = []
        for path in (self.config, self.state_file):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found += [stat.st_ino, stat.st_mtime_ns]
        return tuple(found)

    def detector(self) -> str:
        """How changes are noticed at the moment.

        "filesystem" or "directories": recorded, by what fanotify marks; "changelogs": recorded by Gluster's bricks;
        "fanotify": the recorder is being started; "scan": the tree is compared again and again.
        """
        try:
            return self._detector.read_text(encoding="ascii").strip() or "scan"
        except FileNotFoundError:
            return "scan"

    def witnesses_content(self) -> bool:
        """Whether a change of content says so itself, whatever becomes of the name under which it was made."""
        return self.detector() in {"filesystem", "changelogs"}

    def set_detector(self, detector: str) -> None:
        """At once: whoever found nothing in it would scan, and take what is recorded for covered. Raises SeamarkError."""
        session_file.replace_file(self._detector, detector)

    def load(self) -> Session:
        """Settings and state. Raises SessionError when there is no such session, or its files are damaged."""
        config = self.load_config()
        return Session.of(
            self.name,
            config,
            self.state() or SessionState(id=pair_id(config.primary, config.secondary)),
            self.mount,
        )

    def load_config(self) -> SessionConfig:
        try:
            return session_file.read(self.config)
        except FileNotFoundError:
            raise SessionError(f"there is no session {self.name}", ExitCode.NOT_FOUND) from None
        except SettingsError as error:
            if self.config == self.named_config:
                raise
            raise SessionError(
                f"{error.message}: the file is damaged; remove it: it is made anew, nothing on the secondary is lost, "
                "and what is right there is not sent again",
                ExitCode.USAGE,
            ) from None

    def save_run(self, session: Session) -> None:
        """Write what `seamark run` was asked for, and what it remembers. Raises SeamarkError."""
        settings = {name: getattr(session, name) for name in SessionConfig.__struct_fields__}
        said = "Made by 'seamark run': what is an option of it is written anew each time. See also 'seamark create'."
        session_file.write_new(self.run_config, SessionConfig(**settings), said)
        self.save_state(
            SessionState(
                id=session.id,
                instance=session.instance,
                root=session.root,
                adopt=session.adopt,
                desired=Desired.STARTED,
                deletes_allowed_ns=session.deletes_allowed_ns,
            )
        )

    def state(self) -> SessionState | None:
        """What is remembered of the session; None when it was never used. Raises SessionError."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=SessionState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise SessionError(
                f"{self.state_file} is damaged ({error}); remove that one file: it is made anew",
                ExitCode.USAGE,
            ) from None

    def save_state(self, state: SessionState) -> None:
        """Remember it, durably. Raises SeamarkError."""
        session_file.replace_file(self.state_file, msgspec.json.encode(state).decode() + "\n")

    def change_state(self, **changes: object) -> SessionState:
        """Remember something else of it: one process after another. Raises SeamarkError."""
        private_dir(self.path)
        with open(self.path / "state.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.state()
            if state is None:
                config = self.load_config()
                state = SessionState(id=pair_id(config.primary, config.secondary))
            changed = msgspec.structs.replace(state, **changes)
            self.save_state(changed)
        return changed


def default_config_dir() -> Path:
    """Where files of sessions are kept when nobody says otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "seamark"
    if os.geteuid() == 0:
        return Path("/etc/seamark")
    return Path.home() / ".config" / "seamark"


def default_state_dir() -> str:
    """Where sessions keep their state when nobody says otherwise."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return os.path.join(base, "seamark")
    if os.geteuid() == 0:
        return "/var/lib/seamark"
    return os.path.join(os.path.expanduser("~"), ".local", "state", "seamark")


def config_dir_of(state_dir: Path) -> Path:
    """The directory of the files that belong to a state directory (SEAMARK_CONFIG_DIR says another)."""
    said = os.environ.get("SEAMARK_CONFIG_DIR")
    if said:
        return Path(said)
    if state_dir == Path(default_state_dir()):
        return default_config_dir()
    return state_dir / "config"


def node_config(state_dir: Path) -> Path:
    """The file with what concerns all sessions of this node."""
    return config_dir_of(state_dir) / "seamark.toml"


def node_name() -> str:
    """What this node is called: SEAMARK_NODE, else the name of its host."""
    return os.environ.get("SEAMARK_HOST") or os.environ.get("SEAMARK_NODE") or os.uname().nodename


def session_names(state_dir: Path) -> list[str]:
    """The sessions that this host knows, damaged ones included, in the order of their names."""
    return sorted(set(_names(state_dir)))


def _names(state_dir: Path) -> Iterator[str]:
    for path in (config_dir_of(state_dir) / "sessions").glob(f"*{_SUFFIX}"):
        if NAME.fullmatch(path.stem) and path.suffix == _SUFFIX:
            yield path.name[: -len(_SUFFIX)]
    for path in (state_dir / "sessions").glob("*"):
        if NAME.fullmatch(path.name) and path.is_dir():
            yield path.name


def known_session(state_dir: Path, name: str) -> SessionDir:
    """A session that exists here, whether or not its files can be read. Raises NotFoundError."""
    place = SessionDir(state_dir, name)
    if not place.config.exists() and not place.path.exists():
        known = ", ".join(session_names(state_dir)) or "none"
        raise NotFoundError(f"there is no session {name} (known: {known})")
    return place


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
    """The directory and settings of a session that this host knows. Raises SessionError."""
    place = SessionDir(state_dir_of_this_process(), name)
    return place, place.load()
