"""What can be wrong with a session that exists, on this side: its files, its processes, its changelog, its broker."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from replication.addresses import shown
from replication.changelog.control import AgentRefused, AgentUnreachable, agent_call
from replication.changelog.store import MAX_BYTES
from replication.errors import SeamarkError
from replication.progress import Progress
from replication.session import Desired, SessionState
from scheduler.checks.outcome import Outcome, fail, good, size_text, warn
from scheduler.monitor_client import ask_monitor
from scheduler.reports import session_report
from scheduler.server_check import check_servers
from tasks.servers import from_json

if TYPE_CHECKING:
    from replication.session import Session, SessionDir

_RUNNING = (Desired.STARTED, Desired.PAUSED)
_LEAST_ROOM = 100 << 20
# capabilities(7): what one mark on a file system needs
_CAPABILITIES = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_ADMIN": 21}
_SCANNING = re.compile(r"changes cannot be recorded \((.*)\): scanning instead")


def check_now(place: SessionDir, session: Session, state_dir: str, log: Path) -> Iterator[Outcome]:
    """Everything here, in the order in which one thing makes the other go wrong. ``log``: the session's."""
    state = None
    try:
        state = place.state()
        yield good("state", f"{state.desired if state else 'created'}, in {place.path}")
    except SeamarkError as error:
        yield fail("state", error)
    yield from _progress(place)
    yield _room(place)
    running = yield from _processes(place, state, state_dir)
    yield from _lock(place, running=running)
    if running:
        yield from _health(place.name, state_dir)
        yield from _servers(place)
        yield from _recording(place, session, log)


def _progress(place: SessionDir) -> Iterator[Outcome]:
    if not place.progress.exists():
        return
    try:
        progress = Progress(place.progress)
        waiting = progress.failure_count()
        oldest = progress.failures(1)
        progress.close()
    except SeamarkError as error:
        yield fail("progress", error)
        return
    if waiting:
        first = oldest[0]
        yield warn(
            "failures",
            f"{waiting:,} items wait to be tried again and hold the mark back; the oldest: "
            f"{first.path or first.gfid}: {first.error}",
        )
    else:
        yield good("failures", "none")


def _room(place: SessionDir) -> Outcome:
    directory = next(path for path in (place.path, *place.path.parents) if path.exists())
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    said = f"{size_text(free)} free for state and changelogs in {directory}"
    if not os.access(directory, os.W_OK):
        return fail("state directory", f"{directory} cannot be written by this user")
    return (
        good("state directory", said) if free > _LEAST_ROOM else fail("state directory", f"{said}: make room")
    )


def _processes(
    place: SessionDir, state: SessionState | None, state_dir: str
) -> Generator[Outcome, None, bool]:
    """Whether the session runs as it should. Returns whether it does."""
    monitor = ask_monitor(state_dir, "status")
    wanted = state is not None and state.desired in _RUNNING
    if monitor is None:
        yield fail("monitor", "none runs here, so no session does: start one with 'seamark monitor'")
        return False
    yield good("monitor", f"runs as process {monitor['pid']}")
    running = place.name in monitor["sessions"]
    if state is not None and state.desired is Desired.RECORDING:
        yield from _health(place.name, state_dir)
    elif not wanted:
        what = state.desired if state else "created"
        yield fail("session", f"is {what}, so nothing is replicated: seamark start {place.name}")
    elif not running:
        yield fail("session", "should run, and does not: see 'seamark logs' and the monitor's log")
    elif state is not None and state.desired is Desired.PAUSED:
        yield warn("session", f"is paused, so nothing is sent: seamark resume {place.name}")
    else:
        yield good("session", f"runs as process {monitor['sessions'][place.name]['pid']}")
    return running


def _lock(place: SessionDir, *, running: bool) -> Iterator[Outcome]:
    """The kernel drops the lock of a dead process, so one that is held has a holder."""
    if running or not place.run_lock.exists():
        return
    try:
        fd = os.open(place.run_lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        yield fail("lock", f"{place.run_lock}: {error.strerror}")
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield good("lock", "free")
    except OSError as error:
        words = "held by another process" if error.errno == errno.EWOULDBLOCK else error.strerror
        yield fail(
            "lock", f"{place.run_lock} is {words}, though no session runs: see 'fuser {place.run_lock}'"
        )
    finally:
        os.close(fd)


def _health(name: str, state_dir: str) -> Iterator[Outcome]:
    """As `seamark status` judges it."""
    report = session_report(state_dir, name)
    if report.healthy is None:
        yield warn("health", f"it is {report.status}")
    elif report.healthy:
        lag = "not known" if report.lag_s is None else f"{report.lag_s:.1f} s"
        yield good("health", f"{report.status}, {report.crawl_status}, lag {lag}")
    else:
        yield fail("health", report.reason)


def _servers(place: SessionDir) -> Iterator[Outcome]:
    try:
        servers = from_json(place.servers.read_bytes())
        what = "Redis" if servers.are_one else "broker and Redis"
        check_servers(servers)
        yield good(
            what,
            "answers" if servers.are_one else f"answer ({shown(servers.broker)}, {shown(servers.redis_url)})",
        )
    except OSError:
        yield warn("Redis", "the session has not noted yet which one it uses")
    except SeamarkError as error:
        yield fail("broker and Redis", error)


def _recording(place: SessionDir, session: Session, log: Path) -> Iterator[Outcome]:
    """How changes are noticed, and whether that will go on."""
    detector = place.detector()
    if detector == "scan":
        if session.change_detector == "scan":
            yield good("changes", "found by scanning, as change_detector says")
            return
        yield warn(
            "changes", f"found by scanning, which is slower: {_why_scanning(log)}. {_powers()}{_limits()}"
        )
        return
    try:
        agent = agent_call(place.changelog, "status", timeout=10.0)
    except (AgentUnreachable, AgentRefused) as error:
        yield fail("changes", f"the agent does not answer ({error}): the session starts another; see its log")
        return
    more = (
        ""
        if detector == "filesystem"
        else f"; one mark on the file system is not possible: {_powers()}{_limits()}"
    )
    yield good(
        "changes",
        f"recorded ({agent['mode']}), {agent['events']:,} events, {agent['overflows']} overflows{more}",
    )
    share = agent["size"] / MAX_BYTES
    said = f"{size_text(agent['size'])} of {size_text(MAX_BYTES)}"
    if share > 0.8:
        yield warn(
            "changelog",
            f"{said}: beyond it the oldest are dropped and all is compared; is the secondary away?",
        )
    else:
        yield good("changelog", said)


def _why_scanning(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 20)))
            found = _SCANNING.findall(file.read().decode("utf-8", "replace"))
    except OSError:
        found = []
    return found[-1] if found else "the log does not say why any more"


def _powers() -> str:
    """Which capabilities of those that recording uses this process lacks."""
    match = re.search(
        r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE
    )
    held = int(match[1], 16) if match else 0
    lacking = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    return (
        f"this user has no {' and no '.join(lacking)}" if lacking else "this user has all capabilities for it"
    )


def _limits() -> str:
    """The kernel's limits on unprivileged recording."""
    said = []
    for name in ("max_user_marks", "max_queued_events"):
        path = Path("/proc/sys/fs/fanotify") / name
        if path.exists():
            said.append(f"fs.fanotify.{name} is {path.read_text(encoding='ascii').strip()}")
    return f" ({', '.join(said)})" if said else ""
