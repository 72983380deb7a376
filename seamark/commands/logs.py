"""`seamark logs`: the log of a session, also while it grows."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from replication.errors import NotFoundError
from replication.session import SessionDir, known_session
from scheduler.monitor_client import monitor_dir
from seamark.commands.shared import session_argument, state_dir_option
from seamark.logs import session_log

_EVERY_S = 0.2


@click.command(no_args_is_help=True)
@session_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, metavar="N", help="Lines of before. [default: 50]"
)
@click.option("--services", is_flag=True, help="Also what its services (Redis, Flower) wrote, by themselves.")
@state_dir_option
def logs(name: str, follow: bool, lines: int, services: bool, state_dir: str) -> None:
    """Show the log of session NAME: the last lines, older files included."""
    place = known_session(Path(state_dir), name)
    paths = [Path(session_log(state_dir, name)), *(_services(place, state_dir) if services else ())]
    if not follow and not any(path.exists() for path in paths):
        raise NotFoundError(f"session {name} has not written a log yet ({paths[0]})")
    with contextlib.ExitStack() as stack:
        tails = [stack.enter_context(contextlib.closing(Tail(path))) for path in paths]
        for tail in tails:
            for line in tail.last(lines):
                _show(line)
        while follow:
            for tail in tails:
                for line in tail.more():
                    _show(line)
            time.sleep(_EVERY_S)


def _services(place: SessionDir, state_dir: str) -> tuple[Path, ...]:
    return place.path / "services.log", monitor_dir(state_dir) / "services.log"


def _show(line: bytes) -> None:
    click.echo(line.rstrip(b"\n").decode("utf-8", "backslashreplace"))


class Tail:
    """One log file that is turned over (log, log.1, log.2, …): its end, and what comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def last(self, count: int) -> list[bytes]:
        """The last lines of all its files; ``more`` goes on behind them."""
        found: deque[bytes] = deque(maxlen=count)
        for path in self._files():
            file = path.open("rb")
            found.extend(file)
            if path == self.path:
                self._file = file
            else:
                file.close()
        return list(found)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _files(self) -> list[Path]:
        """The oldest first."""
        old = [path for path in self.path.parent.glob(f"{self.path.name}.*") if path.suffix[1:].isdigit()]
        return [*sorted(old, key=lambda p: -int(p.suffix[1:])), *([self.path] if self.path.exists() else [])]

    def more(self) -> Iterator[bytes]:
        """Whole lines that came since; of the file before it was turned over, then of the new one."""
        if self._file is not None:
            yield from self._lines(self._file)
        if self._turned_over():
            if self._file is not None:
                yield from self._lines(self._file)  # written between the look and the turn
                self._file.close()
            self._file = self.path.open("rb")
            yield from self._lines(self._file)

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        *whole, self._rest = (self._rest + file.read()).split(b"\n")
        yield from whole

    def _turned_over(self) -> bool:
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return False
        return self._file is None or os.fstat(self._file.fileno()).st_ino != now.st_ino
