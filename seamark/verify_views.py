"""What a person sees of a comparison: how far it is, rows of what differs, and a report that can be kept."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TextIO

import seamark
from replication.errors import SeamarkError
from seamark.progress import text
from seamark.progress.display import discard
from seamark.progress.terminal import can_show
from seamark.progress.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session
    from scheduler.verify.outcome import Outcome
    from scheduler.verify.store import Store
    from scheduler.verify.verification import Asked

_PHASES = {
    "begin": "beginning",
    "walk": "comparing",
    "links": "looking again",
    "mend": "repairing",
    "done": "done",
}
_PLAIN_S = 30.0
_ASKED_S = 5.0


def line(found: Outcome, trouble: str) -> str:
    """How far a comparison is, in a line."""
    parts = [
        f"{_PHASES[found.phase]}: {text.number(found.names)} names equal, {text.size(found.bytes)} read at each end"
    ]
    seconds = max((found.ended or time.time()) - found.started, 0.001)
    parts.append(f"{text.size(found.bytes / seconds)}/s, {found.names / seconds:,.0f} names/s")
    if found.suspects:
        parts.append(f"{text.number(found.suspects)} to be looked at again")
    parts.append(f"{text.number(found.different)} differ")
    if trouble:
        parts.append(f"waiting: {trouble}")
    return ", ".join(parts)


class View:
    """Lines now and then, for a stream that is no terminal; none with ``interval`` None."""

    def __init__(self, stream: TextIO, interval: float | None) -> None:
        self._stream = stream
        self._interval = interval
        self._due = time.monotonic() + (interval or 0.0)

    def show(self, found: Outcome, trouble: str) -> None:
        if self._interval is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        try:
            self._stream.write(text.log_line(shown(line(found, trouble)), "INFO", time.time()) + "\n")
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def end(self) -> None:
        """Nothing more is shown: what was found is written now."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class TerminalView(View):
    """A line that stays in its place."""

    def __init__(self, stream: TextIO, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream, None)
        self._title = title
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True
        )

    def show(self, found: Outcome, trouble: str) -> None:
        from rich.console import Group
        from rich.text import Text

        lines = [Text(self._title, style="bold"), Text(shown(line(found, trouble)))]
        for each in lines:
            each.no_wrap, each.overflow = True, "ellipsis"
        with contextlib.suppress(OSError):
            if not self._live.is_started:
                self._live.start()
            self._live.update(Group(*lines), refresh=True)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            if self._live.is_started:
                self._live.stop()


class JsonView(View):
    """A `verify_status` each second."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, 1.0)

    def show(self, found: Outcome, trouble: str) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + 1.0
            emit("verify_status", **fields(found), trouble=trouble)


def make_view(stream: TextIO, name: str, *, progress: bool | None, as_json: bool) -> View:
    """The view that was asked for."""
    if as_json:
        return JsonView(sys.stdout)
    if progress is False:
        return View(stream, None)
    if can_show(stream):
        return TerminalView(stream, f"verify {name}")
    return View(stream, _ASKED_S if progress else _PLAIN_S)


def emit(message_type: str, **values: Any) -> None:
    """One JSON object a line. ASCII only: names that are not UTF-8 are lone surrogates."""
    head = {"message_type": message_type, "time": round(time.time(), 3)}
    sys.stdout.write(json.dumps(head | values, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def fields(found: Outcome) -> dict[str, Any]:
    """The figures, for scripts."""
    import msgspec

    return msgspec.to_builtins(found) | {"different": found.different}  # type: ignore[no-any-return]


class Subject(NamedTuple):
    """What was compared: as it was asked for on the command line, too."""

    session: Session
    asked: Asked
    subset: str
    paths: tuple[str, ...]


class Outputs:
    """Where what was found goes. Files are written aside and renamed, so that a report is whole or not there."""

    def __init__(self, report: str | None, combined: str | None, *, as_json: bool) -> None:
        self._report, self._combined, self._json = report, combined, as_json
        for path in (report, combined):
            directory = os.path.dirname(os.path.abspath(path)) if path not in (None, "-") else "/"
            if not os.access(directory, os.W_OK):
                raise SeamarkError(f"{path} cannot be written: {directory} is not writable, or not there")

    def write(self, subject: Subject, store: Store, found: Outcome) -> None:
        """Everything that was asked for."""
        from scheduler.verify.outcome import combined, rows

        if self._json:
            for row in rows(store, unsettled=True):
                emit("difference", **row)
            emit("summary", **fields(found), exit_code=int(found.exit_code))
        elif "-" not in (self._report, self._combined):
            for row in rows(store):
                _say(sys.stdout, row_line(row))
            _say(sys.stdout, summary(found))
        if self._combined is not None:
            _write(self._combined, combined(store))
        if self._report is not None:
            _write(self._report, report(subject, store, found))


def row_line(row: dict[str, Any]) -> str:
    """What differs, in a line; what was mended by then says so."""
    mended = "  (repaired)" if row["mended"] else ""
    return f"{row['kind']:<10} {shown(row['path'])}  {shown(row['detail'])}{mended}"


def summary(found: Outcome) -> str:
    """The last line."""
    counts = ", ".join(f"{amount} {kind}" for kind, amount in sorted(found.differences.items()))
    parts = [f"{text.number(found.different)} differ ({counts})" if counts else "nothing differs"]
    if found.mended:
        parts.append(f"{text.number(sum(found.mended.values()))} were repaired")
    if found.displaced:
        parts.append(f"{text.number(found.displaced)} foreign were moved to .seamark/displaced")
    parts.append(f"{text.number(found.names)} names are equal")
    parts.append(
        f"{text.number(found.contents)} files of them by content ({text.size(found.bytes)})" if found.contents or found.hash
        else "no contents"
    )  # fmt: skip
    if found.unreadable:
        parts.append(f"{text.number(found.unreadable)} could not be read")
    if found.unsettled:
        parts.append(f"{text.number(found.unsettled)} changed all the while, or are on their way: not judged")
    if found.excluded:
        parts.append(f"{text.number(found.excluded)} left out by filters")
    if found.young:
        parts.append(f"{text.number(found.young)} too young")
    seconds = (found.ended or time.time()) - found.started
    return f"{'; '.join(parts)}; in {text.duration(seconds)}"


def report(subject: Subject, store: Store, found: Outcome) -> Iterator[str]:
    """The report: when, of what, how much by content, what differed, and a digest of all digests."""
    from scheduler.verify.outcome import rows

    session, asked, subset, paths = subject
    how = f"contents by {found.hash}" if asked.content else "without contents"
    rows_said: list[tuple[str, str]] = [
        ("session", f"{session.name} ({session.id})"), ("primary", f"{os.uname().nodename}:{session.primary}"),
        ("secondary", session.secondary), ("compared", ", ".join(paths) if paths else "all of it"),
        ("part", subset or "whole"), ("how", f"names, types, sizes, modes, owners, times, attributes, links, holes; {how}"),
        ("filters", "; ".join(session.filters) or "none"), ("from", _utc(found.started)), ("until", _utc(found.ended)),
        ("names equal", text.number(found.names)),
        ("of them by content", f"{text.number(found.contents)} files, {found.bytes} bytes"),
        ("different", text.number(found.different)), ("repaired", text.number(sum(found.mended.values()))),
        ("not readable", text.number(found.unreadable)), ("not judged", f"{text.number(found.unsettled)} (changed all the while)"),
        ("left out", f"{text.number(found.excluded)} by filters, {text.number(found.young)} too young"),
        ("digest of all digests", found.digest), ("program", f"seamark {seamark.__version__}"),
    ]  # fmt: skip
    yield f"Comparison of a replica: {'DIFFERENT' if found.different else 'EQUAL'}"
    yield ""
    for label, value in rows_said:
        yield f"{label + ':':<23} {shown(value)}"
    yield ""
    for row in rows(store, unsettled=True):
        yield row_line(row)


def _utc(at: float | None) -> str:
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _say(stream: TextIO, words: str) -> None:
    stream.write(words.encode(errors="backslashreplace").decode() + "\n")


def _write(path: str, lines: Iterator[str]) -> None:
    """Names as they are, byte by byte. Raises SeamarkError."""
    if path == "-":
        sys.stdout.flush()
        for each in lines:
            sys.stdout.buffer.write(os.fsencode(each) + b"\n")
        return
    aside = f"{path}.{os.getpid()}.new"
    try:
        with open(aside, "wb") as file:
            for each in lines:
                file.write(os.fsencode(each) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise SeamarkError(f"{path} cannot be written: {error.strerror}") from None
