#!/usr/bin/env python3
"""A Gluster volume as the primary: against gsyncd, the geo-replication of GlusterFS, between volumes of the same kind.

Rows: hybrid, created, deleted, renamed, large, overwritten, catch-up.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from common import Lab, Report, Row, Series, arguments, settle
from gluster_lab import (
    PRIMARY,
    SECONDARY,
    Cpu,
    GlusterLab,
    Gsyncd,
    call,
    outside,
    rsync_for_gsyncd,
    run_inside,
)

from tests.system.harness import SeamarkRun

Checks = Iterable[Callable[[], bool]]

_PATIENCE_S = 400
_STEP_S = 0.02
_LARGE_MIB = 1024
_GSYNCD = "gsyncd, rsync, rollover 3 s"
_ROWS = {
    "hybrid": "20,000 files of 1-4 KiB that are there when the session starts",
    "created": "5,000 files of 1-4 KiB created live",
    "deleted": "5,000 files deleted",
    "renamed": "a directory of 1,000 files renamed",
    "large": "a file of 1 GiB written",
    "overwritten": "1 MiB overwritten in it",
    "catch-up": "5,000 created, 5,000 deleted, 1,000 renamed while stopped; from the start",
}


class Side:
    """Whoever replicates ``root`` to ``copy``, which are directories on mounts. ``cpu``: of all of its parts, bricks included."""

    rows = frozenset(_ROWS)
    exact: tuple[str, ...] = ()  # what the rsync that judges in the end is to look at, and what not

    def __init__(self, name: str, cpu: Cpu, root: Path, copy: Path) -> None:
        self.name, self.cpu, self.root, self.copy = name, cpu, root, copy

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def be_live(self) -> None:
        """Until it has caught up, and changes are seen as they happen."""

    def settle(self) -> None:
        """Until it is at rest."""

    def told(self) -> None:
        """The work has ended: for who has to be told."""


class CopySide(Side):
    """cp(1) and rm(1) from mount to mount, at the very moment: what these names and bytes cost whoever makes them there.

    Nobody has to notice, find, send or prove anything, nothing is synced, readers see halves, and gfids are others.
    """

    rows = frozenset({"hybrid", "created", "deleted", "large"})
    exact = ("--omit-dir-times",)

    def __init__(self, lab: GlusterLab, cpu: Cpu, other: Cpu) -> None:
        lab.volume("cp", PRIMARY, cpu)
        lab.volume("cs", SECONDARY, cpu)
        super().__init__("cp, to a mounted volume", cpu, lab.mount("cp", other), lab.mount("cs", cpu))

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def told(self) -> None:
        there, here = ({each for each in os.listdir(at) if each[0] != "."} for at in (self.root, self.copy))
        with self.cpu:
            for name in sorted(there - here):
                call("cp", "-a", str(self.root / name), str(self.copy / name))
            for name in sorted(here - there):
                call("rm", "-r", str(self.copy / name))


class GsyncdSide(Side):
    exact = ("--omit-dir-times", "--exclude=/.canary*")

    def __init__(self, lab: GlusterLab, cpu: Cpu, other: Cpu, rsync: str) -> None:
        lab.volume("gp", PRIMARY, cpu)
        lab.volume("gs", SECONDARY, cpu)
        super().__init__(_GSYNCD, cpu, lab.mount("gp", other), lab.judge("gs", other))
        self.gsyncd = Gsyncd(lab, cpu, "gp", "gs", rsync)

    def start(self) -> None:
        self.gsyncd.start()

    def stop(self) -> None:
        self.gsyncd.stop()

    def be_live(self) -> None:
        self.gsyncd.be_live(self.root, self.copy)

    def settle(self) -> None:
        time.sleep(random.uniform(4, 7))  # more than a rollover; at any moment between two of them


class GsyncdByTar(GsyncdSide):
    """The same session, with the other method from now on."""

    rows = frozenset({"created", "deleted"})

    def __init__(self, side: GsyncdSide) -> None:
        Side.__init__(self, "gsyncd, tarssh, rollover 3 s", side.cpu, side.root, side.copy)
        self.gsyncd = side.gsyncd

    def start(self) -> None:
        self.gsyncd.use("tarssh")


class SeamarkSide(Side):
    """``kind``: of the secondary. volume: one that the agent mounts, where objects get the primary's gfids; mount: a directory
    on a mount of its users; directory: a plain one.
    """

    exact = ("-HAX", "--exclude=/.seamark", "--filter=-x trusted.*", "--filter=-x user.seamark.*")

    def __init__(self, lab: GlusterLab, ssh: Lab, cpu: Cpu, other: Cpu, kind: str) -> None:
        name = f"s{kind[0]}"
        self._address = lab.volume(f"{name}p", PRIMARY, cpu)
        self._ssh, self._state = ssh, ssh.fresh("state")
        self._run: SeamarkRun | None = None
        self._target: Path | str
        if kind == "directory":
            self._target = copy = ssh.fresh("secondary")
        else:
            lab.volume(f"{name}s", SECONDARY, cpu)
            copy = lab.judge(f"{name}s", other)
        if kind == "volume":
            self._target = f"gluster://root@{SECONDARY}/{name}s"
        elif kind == "mount":
            self._target = lab.mount(f"{name}s", cpu) / "copy"
            copy /= "copy"
        super().__init__(f"seamark, to a {kind}", cpu, lab.mount(f"{name}p", other), copy)

    def start(self) -> None:
        with self.cpu:
            self._run = self._ssh.seamark(self._address, self._target, self._state)

    @property
    def run(self) -> SeamarkRun:
        assert self._run is not None
        return self._run

    def stop(self) -> None:
        self.run.stop()
        self.run.close()

    def be_live(self) -> None:
        settle(self.run)

    def settle(self) -> None:
        settle(self.run)


class Bench:
    def __init__(self, only: list[str] | None, runs: int, files: int) -> None:
        self.only, self.runs, self.files = only or list(_ROWS), runs, files
        self.lag: dict[str, dict[str, Series]] = {row: {} for row in _ROWS}
        self.cpu: dict[str, dict[str, Series]] = {row: {} for row in _ROWS}

    def _wanted(self, side: Side, *rows: str) -> bool:
        return any(row in self.only and row in side.rows for row in rows)

    def measure(self, side: Side, row: str, work: Callable[[], Checks]) -> None:
        """Seconds from the end of ``work`` until all holds that it returns, and of processor time from its beginning on."""
        before = side.cpu.seconds()
        checks = work()
        ended = time.monotonic()
        side.told()
        for check in checks:
            while not check():
                assert time.monotonic() < ended + _PATIENCE_S, (
                    f"{side.name}: {row}: not within {_PATIENCE_S} s"
                )
                time.sleep(_STEP_S)
        lag = time.monotonic() - ended
        time.sleep(1)
        cpu = side.cpu.seconds() - before
        if self._wanted(side, row):
            self.lag[row].setdefault(side.name, Series(side.name)).values.append(lag)
            self.cpu[row].setdefault(side.name, Series(f"{side.name}: processors")).values.append(cpu)
            print(f"{row:12} {side.name:30} {lag:8.2f} s {cpu:8.1f} s of processor time", flush=True)

    def check(self, side: Side) -> None:
        """rsync finds no difference, by content. (What is written last may still be on its way.)"""
        command = [
            "rsync", "-aniS", "--checksum", "--delete", "--numeric-ids", "--exclude=/.trashcan", "--exclude=/.glusterfs*",
            *side.exact, f"{side.root}/", f"{side.copy}/",
        ]  # fmt: skip
        until = time.monotonic() + 60
        while found := subprocess.run(command, check=True, capture_output=True).stdout.splitlines():
            assert time.monotonic() < until, f"{side.name}: {len(found)} differences: {found[:10]}"
            time.sleep(2)

    def run(self, sides: list[Side], by_tar: Side | None) -> None:
        for side in sides:
            self.begin(side)
        rows = (self.small, self.names, self.content, self.catch_up)
        for turn in range(self.runs):
            for row in rows:
                for side in sides:
                    row(side, turn)
        if by_tar is not None and self._wanted(by_tar, *by_tar.rows):
            by_tar.start()
            by_tar.be_live()
            for turn in range(self.runs):
                self.small(by_tar, 100 + turn)
        for side in sides:
            self.check(side)
            side.stop()

    # ---- rows

    def begin(self, side: Side) -> None:
        there = small_files(side.root, "names0", 1000, 1)
        if self._wanted(side, "hybrid"):
            there |= small_files(side.root, "pre", self.files, self.files // 100)
        os.sync()

        def start() -> Checks:
            side.start()
            return present(side, there)

        self.measure(side, "hybrid", start)
        side.be_live()

    def small(self, side: Side, turn: int) -> None:
        if not self._wanted(side, "created", "deleted"):
            return
        name = f"live{turn}"

        def create() -> Checks:
            return present(side, small_files(side.root, name, 5000, 50, turn))

        def delete() -> Checks:
            shutil.rmtree(side.root / name)
            return [partial(_is_absent, side.copy / name)]

        side.settle()
        self.measure(side, "created", create)
        side.settle()
        self.measure(side, "deleted", delete)

    def names(self, side: Side, turn: int) -> None:
        if not self._wanted(side, "renamed"):
            return
        side.settle()
        self.measure(side, "renamed", partial(self._rename, side, turn))

    def _rename(self, side: Side, turn: int, above: str = "names") -> Checks:
        old, new = f"{above}{turn}", f"{above}{turn + 1}"
        os.rename(side.root / old, side.root / new)
        return [partial(_is_absent, side.copy / old), partial(_has_names, side.copy / new / "d00000", 1000)]

    def content(self, side: Side, turn: int) -> None:
        if not self._wanted(side, "large", "overwritten"):
            return
        name, draw = f"large{turn}", random.Random(turn)
        block, changed, at = draw.randbytes(1 << 20), draw.randbytes(1 << 20), (_LARGE_MIB // 2) << 20

        def write() -> Checks:
            with open(side.root / name, "wb", buffering=0) as file:
                file.writelines(number.to_bytes(8, "little") + block[8:] for number in range(_LARGE_MIB))
            return present(side, {name: _LARGE_MIB << 20})

        def overwrite() -> Checks:
            with open(side.root / name, "r+b", buffering=0) as file:
                file.seek(at)
                file.write(changed)
            return [partial(_holds, side.copy / name, at, changed)]

        side.settle()
        self.measure(side, "large", write)
        side.settle()
        if self._wanted(side, "overwritten"):
            self.measure(side, "overwritten", overwrite)

    def catch_up(self, side: Side, turn: int) -> None:
        if not self._wanted(side, "catch-up"):
            return
        old, new, named = f"old{turn}", f"new{turn}", f"moved{turn}-"
        there = small_files(side.root, old, 5000, 50, turn) | small_files(side.root, f"{named}0", 1000, 1)
        _wait(present(side, there))
        side.settle()
        side.stop()
        created = small_files(side.root, new, 5000, 50, turn + 50)
        renamed = self._rename(side, 0, named)
        shutil.rmtree(side.root / old)

        def start() -> Checks:
            side.start()
            return [*present(side, created), *renamed, partial(_is_absent, side.copy / old)]

        self.measure(side, "catch-up", start)
        side.be_live()

    def report(self, report: Report) -> None:
        for row, what in _ROWS.items():
            lag, cpu = self.lag[row], self.cpu[row]
            if not lag:
                continue
            made = Row(
                f"{row}: {what}",
                ">= 5 times less lag than gsyncd, less processor time",
                [*lag.values(), *cpu.values()],
            )
            made.verdict = "; ".join(
                f"{name}: {_times(lag, name)} the lag, {_times(cpu, name)} the processor time"
                for name in lag
                if name.startswith("seamark")
            )
            report.add(made)


def _times(found: dict[str, Series], name: str) -> str:
    """The best of gsyncd's methods over ours, by medians."""
    peers = [series.median for peer, series in found.items() if peer.startswith("gsyncd")]
    return f"1/{min(peers) / found[name].median:.1f} of gsyncd's of" if peers else "?"


def present(side: Side, sizes: dict[str, int]) -> Checks:
    return [partial(_is_present, f"{side.copy}/{path}", size) for path, size in sizes.items()]


def _is_present(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False


def _is_absent(path: Path) -> bool:
    return not os.path.lexists(path)


def _has_names(path: Path, count: int) -> bool:
    try:
        return len(os.listdir(path)) == count
    except OSError:
        return False


def _holds(path: Path, at: int, content: bytes) -> bool:
    with open(path, "rb", buffering=0) as file:
        file.seek(at)
        return file.read(len(content)) == content


def _wait(checks: Checks) -> None:
    until = time.monotonic() + _PATIENCE_S
    for check in checks:
        while not check():
            assert time.monotonic() < until, f"not within {_PATIENCE_S} s"
            time.sleep(_STEP_S)


def small_files(root: Path, name: str, files: int, directories: int, seed: int = 1) -> dict[str, int]:
    """Files of 1 to 4 KiB of noise below root/name, and their sizes by path."""
    draw = random.Random(seed)
    noise = draw.randbytes(1 << 20)
    per = files // directories
    made = {}
    os.mkdir(root / name)
    for number in range(files):
        directory = f"{name}/d{number // per:05}"
        if number % per == 0:
            os.mkdir(root / directory)
        at, size = draw.randrange(1 << 19), draw.randint(1024, 4096)
        path = f"{directory}/file-{number:07}"
        fd = os.open(root / path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
        os.write(fd, noise[at : at + size])
        os.close(fd)
        made[path] = size
    return made


def main() -> None:
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--files", type=int, default=20_000, help="of the row hybrid")
    parser.add_argument(
        "--gsyncd-rsync", metavar="PATH", help="an rsync before 3.5 (default: Debian's older one)"
    )
    sides = ("gsyncd", "volume", "mount", "directory", "cp")
    parser.add_argument(
        "--side",
        action="append",
        choices=sides,
        help="only this side; may be given more than once (default: all but mount and cp)",
    )
    options = parser.parse_args()
    chosen = options.side or [side for side in sides if side not in ("mount", "cp")]
    if outside():
        rsync = rsync_for_gsyncd(options.gsyncd_rsync) if "gsyncd" in chosen else ""
        with tempfile.TemporaryDirectory(prefix="seamark-gluster-", dir=options.base) as base:
            raise SystemExit(run_inside("--gsyncd-rsync", rsync, "--base", base))
    base = Path(options.base)
    other, report = Cpu("other"), Report(options.json)
    bench = Bench(options.only, options.runs, options.files)
    try:
        gsyncd, seamark = Cpu("gsyncd"), {name: Cpu(f"seamark-{name}") for name in sides[1:]}
        with GlusterLab(base).running(gsyncd) as lab:
            began: list[Side] = []
            if "cp" in chosen:
                began.append(CopySide(lab, seamark["cp"], other))
            for name in sides[1:-1]:
                if name in chosen:
                    with seamark[name]:
                        ssh = Lab(str(base))
                    began.append(SeamarkSide(lab, ssh, seamark[name], other, name))
            by_tar = None
            if "gsyncd" in chosen:
                began.insert(0, peer := GsyncdSide(lab, gsyncd, other, options.gsyncd_rsync))
                by_tar = GsyncdByTar(peer)
            bench.run(began, by_tar)
    finally:
        bench.report(report)
        report.write()


if __name__ == "__main__":
    main()
