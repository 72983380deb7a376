"""What a brick says of an object is what a mount of its volume says of it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat as stat_bits
import subprocess
import threading
import time
from contextlib import closing

import pytest

from replication.gluster.glusterd import volume_file, volume_info
from replication.gluster.single import note, noted
from replication.observation import Change
from replication.volume.brick import BrickVolume
from replication.volume.content import read_observed
from replication.volume.directory import VanishedError
from replication.volume.gluster import GlusterVolume, VolumeAway
from replication.volume.identity import ROOT_GFID
from replication.volume.since import changed_since

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

NAMES = [
    b"plain",
    b"sp ace",
    b"new\nline",
    b"\xff\xfe",
    b"col:on",
    b"%20",
    b"x" * 255,
    b".hidden",
    b"tr\rail\t",
]


def found(place, directory):
    file = volume_file(place.name)
    note(directory, volume_info(place.name), file, os.stat(file).st_mtime_ns)
    return noted(directory)


@pytest.fixture
def both(place, own, tmp_path):
    """The volume by its brick and by its mount, below the directory that is asked for."""

    def opened(below=b""):
        mount = os.path.join(os.fsencode(made[0]), below).rstrip(b"/")
        brick = found(place, tmp_path)
        assert brick is not None
        volumes.append(BrickVolume(brick, GlusterVolume(mount)))
        return volumes[-1], volumes[-1].mounted

    volumes = []
    root = place.volume(1)
    made = [own()]
    opened.root = os.fsencode(root)
    yield opened
    for volume in volumes:
        volume.close()


def populate(top):
    """At least one object of every kind; some with several names, long ones, attributes, odd modes and times."""
    draw = random.Random(7)
    for depth in range(4):
        os.makedirs(directory := os.path.join(top, *[b"d%d" % n for n in range(depth + 1)]))
        for name in NAMES:
            with open(os.path.join(directory, name), "wb") as file:
                file.write(draw.randbytes(draw.randrange(1, 9000)))
    d = os.path.join(top, b"d0")
    at = {name: os.path.join(d, name) for name in NAMES}
    os.link(at[b"plain"], os.path.join(top, b"linked"))
    os.link(at[b"plain"], os.path.join(d, b"d1", b"lin:ked"))
    os.symlink(b"nowhere", os.path.join(d, b"dangling"))
    os.symlink(b"d1", os.path.join(d, b"to-directory"))
    os.symlink(b"../../00/00/00000000-0000-0000-0000-000000000001/x", os.path.join(d, b"like-a-handle"))
    os.mkfifo(os.path.join(d, b"fifo"))
    os.mknod(os.path.join(d, b"device"), 0o20644, os.makedev(1, 3))
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        os.chdir(d)
        listening.bind(b"socket")
        os.chdir("/")
    open(os.path.join(d, b"empty"), "w").close()
    with open(os.path.join(d, b"sparse"), "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.chown(at[b"sp ace"], 4711, 815)
    os.chmod(at[b"%20"], 0o4711)
    os.chmod(at[b".hidden"], 0o1644)  # as a file that a rebalance moves
    os.chmod(at[b"col:on"], 0o1000)
    os.chmod(os.path.join(d, b"d1"), 0o3775)
    os.utime(at[b"\xff\xfe"], ns=(123456789, -5_000_000_000 + 10**19 // 10))
    os.utime(os.path.join(d, b"dangling"), ns=(1, 2), follow_symlinks=False)
    os.setxattr(at[b"plain"], "user.one", b"\0\xff")
    os.setxattr(at[b"plain"], "trusted.two", b"x" * 3000)
    os.setxattr(os.path.join(d, b"d1"), "user.of-a-directory", b"")
    os.setxattr(os.path.join(d, b"dangling"), "trusted.of-a-symlink", b"y", follow_symlinks=False)
    for words in (["-m", "u:99:r,g:98:rw", at[b"sp ace"]], ["-d", "-m", "u:97:rwx", os.path.join(d, b"d1")]):
        subprocess.run(["setfacl", *words], check=True)


def everything(volume):
    """All names below the root: (path, descriptor of the directory, name)."""
    pending = [b""]
    while pending:
        path = pending.pop()
        fd = volume.open_dir_unchecked(path)
        try:
            for name in volume.names(fd, is_root=not path):
                yield os.path.join(path, name), fd, name
                entry = volume.observe(fd, name, Change.UNKNOWN)
                if entry.inode.is_dir:
                    pending.append(os.path.join(path, name))
        finally:
            os.close(fd)


def description(volume):
    """Whatever anybody asks of a volume, of all that is in it."""
    seen = {}
    for path, fd, name in everything(volume):
        entry = volume.observe(fd, name, Change.UNKNOWN)
        gfid, stat = volume.identify(fd, name)
        content = None
        if entry.inode.is_file:
            file, opened = volume.open_file(fd, name, (stat.ino, stat.ctime_ns, stat.size), gfid)
            content = os.read(file, 1 << 22), volume.xattrs(file), opened.ctime_ns, volume.stat(file).size
            os.close(file)
        seen[path] = (
            entry, stat._replace(dev=0, btime_ns=0, blocks=0), volume.xattrs(b"/proc/self/fd/%d/%s" % (fd, name)),
            content, read_observed(volume, fd, entry), where(volume, gfid, entry.inode.is_dir),
        )  # fmt: skip
        if entry.inode.is_dir:
            below = volume.open_dir(path, gfid)
            summary = volume.summarise(below, volume.names(below, is_root=False), path)
            os.close(below)
            seen[path] += (summary, changed_since(volume, [(path, stat.ino, 1, None)]))
    return seen


def where(volume, gfid, is_dir):
    if not is_dir:
        return sorted(path for path in volume.paths_of(gfid) if volume.is_at(volume.root_fd, path, gfid))
    fd, path = volume.open_dir_by_handle(gfid)
    assert volume.identify_fd(fd)[0] == gfid
    os.close(fd)
    assert volume.paths_of(gfid) == [path]
    return [path]


@pytest.mark.parametrize("below", [b"", b"d0"])
def test_all_that_a_brick_says_is_what_a_mount_says(both, below):
    populate(both.root)
    time.sleep(0.1)
    brick, mount = both(below)
    by_brick, by_mount = description(brick), description(mount)
    assert set(by_brick) == set(by_mount) and len(by_brick) > 40
    same = {}
    for path, (entry, *_) in by_mount.items():
        same.setdefault(entry.inode.gfid, set()).add(path)
    for path, said in by_mount.items():
        assert by_brick[path][:4] == said[:4], path
        entry, _, _, _, carried, names, *more = said
        odd = entry.inode.is_file and entry.inode.mode & stat_bits.S_ISVTX
        assert by_brick[path][4] == (None if odd else carried), path
        # Of a file with several names a mount tells some.
        assert set(names) <= set(by_brick[path][5]) == same[entry.inode.gfid], path
        assert by_brick[path][6:] == tuple(more), path
    assert brick.identify_fd(brick.root_fd)[0] == mount.identify_fd(mount.root_fd)[0]


def test_what_changes_is_seen_at_once(both):
    brick, mount = both()
    names = [b"f%d" % n for n in range(8)]
    draw = random.Random(11)
    for _ in range(150):
        name, other = draw.choice(names), draw.choice(names)
        path = os.path.join(both.root, name)
        action = draw.randrange(7)
        if action == 0 or not os.path.lexists(path):
            with open(path, "ab") as file:
                file.write(draw.randbytes(draw.randrange(3000)))
        elif action == 1:
            os.chmod(path, draw.randrange(0o1000))
        elif action == 2:
            os.utime(path, ns=(draw.randrange(10**18), draw.randrange(10**18)))
        elif action == 3:
            os.rename(path, os.path.join(both.root, other))
        elif action == 4:
            os.unlink(path)
        elif action == 5:
            os.setxattr(path, "user.x", draw.randbytes(5))
        elif name != other and not os.path.lexists(os.path.join(both.root, other)):
            os.link(path, os.path.join(both.root, other))
        for each in (name, other):
            entries = [volume.observe(volume.root_fd, each, Change.UNKNOWN) for volume in (brick, mount)]
            # A ctime may be too young for the first, and old enough for the second.
            plain = [e._replace(inode=e.inode and e.inode._replace(ctime_ns=0)) for e in entries]
            assert plain[0] == plain[1], (action, each)
        assert brick.names(brick.root_fd, is_root=True) == mount.names(mount.root_fd, is_root=True)


def test_what_is_gone_or_elsewhere_is_not_found(both):
    os.mkdir(os.path.join(both.root, b"in"))
    for directory in (b"in", b""):
        with open(os.path.join(both.root, directory, b"file"), "w") as file:
            file.write("x")
    os.mkdir(os.path.join(both.root, b"out"))
    brick, mount = both(b"in")
    out = brick.mounted.identify(os.open(both.root, os.O_RDONLY), b"out")[0]
    outer = mount.identify(os.open(both.root, os.O_RDONLY), b"file")[0]
    inner = brick.identify(brick.root_fd, b"file")[0]
    for volume in (brick, mount):
        assert volume.paths_of(inner) == [b"file"]
        assert volume.paths_of(outer) == volume.paths_of(out) == []
        assert volume.paths_of(bytes(15) + b"\x07") == []
        for gfid in (out, outer, bytes(15) + b"\x07"):
            with pytest.raises(VanishedError):
                volume.open_dir_by_handle(gfid)
        with pytest.raises(VanishedError):
            volume.open_dir(b"nothing", out)
        assert volume.observe(volume.root_fd, b"nothing", Change.NONE).inode is None


def test_deeper_than_handles_lead(both):
    path = b"/".join(b"d%d" % n for n in range(60))
    os.makedirs(os.path.join(both.root, path))
    brick, mount = both()
    gfid = mount.identify(mount.root_fd, path)[0]
    fd, there = brick.open_dir_by_handle(gfid)
    os.close(fd)
    assert there == path


def test_a_brick_is_looked_at_only_while_it_is_all_of_the_volume(both, place, tmp_path):
    brick, mount = both()
    assert brick.is_current()
    with_note = GlusterVolume(mount.root, changelog=tmp_path)
    assert not with_note.is_current()
    place.node.add_bricks(place.name, 1)
    assert not brick.is_current()
    assert with_note.is_current()
    for ask in (
        lambda: brick.names(brick.root_fd, is_root=True),
        lambda: brick.observe(brick.root_fd, b"nothing", Change.NONE),
        lambda: brick.paths_of(os.urandom(16)),
        lambda: brick.open_dir_by_handle(os.urandom(16)),
    ):
        with pytest.raises(VolumeAway):
            ask()
    with_note.close()
    assert found(place, tmp_path) is None


def test_where_a_brick_has_not_what_clients_see_it_is_not_looked_at(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", place.node.environment["PATH"])
    place.volume(1)
    for option, usual, others in (
        ("features.shard", "off", ("on", "true", "Enable", "1")),
        ("features.ctime", "on", ("off", "disable", "no")),
    ):
        for value in others:
            place.node.ask("volume", "set", place.name, option, value)
            assert found(place, tmp_path) is None, (option, value)
        place.node.ask("volume", "set", place.name, option, usual)
        assert found(place, tmp_path) is not None
    info = volume_info(place.name)
    checked = info._replace(
        options={**info.options, "features.bitrot": "on"}
    )  # as `gluster volume bitrot` sets it
    note(tmp_path, checked, volume_file(place.name), 0)
    assert noted(tmp_path) is None


def test_the_root_has_its_usual_gfid(both):
    brick, _ = both()
    assert brick.identify_fd(brick.root_fd)[0] == ROOT_GFID


def test_directories_that_are_made_filled_moved_and_replaced(place):
    """A new directory is not listed, as all that comes into it is recorded; unless it came otherwise."""
    root = place.volume(1)
    (root / "in").mkdir()
    (root / "out").mkdir()
    with place.run(below="in") as run:
        run.wait_idle()
        draw = random.Random(3)
        inside, outside = root / "in", root / "out"
        for turn in range(60):
            where = draw.choice((inside, outside))
            name, other = (f"d{draw.randrange(6)}" for _ in range(2))
            (where / name / f"deep{draw.randrange(2)}").mkdir(parents=True, exist_ok=True)
            for number in range(draw.randrange(8)):
                (where / name / f"f{number}").write_text(f"{turn} {number}")
                (where / name / "deep0").mkdir(exist_ok=True)
                (where / name / "deep0" / f"f{number}").write_text(f"{turn} {number}")
            to = draw.choice((inside, outside)) / other
            if draw.random() < 0.6 and to != where / name:
                shutil.rmtree(to, ignore_errors=True)
                os.rename(where / name, to)
            time.sleep(draw.choice((0, 0, 0.05, 0.3)))
        run.wait_same(120)
        assert run.stop() == 0


def test_what_is_below_a_directory_that_is_renamed_is_found_all_the_time(both):
    """A brick takes the handle of a directory away while it renames it."""
    brick, _ = both()
    top = os.fsencode(brick.mounted.root)
    os.makedirs(os.path.join(top, b"one", b"below"))
    with open(os.path.join(top, b"one", b"below", b"file"), "w") as file:
        file.write("content")
    directory, file = (
        os.getxattr(os.path.join(top, b"one", b"below", name), "glusterfs.gfid") for name in (b"", b"file")
    )
    ended = threading.Event()

    def rename():
        names = [os.path.join(top, name) for name in (b"one", b"other")]
        while not ended.is_set():
            os.rename(*names)
            names.reverse()

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert brick.paths_of(file)
            assert brick.paths_of(directory)
            os.close(brick.open_dir_by_handle(directory)[0])
    finally:
        ended.set()
        thread.join()
