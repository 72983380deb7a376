"""What `seamark run` was asked to do. Parsed and checked by the command line, carried out by scheduler.run."""

from __future__ import annotations

import os
from dataclasses import dataclass

SYNC_METHODS = ("auto", "rsync", "tar", "stream")
CHANGE_DETECTORS = ("auto", "fanotify", "scan")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One run of one session. Paths are bytes where they name files of the primary."""

    primary: bytes  # absolute path of the directory that is replicated
    secondary: str  # an absolute local path, or [user@]host:/path
    state_dir: str  # absolute; sessions have their own directories in it
    once: bool = False  # end when all that existed at the start is on the secondary
    sync_method: str = "auto"
    jobs: int = 2  # data tasks at the same time
    ssh_port: int | None = None  # None: what ~/.ssh/config says, else 22
    identity: str | None = None  # absolute path of a private key
    change_detector: str = "auto"
    broker: str | None = None  # None: start a Redis of our own
    flower_port: int | None = None  # None: no Flower
    dry_run: bool = False
    progress: bool | None = None  # None: when standard error is a terminal
    log_json: bool = False
    accept_new_host_key: bool = False  # pin an unknown host key on first use
    adopt: bool = False  # take over a secondary that is not empty
    name: str | None = None  # of the session; None: derived from primary and secondary


def default_state_dir() -> str:
    """Where sessions are kept when nobody says otherwise."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(base):
        return os.path.join(base, "seamark")
    if os.geteuid() == 0:
        return "/var/lib/seamark"
    return os.path.join(os.path.expanduser("~"), ".local", "state", "seamark")
