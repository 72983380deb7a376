"""What `seamark run` was asked to do. Parsed and checked by the command line, carried out by scheduler.opening and scheduler.run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from replication.settings import ChangeDetector, SyncMethod

if TYPE_CHECKING:
    from tasks.servers import Servers

SYNC_METHODS: tuple[str, ...] = get_args(SyncMethod)
CHANGE_DETECTORS: tuple[str, ...] = get_args(ChangeDetector)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One run of one session. Paths are bytes where they name files of the primary."""

    primary: bytes  # absolute path of the directory that is replicated
    secondary: str  # an absolute local path, or [user@]host:/path
    state_dir: str  # absolute; sessions have their own directories in it
    once: bool = False  # end when all that existed at the start is on the secondary
    timeout_s: float | None = None  # end when that takes longer; None: wait for ever
    sync_method: SyncMethod = "auto"
    jobs: int = 2  # data tasks at the same time
    ssh_port: int | None = None  # None: what ~/.ssh/config says, else 22
    identity: str | None = None  # absolute path of a private key
    change_detector: ChangeDetector = "auto"
    settings: dict[str, Any] = field(default_factory=dict)  # that were given; others are as they were
    servers: Servers | None = None  # None: start a Redis of our own
    without: frozenset[str] = frozenset()  # roles that another supervisor runs: services.ROLES
    monitored: bool = False  # below a monitor, which has an agent for each volume
    flower_port: int | None = None  # None: no Flower
    flower_address: str = "127.0.0.1"
    dry_run: bool = False
    progress: bool | None = None  # None: when standard error is a terminal
    log_json: bool = False
    accept_new_host_key: bool = False  # pin an unknown host key on first use
    adopt: bool = False  # take over a secondary that is not empty
    name: str | None = None  # of the session; None: derived from primary and secondary
