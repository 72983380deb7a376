"""Drills: a failover is tried in a view of the secondary, which is then thrown away. Replication goes on, and knows nothing of it.

By a command of a person's, or by a job of beat at the times of ``drill.at``. A report is kept with the session's progress.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from replication import drills
from replication.errors import ExitCode, LockedError, NotFoundError, SeamarkError, UsageError
from replication.locks import held_by_us
from replication.progress import Progress
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from replication.remote.look import looking, ssh_options
from replication.session import node_name
from scheduler.due import is_due
from scheduler.status_file import last_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.remote.client import SecondaryClient
    from replication.session import Session, SessionDir
    from tasks.context import Context

GATED = (
    "the session's own key (push-pem) runs no commands on the secondary's host: leave the view there with --keep, and check it "
    "on that host, or give the session a key that opens a shell (ssh.identity)"
)
_SHOWN = 2000
_AGAIN_S = 60  # after one that could not be held, or was ended by a kill


class Wanted(NamedTuple):
    """What a drill is to do. ``own``: the check is the session's own, so that it tells of the session's health."""

    check: str
    method: str
    timeout_s: float
    keep: bool = False
    own: bool = True
    snapshot: str | None = None  # of which the view is made, and not of the secondary as it is


def of_session(session: Session) -> Wanted:
    """A drill as the session's settings have it."""
    settings = session.drill
    return Wanted(settings.check, settings.method, float(settings.timeout))


def drill(
    place: SessionDir, session: Session, wanted: Wanted, turn: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Hold one; its report (docs/scripting.md), which is kept. ``turn`` is called now and then.

    Raises SeamarkError where none could be held at all: the secondary is out of reach, there is nothing to fail over to.
    """
    with held_by_us(place.path / "drill.lock") as ours:
        if not ours:
            raise LockedError(f"another drill of session {session.name} is under way")
        progress = Progress(place.progress)
        try:
            brick = progress.brick()
            if not brick.marked:
                raise SeamarkError(
                    f"session {session.name} has no mark yet: its first comparison has not ended, and there is nothing to "
                    "fail over to"
                )
            report = _begun(place, session, wanted, brick.stime_ns / 1e9)
            _hold(place, session, wanted, report, turn)
            report["ended"] = time.time()
            report["passed"] = not report["reason"]
            progress.change(lambda db: drills.keep(db, report, own=wanted.own))
            return report
        finally:
            progress.close()


def _begun(place: SessionDir, session: Session, wanted: Wanted, mark: float) -> dict[str, Any]:
    """The report as it is before anything was done. What a failover would lose is what the session's process knew last."""
    now = time.time()
    seen = last_report(place)
    backlog = seen.backlog if seen is not None else None
    return {
        "message_type": "drill", "session": session.name, "node": node_name(), "secondary": session.secondary,
        "snapshot": None, "started": now, "ended": None, "passed": False, "reason": "",
        "mark": mark, "mark_age_s": max(0.0, now - mark),
        "lost": {
            "as_of": seen.time if seen is not None else None,
            "lag_s": seen.snapshot.lag_s if seen is not None else None,
            "entries": backlog.entries if backlog is not None else None,
            "files": backlog.files if backlog is not None else None,
            "bytes": backlog.bytes if backlog is not None else None,
            "failures": seen.snapshot.failures if seen is not None else None,
            "skipped": seen.snapshot.skipped if seen is not None else None,
        },
        "view": None, "kept": None, "check": wanted.check, "check_exit_code": None, "check_s": None, "check_output": "",
    }  # fmt: skip


def _hold(
    place: SessionDir, session: Session, wanted: Wanted, report: dict[str, Any], turn: Callable[[], object]
) -> None:
    """Make the view, check it, and let it go. What goes wrong with that is the reason of a drill that failed."""
    with looking(place, session) as (client, hello):
        if "index_id" not in hello:
            raise SeamarkError(f"secondary {session.secondary} holds nothing of session {session.name}")
        try:
            if wanted.check and ssh_options(place, session, dry=True).gated:
                raise UsageError(GATED)
            if wanted.snapshot is not None:
                _goes_by(report, client, wanted.snapshot)
            view = client.finish(
                "view", turn, method=wanted.method, stays=wanted.keep, snapshot=wanted.snapshot
            )
            report["view"] = {
                key: view[key]
                for key in ("path", "method", "frozen", "took_s", "files", "bytes", "completed")
            }
            if wanted.check:
                _check(client, wanted, report, turn)
            if wanted.keep:
                report["kept"] = client.call("view_keep", why=f"drill of {node_name()}").header["path"]
            else:
                client.finish("view_drop", turn)
        except LinkLost:
            raise
        except SecondaryError as error:
            report["reason"] = report["reason"] or error.reason
        except UsageError as error:
            report["reason"] = error.message


def _goes_by(report: dict[str, Any], client: SecondaryClient, name: str) -> None:
    """The report is of a snapshot: by its mark. Raises NotFoundError when there is none of that name."""
    found = {record["name"]: record for record in client.call("snapshots").header["items"]}
    if "mark" not in found.get(name, {}):
        raise NotFoundError(f"there is no snapshot {name}: seamark snapshots {report['session']}")
    mark = found[name]["mark"]["stime_ns"] / 1e9
    report.update(snapshot=name, mark=mark, mark_age_s=max(0.0, report["started"] - mark))


def _check(
    client: SecondaryClient, wanted: Wanted, report: dict[str, Any], turn: Callable[[], object]
) -> None:
    mark = datetime.fromtimestamp(report["mark"]).astimezone().isoformat(timespec="seconds")
    client.call("view_check", command=wanted.check, timeout_s=wanted.timeout_s, mark=mark)
    while (state := client.call("view_state").header)["running"]:
        turn()
    output = state["output"].encode(errors="backslashreplace").decode()
    report.update(check_exit_code=state["code"], check_s=state["seconds"], check_output=output[-_SHOWN:])
    if state["late"]:
        report["reason"] = f"the check did not end within {wanted.timeout_s:g} s"
    elif state["code"] < 0:
        report["reason"] = f"the check was ended by signal {-state['code']}"
    elif state["code"]:
        last = output.strip().splitlines()[-1:]
        report["reason"] = f"the check ended with {state['code']}" + (f": {last[0][:200]}" if last else "")


def discard(place: SessionDir, session: Session) -> list[str]:
    """Throw away the views that were kept; their names. Raises SeamarkError."""
    with looking(place, session) as (client, hello):
        if "index_id" not in hello:
            return []
        names: list[str] = client.finish("views_discard")["discarded"]
        return names


def hold_if_due(ctx: Context, turn: Callable[[], object]) -> str:
    """Hold one if a time that was set has come since the last. Raises SeamarkError, SecondaryError."""
    if not is_due(ctx, ctx.session.drill.at, drills.tried_ns, drills.try_at) or not ctx.ledger.once_in(
        _AGAIN_S, "drill"
    ):
        return "none is due"
    try:
        report = drill(ctx.place, ctx.session, of_session(ctx.session), turn)
    except LockedError as error:
        return error.message
    ctx.progress.change(lambda db: drills.try_at(db, time.time_ns()))
    return "passed" if report["passed"] else f"failed: {report['reason']}"


def exit_code(report: dict[str, Any]) -> ExitCode:
    """What a command ends with."""
    return ExitCode.OK if report["passed"] else ExitCode.ERROR
