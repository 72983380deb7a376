#!/usr/bin/env python3
"""What recording costs: python benchmarks/recorder.py DIRECTORY [FILES]

DIRECTORY is on the file system to try; a volume and a changelog are made in it, and removed. Each kind of work is
done without and with an agent, alternating, and the medians are printed: what the writer took, the agent's
processor time per event and per record, how long after the writer the last segment was closed, and memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from replication.agent import agent_call
from replication.changelog.store import ChangelogStore

ROUNDS = 5
_AGENT = (
    "import sys, threading; from replication.agent import *; stop = threading.Event();"
    "threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start();"
    "run_agent(AgentConfig(root=sys.argv[1], directory=sys.argv[2], detector=sys.argv[3]), lambda _: None, stop,"
    "ready=lambda _mode: print('ready', flush=True))"
)


@dataclass
class Result:
    writer_s: float
    cpu_s: float = 0.0
    events: int = 0
    records: int = 0
    behind_s: float = 0.0
    rss: int = 0
    size: int = 0


def create(root: Path, files: int) -> None:
    content = os.urandom(1024)
    for number in range(files):
        if number % 100 == 0:
            (root / f"{number // 100}").mkdir()
        fd = os.open(root / f"{number // 100}" / f"file-{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, content)
        os.close(fd)


def append(root: Path, files: int) -> None:
    for number in range(files):
        fd = os.open(root / f"{number // 100}" / f"file-{number}", os.O_APPEND | os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)


def remove(root: Path, files: int) -> None:
    del files
    for path in sorted(root.iterdir()):
        shutil.rmtree(path)


WORK: list[tuple[str, Callable[[Path, int], None]]] = [
    ("create", create),
    ("append", append),
    ("remove", remove),
]


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def without(root: Path, files: int) -> dict[str, Result]:
    found = {}
    for name, work in WORK:
        begun = time.perf_counter()
        work(root, files)
        found[name] = Result(time.perf_counter() - begun)
    return found


def recorded(root: Path, store: Path, files: int, detector: str) -> dict[str, Result]:
    command = [sys.executable, "-c", _AGENT, str(root), str(store), detector]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    found = {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as agent:
        assert agent.stdout
        assert agent.stdout.readline() == "ready\n"
        for name, work in WORK:
            at = int(agent_call(store, "barrier")["position"])
            events, cpu = int(agent_call(store, "status")["events"]), cpu_of(agent.pid)
            begun = time.perf_counter()
            work(root, files)
            ended = time.perf_counter()
            end = int(agent_call(store, "barrier")["position"])
            behind = time.perf_counter() - ended
            status = agent_call(store, "status")
            with ChangelogStore(store) as held:
                segments = [info for info in held.segments(at) if info.number <= end]
            found[name] = Result(
                ended - begun, cpu_of(agent.pid) - cpu, int(status["events"]) - events,
                sum(info.records for info in segments), behind, int(status["rss"]),
                sum(info.size for info in segments),
            )  # fmt: skip
        assert agent.stdin
        agent.stdin.close()
        agent.wait()
    shutil.rmtree(store)
    return found


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    base = Path(sys.argv[1]) / f"recorder-{os.getpid()}"
    root, store = base / "volume", base / "log"
    root.mkdir(parents=True)
    ways: dict[str, list[dict[str, Result]]] = {"none": [], "filesystem": [], "directories": []}
    try:
        for _ in range(ROUNDS):
            for way, rounds in ways.items():
                rounds.append(without(root, files) if way == "none" else recorded(root, store, files, way))
    finally:
        shutil.rmtree(base)
    print(f"{files} files of 1 KiB, median of {ROUNDS}")
    print(
        "work    recorder     writer s  agent cpu s    events  us/event  records  us/record  behind s  rss MB  log MB"
    )
    for name, _ in WORK:
        for way, rounds in ways.items():
            print(f"{name:8}{way:12}" + line([found[name] for found in rounds]))


def line(results: list[Result]) -> str:
    def median(value: Callable[[Result], float]) -> float:
        return statistics.median(map(value, results))

    text = f"{median(lambda r: r.writer_s):9.2f}"
    if results[0].events:
        text += (
            f"{median(lambda r: r.cpu_s):13.2f}{median(lambda r: r.events):10.0f}"
            f"{median(lambda r: r.cpu_s / r.events * 1e6):10.1f}{median(lambda r: r.records):9.0f}"
            f"{median(lambda r: r.cpu_s / max(r.records, 1) * 1e6):11.1f}{median(lambda r: r.behind_s):10.2f}"
            f"{median(lambda r: r.rss) / 1e6:8.0f}{median(lambda r: r.size) / 1e6:8.1f}"
        )
    return text


if __name__ == "__main__":
    main()
