"""The recorder on real file systems: whatever happens, a consumer that looks where it is told sees it all."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from replication.changelog.record import Kind
from replication.volume.identity import ROOT_GFID
from tests.changelog.running import Running, running, snapshot, uncovered
from tests.conftest import missing
from tests.filesystems import KINDS, available, filesystem

pytestmark = pytest.mark.root
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """File systems by kind, each made once."""
    base = tmp_path_factory.mktemp("mounts")
    made: dict[str, Path] = {}
    with ExitStack() as stack:

        def get(kind: str) -> Path:
            if kind not in made:
                if why := available(kind):
                    missing(why)
                made[kind] = stack.enter_context(filesystem(kind, base))
            return made[kind]

        yield get


class Volume:
    """A volume on a mounted file system, with a place outside of it on the same one."""

    def __init__(self, mount: Path, name: str) -> None:
        self.base = mount / name
        self.root = self.base / "volume"
        self.outside = self.base / "outside"
        self.store = Path("/nonexistent")
        self.root.mkdir(parents=True)
        self.outside.mkdir()


@pytest.fixture
def volume(mounts: Callable[[str], Path], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    made = Volume(mounts(getattr(request, "param", "ext4")), tmp_path.name)
    made.store = tmp_path / "log"
    yield made
    shutil.rmtree(made.base)


everywhere = pytest.mark.parametrize("volume", KINDS, indirect=True)
both = pytest.mark.parametrize("detector", ["filesystem", "directories"])


def exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


class Vandal:
    """Random operations below a root, and around it."""

    def __init__(self, volume: Volume, seed: int) -> None:
        self.random = random.Random(seed)
        # Not both: what is written under a name outside of the volume is not recorded (docs/formats.md).
        self.links = bool(seed % 2)
        self.volume = volume
        self.log: list[str] = []

    def directory(self) -> Path:
        root = self.volume.outside if not self.links and self.random.random() < 0.1 else self.volume.root
        found = [root, *(Path(path) for path, _, _ in os.walk(root))]
        return self.random.choice(found)

    def name(self) -> Path:
        return self.directory() / self.random.choice("abcdef")

    def some(self, wanted: Callable[[Path], bool]) -> Path:
        for _ in range(20):
            directory = self.directory()
            found = [path for path in directory.iterdir() if wanted(path)]
            if found:
                return self.random.choice(found)
        raise FileNotFoundError

    def file(self) -> Path:
        return self.some(lambda path: path.is_file() and not path.is_symlink())

    def step(self) -> None:
        operation = self.random.choice(
            ["create"] * 4 + ["write"] * 4 + ["sneak"] * 4 + ["mkdir"] * 3 + ["move"] * 7
            + ["link"] * 3 + ["unlink"] * 3 + ["rmdir", "rmtree", "symlink", "chmod", "xattr", "exchange", "churn"]
        )  # fmt: skip
        try:
            getattr(self, "do_" + operation)()
        except (OSError, IndexError):
            operation += " (failed)"
        self.log.append(operation)

    def do_create(self) -> None:
        self.name().write_bytes(self.random.randbytes(self.random.randint(0, 20)))

    def do_write(self) -> None:
        with self.file().open("r+b") as file:
            file.write(self.random.randbytes(3))

    def do_sneak(self) -> None:
        """Content changes, size and mtime do not."""
        path = self.file()
        stat = path.stat()
        path.write_bytes(self.random.randbytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    def do_mkdir(self) -> None:
        self.name().mkdir()

    def do_move(self) -> None:
        self.some(lambda _: True).rename(self.name())

    def do_link(self) -> None:
        if self.links:
            self.name().hardlink_to(self.file())

    def do_unlink(self) -> None:
        self.some(lambda path: not path.is_dir()).unlink()

    def do_rmdir(self) -> None:
        self.some(lambda path: path.is_dir()).rmdir()

    def do_rmtree(self) -> None:
        if self.random.random() < 0.3:
            shutil.rmtree(self.some(lambda path: path.is_dir()))

    def do_symlink(self) -> None:
        self.name().symlink_to(self.random.choice("xyz"))

    def do_chmod(self) -> None:
        self.some(lambda path: not path.is_symlink()).chmod(self.random.choice([0o700, 0o750, 0o755]))

    def do_xattr(self) -> None:
        os.setxattr(self.some(lambda path: not path.is_symlink()), "user.x", self.random.randbytes(2))

    def do_exchange(self) -> None:
        exchange(self.some(lambda _: True), self.some(lambda _: True))

    def do_churn(self) -> None:
        path = self.name()
        for _ in range(3):
            path.write_bytes(b"c")
            path.unlink()
        path.write_bytes(b"last")


@pytest.mark.parametrize("below", ["X", "X/Y"])
@pytest.mark.parametrize("how", ["move", "directory above it", "link", "exchange", "just before it"])
def test_what_leaves_a_directory_that_was_outside_may_be_changed(
    volume: Volume, below: str, how: str
) -> None:
    """It was written to there, with the same size and times; nobody saw that, and it is listed no more where it came back."""
    (volume.root / below).mkdir(parents=True)
    (volume.root / "other").write_bytes(b"other")
    (volume.root / below / "e").mkdir()
    old = volume.root / below / "e" / "f"
    old.write_bytes(b"old")
    another = volume.outside / "another"
    another.mkdir()
    with running(volume.root, volume.store, close_after_ms=20) as agent:
        position, before = agent.barrier(), snapshot(volume.root)
        os.rename(volume.root / "X", volume.outside / "X")
        agent.barrier()
        written = volume.outside / below / "e" / "f"
        stat = written.stat()
        written.write_bytes(b"new")
        os.utime(written, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        agent.barrier()
        if how == "just before it":
            os.rename(another, volume.root / "another")
            os.rename(written, volume.root / "f")
        os.rename(volume.outside / "X", volume.root / "X")
        if how == "move":
            os.rename(old, volume.root / "f")
        elif how == "directory above it":
            os.rename(old.parent, volume.root / "e")
        elif how == "link":
            os.link(old, volume.root / "f")
            old.unlink()
        elif how == "exchange":
            exchange(volume.root / "other", old)
        new, after = agent.barrier(), snapshot(volume.root)
        assert uncovered(before, after, agent.recorded(position, new)) == []


def vandalise(volume: Volume, agent: Running, seed: int, rounds: int, *, contents: bool = True) -> None:
    vandal = Vandal(volume, seed)
    position, before = agent.barrier(), snapshot(volume.root)
    for number in range(rounds):
        vandal.log.clear()
        for _ in range(vandal.random.choice([3, 15, 60])):
            vandal.step()
            if vandal.random.random() < 0.03:
                time.sleep(0.03)
        new, after = agent.barrier(), snapshot(volume.root)
        records = agent.recorded(position, new)
        assert not records.gaps, (seed, number, records.gaps)
        missed = uncovered(before, after, records, contents=contents)
        assert not missed, (seed, number, missed, vandal.log)
        position, before = new, after


@everywhere
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_missed(volume: Volume, seed: int) -> None:
    with running(volume.root, volume.store, close_after_ms=20, detector="filesystem") as agent:
        vandalise(volume, agent, seed, 25)


@pytest.mark.parametrize("volume", ["ext4", "btrfs"], indirect=True)
@pytest.mark.parametrize("seed", [2, 3])
def test_nothing_is_missed_by_marks_on_directories(volume: Volume, seed: int) -> None:
    with running(volume.root, volume.store, close_after_ms=20, detector="directories") as agent:
        # Without privileges nobody says that an inode lost one of several names: its change may have been
        # recorded under that one. The periodic scan finds it.
        vandalise(volume, agent, seed, 25, contents=not seed % 2)


@both
def test_below_the_longest_path_there_is_a_gap(volume: Volume, detector: str) -> None:
    """Anybody can make directories so deep that no path leads there."""
    name = "n" * 200
    with (
        running(volume.root, volume.store, close_after_ms=20, detector=detector) as agent,
        ExitStack() as fds,
    ):
        start, below = agent.barrier(), os.open(volume.root, os.O_RDONLY)
        fds.callback(os.close, below)
        for _ in range(30):
            os.mkdir(name, dir_fd=below)
            below = os.open(name, os.O_RDONLY, dir_fd=below)
            fds.callback(os.close, below)
        made = agent.barrier()
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        (volume.root / "elsewhere").touch()
        end = agent.barrier()
        assert agent.recorded(made, end).names[ROOT_GFID, b"elsewhere"] & Kind.E
        if detector == "filesystem":
            assert agent.recorded(made, end).gaps == ["recorder"]
        else:  # what is too deep is not marked: that it is there was recorded, and cannot be listed
            assert max(map(len, agent.recorded(start, made).paths.values())) > 3700


@pytest.mark.slow
@pytest.mark.timeout(900)  # it takes minutes on a machine that has other things to do
@everywhere
@both
def test_nothing_is_missed_for_long(volume: Volume, detector: str) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    with running(volume.root, volume.store, close_after_ms=20, detector=detector) as agent:
        vandalise(volume, agent, seed, 400, contents=detector == "filesystem")
