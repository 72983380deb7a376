"""The agent is killed at each point at which it writes anything: what a reader saw stays, and what may be lost is a gap."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from replication.agent import AgentRefused, AgentUnreachable, agent_call
from replication.changelog.index import SegmentInfo, State
from replication.changelog.record import Record
from replication.changelog.store import ChangelogStore
from tests.changelog.running import running, snapshot, uncovered
from tests.conftest import missing
from tests.filesystems import available, filesystem
from tests.killing import Point, kill_at_each, traced

pytestmark = pytest.mark.root
REPOSITORY = Path(__file__).resolve().parents[2]
# Nothing closes a segment but a barrier, and the index is written anew after a few entries.
AGENT = """
import signal, sys, threading
from replication.agent import AgentConfig, run_agent
from replication.changelog import index
index._COMPACT_AT = int(sys.argv[5])
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
config = AgentConfig(
    root=sys.argv[1], directory=sys.argv[2], detector=sys.argv[3], max_bytes=int(sys.argv[4]),
    close_after_ms=10**7, tick_s=10**7,
)
sys.stdin.readline()
run_agent(config, lambda info: None, stop, on_alarm=lambda text: None, ready=lambda mode: print("ready", flush=True))
"""
Seen = dict[int, tuple[SegmentInfo, tuple[Record, ...]]]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if why := available("ext4"):
        missing(why)
    with filesystem("ext4", tmp_path_factory.mktemp("disk")) as mount:
        yield mount


class Course:
    """Some dozens of changes in several segments, with what else an agent is asked for in between."""

    def __init__(self, root: Path, store: Path, detector: str, limit: int) -> None:
        self.root, self.store, self.detector, self.limit = root, store, detector, limit
        self.retained = 0
        self.dropped: set[int] = set()  # positions that were said to be damaged

    def killed(self, log: Path, point: Point | None) -> bool:
        """The course under strace, up to the agent's end; whether it was killed."""
        words = [self.root, self.store, self.detector, self.limit, 6]
        with subprocess.Popen(
            [sys.executable, "-c", AGENT, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ) as process:
            assert process.stdin
            assert process.stdout
            with traced(process.pid, log, point):
                process.stdin.write(b"go\n")
                process.stdin.flush()
                with suppress(AgentUnreachable):
                    if process.stdout.readline():
                        self.changes()
                        process.send_signal(signal.SIGTERM)
                process.wait(20)
        assert process.returncode in (0, -signal.SIGKILL)
        return process.returncode != 0

    def changes(self) -> None:
        root = self.root
        for round_ in range(5):
            directory = root / f"d{round_}"
            directory.mkdir()
            for n in range(6):
                (directory / f"f{n}").write_bytes(b"%d" % n)
            (directory / "f0").rename(root / f"moved{round_}")
            (directory / "f1").unlink()
            (directory / "f2").chmod(0o600)
            at = int(agent_call(self.store, "barrier")["position"])
            if round_ == 1:
                self.retained = at - 1
                agent_call(self.store, "retain", upto=self.retained)
            elif round_ == 3:
                self.dropped = {info.number for info, _ in self.seen().values() if info.state is State.DATA}
                with suppress(AgentRefused):
                    agent_call(self.store, "damaged", number=min(self.dropped))
                self.dropped = {min(self.dropped)}
                agent_call(self.store, "barrier")

    def seen(self) -> Seen:
        """What a reader finds: positions and their records."""
        with ChangelogStore(self.store) as store:
            return {
                info.number: (info, tuple(store.read(info.number)) if info.number not in self.dropped else ())
                for info in store.segments()
            }

    def judge(self, before: Seen) -> None:
        last = max(before, default=0)
        (self.root / "meanwhile").write_bytes(b"while nobody recorded")
        with running(self.root, self.store, detector=self.detector) as agent:
            gaps = [number for number, state in agent.states() if state == "agent down"]
            first = [number for number, state in agent.states() if state == "started"]
            assert max(gaps or first) > last, (agent.states(), before.keys())
            old, at = snapshot(self.root), agent.barrier()
            (self.root / "d0").mkdir(exist_ok=True)
            (self.root / "d0" / "later").write_bytes(b"later")
            (self.root / "meanwhile").rename(self.root / "d0" / "meanwhile")
            assert not uncovered(old, snapshot(self.root), agent.recorded(at, agent.barrier()))
        after = self.seen()
        for number, (info, records) in before.items():
            if info.state is not State.DATA or number in self.dropped:
                assert number in after or number <= self.retained or self.forgotten(number, after)
            elif number not in after:
                assert number <= self.retained or self.forgotten(number, after)
            elif after[number][0].state is State.GAP:
                assert self.limit < 10_000
            else:
                assert after[number] == (info, records)
        self.nothing_left(after)

    def forgotten(self, number: int, after: Seen) -> bool:
        """Dropped because of the limit: a gap stands for it."""
        return any(info.reason == "limit" and info.number > number for info, _ in after.values())

    def nothing_left(self, after: Seen) -> None:
        names = {path.name for path in self.store.iterdir()} - {"index", "lock", "writer", "quiet"}
        segments = {f"{info.number:016d}.segment" for info, _ in after.values() if info.state is State.DATA}
        assert names == segments


SCENES = {
    "filesystem": ("filesystem", 1 << 30),
    "directories": ("directories", 1 << 30),
    "limit": ("filesystem", 700),
}


@pytest.mark.parametrize(
    "most",
    [
        pytest.param(3, id="some"),
        pytest.param(None, id="each", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.parametrize("scene", SCENES)
def test_killed_before_a_call(scene: str, most: int | None, disk: Path, tmp_path: Path) -> None:
    def work(log: Path, point: Point | None) -> bool:
        root, store = disk / re.sub(r"\W", "_", f"{scene}-{point}"), tmp_path / f"log-{point}"
        root.mkdir()
        course = Course(root, store, *SCENES[scene])
        try:
            killed = course.killed(log, point)
            assert point is not None or not killed
            course.judge(course.seen())
        finally:
            shutil.rmtree(root)
        return killed

    kill_at_each(f"agent, {scene}", work, tmp_path / "calls", most)
