"""The report of a drill as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seamark.progress import text
from seamark.progress.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

_LABEL = 14
_OUTPUT_LINES = 20


def as_text(report: dict[str, Any]) -> str:
    """All of it."""
    lines = [f"drill of session {report['session']}: {_result(report)}"]
    lines += [f"  {label:<{_LABEL}}{value}" for label, value in _rows(report)]
    said = report["check_output"].rstrip().splitlines()
    if said:
        more = len(said) - _OUTPUT_LINES
        lines.append(f"  {'said' + (f', the last {_OUTPUT_LINES} lines' if more > 0 else '')}:")
        lines += [f"    {shown(line)}" for line in said[-_OUTPUT_LINES:]]
    return "\n".join(lines)


def _result(report: dict[str, Any]) -> str:
    return "passed" if report["passed"] else f"FAILED: {shown(report['reason'])}"


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "held",
        f"{text.moment(report['started'])}, {text.duration(report['ended'] - report['started'])} in all",
    )
    if report["snapshot"] is not None:
        yield "snapshot", report["snapshot"]
    yield "mark", f"{text.moment(report['mark'])}, {text.duration(report['mark_age_s'])} old"
    yield "would be lost", _lost(report["lost"])
    view = report["view"]
    if view is not None:
        held = f"{text.number(view['files'])} files, {text.size(view['bytes'])}"
        yield "view", f"by {view['method']} in {text.duration(view['took_s'])}: {held}"
        yield "completed", _completed(view["completed"])
        if not view["frozen"]:
            yield "beware", "it was no copy: what was replicated meanwhile shows in it"
    if report["check_exit_code"] is not None:
        yield "check", shown(report["check"])
        yield "", f"ended with {report['check_exit_code']} after {text.duration(report['check_s'])}"
    elif not report["check"]:
        yield "check", "none: drill.check, or --check"
    if report["kept"] is not None:
        yield "kept", f"{shown(report['kept'])} (seamark drill {report['session']} --discard)"


def _lost(lost: dict[str, Any]) -> str:
    """What the session's process knew to be missing."""
    if lost["as_of"] is None:
        return "all since the mark"
    names = "names not known yet" if lost["entries"] is None else f"{text.number(lost['entries'])} names"
    return (
        f"{names}, {text.number(lost['files'])} files, {text.size(lost['bytes'])}; {text.number(lost['failures'])} failures, "
        f"{text.number(lost['skipped'])} skipped (as of {text.moment(lost['as_of'])})"
    )


def _completed(done: dict[str, Any]) -> str:
    said = [
        f"{text.number(done['restored'])} put back where they were" if done["restored"] else "",
        f"{text.number(done['displaced'])} displaced" if done["displaced"] else "",
        f"{text.number(done['missing'])} files without content" if done["missing"] else "",
        f"{text.number(done['wanted'])} in an older version" if done["wanted"] else "",
        f"{text.number(len(done['torn']))} half written" if done["torn"] else "",
    ]
    return ", ".join(filter(None, said)) or "nothing was half done"
