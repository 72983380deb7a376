"""A segment that is damaged before a worker has read it: noticed, covered by a crawl, and the two sides are equal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from replication.changelog.control import agent_call
from replication.changelog.segment import HEADER_SIZE
from replication.changelog.store import ChangelogStore
from tests.judge import assert_same
from tests.system.trees import many_small_files


def flipped(at):
    def work(path, _):
        content = bytearray(path.read_bytes())
        content[at] ^= 0xFF
        path.write_bytes(content)

    return work


def cut(size):
    return lambda path, _: os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def twice(path, _):
    path.write_bytes(path.read_bytes() * 2)


def zeros(path, _):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {
    "first byte": flipped(0),
    "number": flipped(12),
    "header's checksum": flipped(HEADER_SIZE - 1),
    "block header": flipped(HEADER_SIZE + 2),
    "in a definition": flipped(HEADER_SIZE + 25),
    "last byte": flipped(-1),
    "empty": cut(0),
    "half a header": cut(HEADER_SIZE // 2),
    "header alone": cut(HEADER_SIZE),
    "without its end": cut(-1),
    "missing": lambda path, _: path.unlink(),
    "another's": lambda path, other: shutil.copy(other, path),
    "twice": twice,
    "zeros": zeros,
}


class Held:
    """The control worker stands still: what is recorded waits."""

    def __init__(self, run):
        parent = run.pids("worker control")
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        self.pids = [parent, *map(int, children)]

    def __enter__(self):
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_):
        for pid in reversed(self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.root
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["in a definition", "without its end", "missing"], id="some"),
        pytest.param(list(DAMAGES), id="each", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
def test_damage_is_noticed_and_covered(place, names):
    many_small_files(place.primary, 60, 6)
    with place.run() as run:
        run.wait_idle()
        (changelog,) = place.state.glob("sessions/*/changelog")
        for number, name in enumerate(names):
            with Held(run):
                after = int(agent_call(changelog, "barrier")["position"])
                changes(place.primary, number)
                agent_call(changelog, "barrier")
                (place.primary / f"other{number}").write_text("in the next segment")
                agent_call(changelog, "barrier")
                paths = segments(changelog, after)
                assert len(paths) >= 2, name
                DAMAGES[name](paths[0], paths[-1])
                at = int(paths[0].stem)
            run.wait_for(lambda at=at: gap_at(changelog, at), f"a gap for what is damaged ({name})")
            run.wait_same()
            run.wait_idle()
        assert run.status["failures"] == 0, run.report()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def changes(root, number):
    """Such as are lost if nobody looks."""
    directory = root / f"d{number % 6}"
    (directory / f"new{number}").write_text("new")
    names = sorted(p for p in directory.iterdir() if p.name.startswith("f"))
    names[0].unlink()
    os.rename(names[1], root / f"moved{number}")
    names[2].write_text(f"changed {number}")
    os.chmod(names[3], 0o600)


def segments(changelog, after):
    return sorted(path for path in changelog.glob("*.segment") if int(path.stem) > after)


def gap_at(changelog, number):
    """Whether that position is a gap, or is behind the front by now."""
    with ChangelogStore(changelog) as store:
        infos = {info.number: info for info in store.segments()}
    return number not in infos or infos[number].reason == "damaged"
