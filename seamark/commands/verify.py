"""`seamark verify`: does the secondary really hold what the primary holds?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replication.errors import NotFoundError, UsageError
from replication.quantities import Duration
from replication.session import known_session
from seamark.commands.shared import session_argument, state_dir_option

if TYPE_CHECKING:
    from replication.session import Session
    from scheduler.verify.verification import Asked


@click.command(no_args_is_help=True)
@session_argument
@click.argument("paths", nargs=-1, type=click.Path(path_type=str), metavar="[PATH]...")
@click.option(
    "--quick", is_flag=True, help="Leave contents unread: names, types, sizes, times, attributes, links."
)
@click.option("--checksum", is_flag=True, help="Read and digest all contents at both ends. The default.")
@click.option(
    "--subset", default="", metavar="n/t|x%|SIZE",
    help="A part only: slice n of t, a random share (5%), or a random part of about SIZE (10G).",
)  # fmt: skip
@click.option("--min-age", metavar="D", help="Only what has not changed on the primary for so long (1h, 7d).")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Units at the same time. [default: the session's jobs]",
)
@click.option("--repair", is_flag=True, help="Send what differs, and displace what is foreign.")
@click.option("--report", metavar="FILE|-", help="Write a report that can be kept as a proof.")
@click.option(
    "--combined", metavar="FILE|-", help="Write a line for each name, as rclone: = * + - ! and the path."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
@click.option("-P", "--progress/--no-progress", default=None, help="Show how far it is.")
@state_dir_option
def verify(name: str, paths: tuple[str, ...], state_dir: str, **words: Any) -> int:
    """Compare what the primary and the secondary of session NAME really hold, all of it or what is at PATHs.

    Each end digests its own side; nothing is believed of what was replicated. It works while the session does: what
    changes meanwhile, or is on its way, is compared again and not reported. Ends with 9 when something differs, 3
    when something could not be read, else with 0.
    """
    from replication.progress import Progress
    from scheduler.verify.conduct import conduct
    from scheduler.verify.outcome import outcome
    from scheduler.verify.proof import keep
    from seamark.verify_views import Outputs, Subject, make_view

    place = known_session(Path(state_dir), name)
    session = place.load()
    asked = _asked(session, paths, **words)
    outputs = Outputs(words["report"], words["combined"], as_json=words["as_json"])
    subject = Subject(session, asked, words["subset"], paths)
    with (
        make_view(sys.stderr, name, progress=words["progress"], as_json=words["as_json"]) as view,
        conduct(place, asked, words["jobs"], view.show) as store,
    ):
        view.end()
        found = outcome(store)
        outputs.write(subject, store, found)
    keep(Progress(place.progress), asked, found)
    return found.exit_code


def _asked(session: Session, paths: tuple[str, ...], **words: Any) -> Asked:
    """The command line as what is to be compared. Raises UsageError, NotFoundError."""
    from replication.verify.selection import Subset
    from scheduler.verify.verification import Asked

    if words["quick"] and words["checksum"]:
        raise UsageError("--quick and --checksum exclude each other")
    if words["report"] == words["combined"] == "-" or (
        words["as_json"] and "-" in (words["report"], words["combined"])
    ):
        raise UsageError("only one of --json, --report and --combined can go to standard output")
    try:
        subset = Subset(words["subset"])
    except ValueError as error:
        raise UsageError(f"--subset: {error}") from None
    try:
        min_age = Duration.parse(words["min_age"]) if words["min_age"] is not None else 0.0
    except ValueError as error:
        raise UsageError(f"--min-age: {error}") from None
    low, high = subset.range_of(0)
    relative = tuple(_relative(session, path).hex() for path in paths)
    whole = not relative and not min_age and not subset.salt
    return Asked(
        content=not words["quick"], paths=() if "" in relative else relative, salt=subset.salt, low=low, high=high - 1,
        share_bytes=subset.bytes, min_age_s=min_age, repair=words["repair"], list_equal=words["combined"] is not None,
        slice=subset.number if whole else 0, slices=subset.slices if whole else 0,
    )  # fmt: skip


def _relative(session: Session, path: str) -> bytes:
    """A path as it is in the primary. Raises UsageError, NotFoundError."""
    from replication.secondary.filters import Filters

    primary = session.tree.rstrip("/") or "/"
    full = os.path.normpath(os.path.join(primary, path))
    if full != primary and not full.startswith(primary.rstrip("/") + "/"):
        raise UsageError(f"{path} is not in the primary of session {session.name} ({session.primary})")
    relative = b"" if full == primary else os.fsencode(os.path.relpath(full, primary))
    filters = Filters(session.filters)
    is_dir = os.path.isdir(full) and not os.path.islink(full)
    if relative and (filters.excludes_dir(os.path.dirname(relative)) or filters.excludes(relative, is_dir)):
        raise UsageError(f"{path} is left out by the filters of session {session.name}")
    if relative.split(b"/")[0] == b".seamark":
        raise UsageError(f"{path} is Seamark's own, and not compared")
    if session.gluster is None and not os.path.isdir(primary):
        raise NotFoundError(f"the primary of session {session.name} is not there: {primary}")
    return relative
