"""What is known of the sessions of this host, for whoever shows it: commands, metrics, pages.

``session_reports(state_dir)`` asks nobody but the monitor; all else is read from the state directory. So it
works while Redis, workers or secondaries are away, and costs little. What only others can know about a
session's own process (it is dead, frozen, dies again and again) is judged here.
"""

from __future__ import annotations

import contextlib
import time
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from replication import checkpoints, drills, proofs, reading, snapshots
from replication.changelog.control import exchange
from replication.errors import SeamarkError
from replication.gluster.address import volume_name
from replication.remote.target import parse_target
from replication.session import Desired, SessionDir, known_session, node_name, session_names
from scheduler.brick_rows import BrickReport, brick_reports
from scheduler.health import CRASHES, Reason
from scheduler.monitor_client import SOCKET, monitor_dir
from scheduler.procfs import is_there, namespace, stopped
from scheduler.recorded import RecordedReport, of_recorder, recorded
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot
from scheduler.status_file import Backlog, Report, last_report

REPORT_S = 10.0  # a session's process reports each second: silent for so long, something is wrong with it
_START_S = 60.0
_AT_WORK = (Phase.RUNNING, Phase.IDLE, Phase.PASSIVE)
_MONITOR_S = 2.0
_STAYING = ("failures", "differences", "snapshot", "drill")


class Status(StrEnum):
    """The words of Gluster's administrators."""

    CREATED = "Created"
    INITIALIZING = "Initializing"
    ACTIVE = "Active"
    PASSIVE = "Passive"
    FAULTY = "Faulty"
    PAUSED = "Paused"
    STOPPED = "Stopped"
    RECORDING = "Recording"  # ours: the way back of a promoted root


CRAWLS = {
    Crawl.NONE: "N/A",
    Crawl.HYBRID: "Hybrid Crawl",
    Crawl.HISTORY: "History Crawl",
    Crawl.CHANGELOG: "Changelog Crawl",
}


class CheckpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that was asked for last. Times: seconds since the epoch."""

    time: float
    completed: bool
    completion_time: float | None = None


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """What comparisons by content have proved: ``proven`` of ``slices``. Times: seconds since the epoch.

    ``oldest``: of the proof that is the oldest, None while a slice was never compared. ``differences``: found, and left.
    """

    slices: int
    proven: int
    oldest: float | None = None
    latest: float | None = None
    differences: int = 0


class SnapshotReport(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot that was taken last. Times: seconds since the epoch; ``error``: why there is none for the last checkpoint."""

    name: str
    taken: float
    mark: float
    error: str = ""


class SessionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One session, as docs/scripting.md describes it. Times: seconds since the epoch; None: not known.

    ``healthy``: None while it is not meant to run. ``age_s``: how old what its process said is.
    """

    name: str
    status: Status
    healthy: bool | None
    reason: str = ""
    reasons: tuple[Reason, ...] = ()
    desired: str = ""
    foreground: bool = False  # a `seamark run`
    primary_node: str = ""
    primary_volume: str = ""
    primary_brick: str = ""
    secondary: str = ""
    secondary_user: str = ""
    secondary_node: str = ""
    crawl_status: str = "N/A"
    detector: str = ""
    bricks: tuple[BrickReport, ...] = ()  # of a Gluster volume
    last_synced: float | None = None
    lag_s: float | None = None
    rpo_s: int | None = None
    backlog: Backlog = Backlog()
    rate_bytes_s: float = 0.0
    rate_files_s: float = 0.0
    eta_s: float | None = None
    failures: int = 0
    skipped: int = 0
    checkpoint: CheckpointReport | None = None
    snapshot: SnapshotReport | None = None
    drill: dict[str, Any] | None = None
    recorded: RecordedReport | None = None
    proof: ProofReport | None = None
    counters: dict[str, int] = {}
    active_node: str = ""  # who is at work, where several nodes may be
    active_since: float | None = None
    pid: int | None = None
    age_s: float | None = None


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor of a state directory says. ``sessions``: pid, deaths and why of each process."""

    running: bool
    answers: bool
    sessions: dict[str, dict[str, Any]] = {}


def session_reports(state_dir: str) -> list[SessionReport]:
    """All sessions of this host, in the order of their names. Damaged ones are in it, and say so."""
    monitor = ask_monitor_status(state_dir)
    places = (SessionDir(Path(state_dir), name) for name in session_names(Path(state_dir)))
    return [_report(place, monitor) for place in places]


def session_report(state_dir: str, name: str) -> SessionReport:
    """One session. Raises NotFoundError."""
    return _report(known_session(Path(state_dir), name), ask_monitor_status(state_dir))


def ask_monitor_status(state_dir: str) -> Monitor:
    """Whether a monitor runs for a state directory, and answers."""
    directory = monitor_dir(state_dir)
    try:
        answer = exchange(directory, SOCKET, {"op": "status"}, _MONITOR_S)
        return Monitor(running=True, answers=True, sessions=answer.get("sessions", {}))
    except (OSError, ValueError):
        return Monitor(running=_monitor_is_there(directory), answers=False)


def _monitor_is_there(directory: Path) -> bool:
    """Whether the monitor that began last is there still: one that is frozen is, though it does not answer."""
    with contextlib.suppress(OSError, ValueError):
        pid, since = (directory / "lock").read_text(encoding="ascii").split()
        return is_there(int(pid), int(since))
    return False


def _is_there(report: Report) -> bool:
    """Whether the process that wrote it lives. One of another container cannot be seen: then, whether it wrote it lately."""
    if report.space and report.space != namespace():
        return report.age() <= REPORT_S
    return is_there(report.pid, report.born)


def _report(place: SessionDir, monitor: Monitor) -> SessionReport:
    found = _of_session(place, monitor)
    records = found.status not in (Status.CREATED, Status.STOPPED)
    bricks = brick_reports(
        place.changelog, found.status, found.crawl_status, found.last_synced, records=records
    )
    return msgspec.structs.replace(found, bricks=bricks) if bricks else found


def _of_session(place: SessionDir, monitor: Monitor) -> SessionReport:
    report = last_report(place)
    snapshot = report.snapshot if report is not None else ProgressSnapshot()
    known: dict[str, Any] = {"name": place.name, "foreground": not place.named_config.exists()}
    known |= {
        "checkpoint": _checkpoint(place),
        "snapshot": _snapshot(place),
        "drill": drills.read(place.progress),
    }
    if report is not None:
        known |= _last_known(report, snapshot)
    try:
        config, state = place.load_config(), place.state()
        target = parse_target(config.secondary)
    except SeamarkError as error:
        return _with(known, Status.FAULTY, [Reason(code="damaged", text=error.message)])
    known |= {
        "primary_node": report.node if report is not None else node_name(),
        "primary_volume": volume_name(config.primary),
        "primary_brick": config.primary, "secondary": config.secondary,
        "secondary_user": target.user or "", "secondary_node": target.host or node_name(),
    }  # fmt: skip
    known["rpo_s"] = config.rpo
    known["proof"] = _proof(place, config.verify.slices)
    known["recorded"] = recorded(place, state)
    desired = state.desired if state is not None else Desired.CREATED
    here = report is not None and _is_there(report)
    if known["foreground"]:
        known["desired"] = "run"
        if not here:
            return _not_running(known, Status.STOPPED, snapshot, report)
        monitor = Monitor(running=True, answers=True)
    else:
        known["desired"] = desired.value
        if desired is Desired.CREATED:
            return _not_running(known, Status.CREATED, snapshot, None)
        if desired is Desired.STOPPED:
            return _not_running(known, Status.STOPPED, snapshot, None)
        if desired is Desired.RECORDING:
            return _recording(place, known, monitor)
    reasons = [*_of_monitor(monitor), *_of_process(place.name, monitor, report, here=here)]
    told = list(report.reasons) if report is not None and here and not reasons else []
    if reasons:
        known |= {"rate_bytes_s": 0.0, "rate_files_s": 0.0, "eta_s": None}
        told += _behind(known, report)
    return _with(known, status_of(desired, snapshot, reasons + told), reasons + told)


def _recording(place: SessionDir, known: dict[str, Any], monitor: Monitor) -> SessionReport:
    """The way back of a promoted root, whose old primary is waited for."""
    reasons = _of_monitor(monitor) or of_recorder(place)
    if reasons and known["recorded"] is not None:
        known["recorded"] = msgspec.structs.replace(known["recorded"], at_least=True)
    known |= {"pid": None, "crawl_status": "N/A", "rate_bytes_s": 0.0, "rate_files_s": 0.0, "eta_s": None}
    return _with(known, Status.FAULTY if reasons else Status.RECORDING, reasons)


def _checkpoint(place: SessionDir) -> CheckpointReport | None:
    asked = checkpoints.read(place.progress)
    if not asked:
        return None
    last = asked[-1]
    reached = last.reached_ns / 1e9 if last.reached_ns is not None else None
    return CheckpointReport(time=last.time_ns / 1e9, completed=reached is not None, completion_time=reached)


def _snapshot(place: SessionDir) -> SnapshotReport | None:
    known = reading.ask(place.progress, snapshots.known, None)
    if known is None or not (known.name or known.error):
        return None
    return SnapshotReport(
        name=known.name, taken=known.taken_ns / 1e9, mark=known.mark_ns / 1e9, error=known.error
    )


def _proof(place: SessionDir, slices: int) -> ProofReport | None:
    found = proofs.read(place.progress, slices)
    if found is None:
        return None
    oldest, latest = (ns / 1e9 if ns is not None else None for ns in (found.oldest_ns, found.latest_ns))
    return ProofReport(
        slices=slices, proven=found.proven, oldest=oldest, latest=latest, differences=found.left
    )


def _last_known(report: Report, snapshot: ProgressSnapshot) -> dict[str, Any]:
    age = report.age()
    # What was missing then is as much older by now, and of what came since nobody knows.
    lag = None if snapshot.lag_s is None else snapshot.lag_s + (age if age > REPORT_S else 0.0)
    return {
        "crawl_status": CRAWLS[snapshot.crawl], "detector": report.detector, "last_synced": snapshot.stime,
        "lag_s": lag, "backlog": msgspec.structs.replace(report.backlog, age_s=lag),
        "rate_bytes_s": snapshot.rate_bytes_s, "rate_files_s": snapshot.files_s, "eta_s": snapshot.eta_s,
        "failures": snapshot.failures, "skipped": snapshot.skipped, "counters": report.counters, "pid": report.pid, "age_s": round(age, 1),
        "active_node": report.active.node if report.active is not None else "",
        "active_since": report.active.since if report.active is not None else None,
    }  # fmt: skip


def _not_running(
    known: dict[str, Any], status: Status, snapshot: ProgressSnapshot, report: Report | None
) -> SessionReport:
    """A session that nobody wants to run: it is neither healthy nor not."""
    known |= {"rate_bytes_s": 0.0, "rate_files_s": 0.0, "eta_s": None, "crawl_status": "N/A", "pid": None}
    known |= {"active_node": "", "active_since": None}
    failed = report.failed if report is not None and snapshot.phase is Phase.FAILED else ""
    return SessionReport(**known, status=status, healthy=None, reason=failed)


def _of_monitor(monitor: Monitor) -> list[Reason]:
    if not monitor.running:
        return [Reason(code="monitor", text="no monitor runs here: seamark monitor")]
    if not monitor.answers:
        return [Reason(code="monitor", text="the monitor does not answer: it is frozen, or just starting")]
    return []


def _of_process(name: str, monitor: Monitor, report: Report | None, *, here: bool) -> list[Reason]:
    told = monitor.sessions.get(name, {})
    failed = report.failed if report is not None else ""
    deaths = int(told.get("deaths", 0))
    if deaths and (failed or deaths >= CRASHES or not told.get("pid")):
        how = f"ended {deaths} times in a row" if deaths > 1 else "ended"
        return [Reason(code="process", text=failed or f"the session's process {how} ({told.get('why')})")]
    if report is None or not here:
        if failed:
            return [Reason(code="process", text=failed)]
        if monitor.answers and told.get("pid"):
            return [Reason(code="starting", text="the session's process has just begun", faulty=False)]
        return [Reason(code="process", text="the session's process is not running")]
    age = report.age()
    if (
        report.snapshot.phase is Phase.STARTING
        and not any(r.faulty for r in report.reasons)
        and age < _START_S
    ):
        return [Reason(code="starting", text=failed or "it is being started", faulty=bool(failed))]
    if age > REPORT_S:
        stop = ", stopped by a signal," if stopped(report.pid) else ""
        text = f"the session's process ({report.pid}){stop} has not reported for {age:.0f} s"
        return [Reason(code="process", text=text)]
    return []


def process_problem(place: SessionDir, told: dict[str, Any]) -> str:
    """Why the process of a session, of which the monitor says ``told``, cannot speak for itself; empty if it can."""
    report = last_report(place)
    monitor = Monitor(running=True, answers=True, sessions={place.name: told})
    here = report is not None and _is_there(report)
    if report is not None and here and report.snapshot.phase in _AT_WORK and report.age() <= REPORT_S:
        return ""
    found = _of_process(place.name, monitor, report, here=here)
    return next((reason.text for reason in found if reason.faulty), "")


def _behind(known: dict[str, Any], report: Report | None) -> list[Reason]:
    """What its own process said of failures stays true while it is away; the lag is judged anew."""
    kept = [r for r in report.reasons if r.code in _STAYING] if report is not None else []
    rpo, lag = known["rpo_s"], known.get("lag_s")
    if rpo is not None and lag is not None and lag > rpo:
        text = f"the lag is {lag:.0f} s, more than the target of {rpo} s"
        kept.append(Reason(code="rpo", text=text, faulty=False))
    return kept


def status_of(desired: Desired, snapshot: ProgressSnapshot, reasons: list[Reason]) -> Status:
    """The word for a session that is meant to run."""
    if any(reason.faulty for reason in reasons):
        return Status.FAULTY
    if desired is Desired.PAUSED:
        return Status.PAUSED
    if snapshot.phase is Phase.STARTING or any(reason.code == "starting" for reason in reasons):
        return Status.INITIALIZING
    return Status.PASSIVE if snapshot.phase is Phase.PASSIVE else Status.ACTIVE


def _with(known: dict[str, Any], status: Status, reasons: list[Reason]) -> SessionReport:
    first = reasons[0].text if reasons else ""
    if status is Status.PASSIVE and known["active_node"]:
        first = f"node {known['active_node']} is active"
    return SessionReport(**known, status=status, healthy=not reasons, reason=first, reasons=tuple(reasons))


def as_json(report: SessionReport) -> dict[str, Any]:
    """One report as `status --json` prints it."""
    plain: dict[str, Any] = msgspec.to_builtins(report)
    return {"message_type": "session_status", "time": round(time.time(), 3), **plain}
