"""Before anything starts: is the primary there, is the secondary ours, and do they not contain each other?

Looking at a remote secondary needs ssh, whose threads must not live in the process that forks all
the others: it is done in a short-lived child.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NoReturn

from replication.errors import ExitCode, SeamarkError, TemporaryError, UsageError
from replication.gluster.glusterd import root_of_volume
from replication.remote.answers import SecondaryError
from replication.remote.look import claim, looking
from replication.volume.opening import open_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.session import Session, SessionDir

log = logging.getLogger("seamark.preflight")

_CODES = {
    "owned": ExitCode.LOCKED, "loop": ExitCode.USAGE, "not-empty": ExitCode.USAGE, "inside": ExitCode.USAGE, "not-found": ExitCode.NOT_FOUND,
    "read-only": ExitCode.TEMPORARY, "no-space": ExitCode.TEMPORARY, "permission": ExitCode.ERROR,
    "busy": ExitCode.TEMPORARY, "promoted": ExitCode.LOCKED,
}  # fmt: skip


_TURN_S = 0.25
_REAP_S = 2.0
NO_SNAPSHOTS = (
    "its file system has no snapshots, which checkpoint_snapshot needs; move the secondary to btrfs (a subvolume is best), "
    "or to XFS made with reflink=1, or set checkpoint_snapshot false"
)


def check_primary(session: Session) -> str:
    """The identity of the primary's root. Raises SeamarkError when it is not there, or not what it was."""
    volume = open_volume(session)
    try:
        try:
            os.listdir(volume.root_fd)
        except OSError as error:
            volume.check_answers(error)
            raise UsageError(f"primary {session.primary}: cannot be read: {error.strerror}") from None
        identity = volume.identify_fd(volume.root_fd)[0].hex()
        if session.gluster is not None:
            identity = root_of_volume(session.gluster.volume, identity)
    finally:
        volume.close()
    if session.root and session.root != identity and not session.adopt:
        raise SeamarkError(
            f"primary {session.primary} is not the directory that this session replicated before (not mounted? "
            "restored?); mount it, or if it is the right one now, start once with --adopt: it is then compared "
            "with the secondary, and what is right there is not sent again"
        )
    return identity


def look_at_secondary(place: SessionDir, session: Session) -> InChild:
    """Begin to ask the secondary what it is, making its root if that is missing."""
    return InChild(lambda: _hello(place, session))


def check_secondary(
    session: Session, look: InChild, until: float = math.inf, turn: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """What the secondary says of itself: epoch, entries, free_bytes, …. Raises SeamarkError.

    ``until``: time.monotonic() after which nobody waits for its answer any more. ``turn`` is called meanwhile.
    """
    hello = look.meanwhile(turn, until)
    where = f"secondary {session.secondary}"
    if not hello["fs"]["writable"]:
        raise TemporaryError(f"{where}: Read-only file system; mount it writable")
    if session.checkpoint_snapshot and not hello["fs"].get("snapshot", "not known yet"):
        raise UsageError(f"{where}: {NO_SNAPSHOTS}")
    if session.sync_method in ("rsync", "tar") and not hello[session.sync_method]:
        raise UsageError(
            f"{where}: there is no {session.sync_method} on that host; install it there, or use --sync-method auto"
        )
    return hello


def check_not_emptied(session: Session, hello: dict[str, Any]) -> None:
    """A primary that is empty where it was full is not there: stop instead of emptying the secondary."""
    names = [name for name in os.listdir(session.tree) if name != ".seamark"]
    if not names and hello.get("entries", 0) > 0:
        raise SeamarkError(
            f"primary {session.primary} is empty, but its secondary holds {hello['entries']} names: is it mounted? "
            "If you emptied it on purpose, put any file into it and start again"
        )


def claim_secondary(place: SessionDir, session: Session, epoch: int, takes: int) -> InChild:
    """Begin to take the secondary over from another holder (remote/look.py)."""
    return InChild(lambda: _claim(place, session, epoch, takes))


def _claim(place: SessionDir, session: Session, epoch: int, takes: int) -> dict[str, Any]:
    try:
        return claim(place, session, epoch, takes)
    except SecondaryError as error:
        if error.code == "stale-epoch":
            return {"refused": str(error)}
        raise refused(session, error) from None


def _hello(place: SessionDir, session: Session) -> dict[str, Any]:
    try:
        with looking(place, session, create=True) as (_, hello):
            return hello
    except SecondaryError as error:
        raise refused(session, error) from None


def refused(session: Session, error: SecondaryError) -> SeamarkError:
    """What the secondary refused, as a person is told."""
    if error.code == "unmounted":
        return unmounted(session)
    words = str(error)
    if error.code == "not-empty":
        words += "; give --adopt to take it over (seamark start NAME --adopt): what is right there is kept, and not sent again"
    if error.code == "promoted":
        words += "; what is written here since the mark is not replicated. On its host 'seamark failback' makes this its secondary"
    return SeamarkError(f"secondary {session.secondary}: {words}", _CODES.get(error.code, ExitCode.ERROR))


def unmounted(session: Session) -> SeamarkError:
    """What is said where a secondary is taken for one that is not there: nothing was written in its place."""
    return SeamarkError(
        f"secondary {session.secondary} is empty, and not the one that this session filled before: is it mounted? "
        "If it was replaced on purpose, start once with --adopt (seamark start NAME --adopt)"
    )


class InChild:
    """Some work under way in a forked child."""

    def __init__(self, work: Callable[[], dict[str, Any]]) -> None:
        self._read, write = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            _answer(work, write)
        os.close(write)

    def result(self, until: float = math.inf) -> dict[str, Any]:
        """What the work returned, when it has. Raises the SeamarkError that it raised.

        A child that is not done at ``until`` (time.monotonic()) is killed: a TemporaryError.
        """
        with os.fdopen(self._read) as pipe:
            patience = None if until == math.inf else max(0.0, until - time.monotonic())
            late = not select.select([pipe], [], [], patience)[0]
            if late:
                os.kill(self._pid, signal.SIGKILL)
            text = "" if late else pipe.read()  # one that cannot be killed keeps its end open
        self._reap()
        if late:
            raise TemporaryError(
                "the secondary has not answered in time (--timeout); the next run asks again"
            )
        if not text:
            raise SeamarkError("the look at the secondary ended without an answer")
        answer = json.loads(text)
        if "error" in answer:
            raise SeamarkError(answer["error"], ExitCode(answer["code"]))
        value: dict[str, Any] = answer["value"]
        return value

    def meanwhile(self, turn: Callable[[], object], until: float = math.inf) -> dict[str, Any]:
        """As ``result``, but calls ``turn`` a few times a second while it waits; whatever that raises ends the work."""
        try:
            while time.monotonic() < until and not select.select([self._read], [], [], _TURN_S)[0]:
                turn()
        except BaseException:
            self.abandon()
            raise
        return self.result(until)

    def abandon(self) -> None:
        """Nobody wants to know any more; does nothing after ``result``."""
        if self._pid:
            os.close(self._read)
            os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        """Wait for its end, a moment: what hangs in the kernel, on a file system that does not answer, cannot be killed either."""
        pid, self._pid = self._pid, 0
        until = time.monotonic() + _REAP_S
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                log.warning(
                    "process %d is left behind: it waits in the kernel, for a file system that does not answer, and ends when that does",
                    pid,
                )
                return
            time.sleep(0.005)


def _answer(work: Callable[[], dict[str, Any]], pipe: int) -> NoReturn:
    answer: dict[str, Any]
    try:
        answer = {"value": work()}
    except SeamarkError as error:
        answer = {"error": error.message, "code": int(error.exit_code)}
    except BaseException as error:
        answer = {"error": f"unexpected {type(error).__name__}: {error}", "code": 1}
    with os.fdopen(pipe, "w") as file:
        file.write(json.dumps(answer))
    os._exit(0)


def in_child(work: Callable[[], dict[str, Any]], until: float = math.inf) -> dict[str, Any]:
    """Run ``work`` in a forked child and return what it returned; see InChild.result."""
    return InChild(work).result(until)
