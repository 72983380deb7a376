"""What a mount shows of a volume that somebody else writes to."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from types import SimpleNamespace

import pytest

from replication.changelog.brickctimes import handle_of
from replication.gluster.mount import GFID, GlusterMount, is_mounted, unmount
from replication.observation import Change
from replication.secondary.inspection import Manner
from replication.secondary.metadata import Powers, set_xattrs
from replication.transfer.item import FileItem
from replication.transfer.staged import Opened, StagedSender
from replication.transfer.stream import StreamSender
from replication.verify.ends import Ends
from replication.volume.directory import VanishedError
from replication.volume.gluster import GlusterVolume, VolumeAway
from replication.volume.mounted import MountedVolume
from replication.volume.since import changed_since

pytestmark = pytest.mark.root


def overwrite(path, content):
    with open(path, "r+b") as file:
        file.write(content)


@pytest.mark.parametrize("size", [5_000, pytest.param(70_000, marks=pytest.mark.slow)])
def test_a_sessions_own_mount_shows_what_is_there_now(place, own, size):
    """Usual ones show names, attributes and content of a second ago; and pages of before, with the times of now."""
    users = place.volume(1)
    (users / "file").write_bytes(bytes(size))
    mount = own()
    for number in range(1, 20):
        content = bytes([number]) * size
        overwrite(users / "file", content)
        assert (mount / "file").read_bytes() == content
        assert os.stat(mount / "file").st_mtime_ns == os.stat(users / "file").st_mtime_ns
        os.setxattr(users / "file", "user.number", content[:1])
        assert os.getxattr(mount / "file", "user.number") == content[:1]
        os.rename(users / "file", users / "other")
        assert os.listdir(mount) == ["other"] and not (mount / "file").exists()
        os.rename(users / "other", users / "file")


@pytest.mark.slow
@pytest.mark.parametrize("size", [5_000, 70_000])
def test_content_that_is_read_elsewhere_is_of_the_state_that_was_observed(place, own, size):
    """Through a usual mount, with all of its caches."""
    users = place.volume(1)
    (users / "file").write_bytes(bytes(size))
    home = GlusterVolume(os.fsencode(own()))
    usual = place.node.mount(place.name, f"{place.name}-usual")
    elsewhere = MountedVolume(os.fsencode(usual), os.stat(usual).st_ino)
    read = 0
    until = time.monotonic() + 20
    while time.monotonic() < until and read < 20:
        content = os.urandom(16) * (size // 16)
        overwrite(users / "file", content)
        time.sleep(0.03)
        inode = home.observe(home.root_fd, b"file", Change.DATA).inode
        for pause in (0.0, 0.3, 0.9):
            time.sleep(pause)
            try:
                fd, _ = elsewhere.open_file(
                    elsewhere.root_fd, b"file", (inode.ino, inode.ctime_ns, inode.size), inode.gfid
                )
            except VanishedError:
                continue  # it is left to the primary's own node
            got = os.read(fd, size + 1)
            os.close(fd)
            assert got[: len(content)] == content
            read += 1
    print(f"{read} times")
    assert read
    home.close()
    elsewhere.close()


def ensured(mount, within_s=20):
    until = time.monotonic() + within_s
    while not mount.ensure():
        assert time.monotonic() < until
        time.sleep(0.1)
    while not is_mounted(mount.where):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_mount_that_somebody_takes_away_is_made_again(place, own, monkeypatch):
    """By another process of the session, at its end: when a session is killed, its mount is there for a moment."""
    (place.volume(1) / "file").write_bytes(b"1")
    where = own()
    first = own.made[0]
    second = GlusterMount(first.address, where)
    second.start()
    for _ in range(30):
        assert not second.ensure()
        time.sleep(0.1)
    first.stop()
    ensured(second)
    assert (where / "file").read_bytes() == b"1"
    monkeypatch.setattr("replication.gluster.mount._PATIENCE_S", 3)
    fd = os.open(where / "file", os.O_RDONLY)  # so its client goes on
    unmount(where)
    ensured(second)
    with contextlib.suppress(OSError):
        os.close(fd)
    assert (where / "file").read_bytes() == b"1"
    second.stop()
    assert not os.path.ismount(where)


def test_attributes_of_glusters_own_are_not_replicated(place, own):
    """While a hard link waits to be moved to another brick, each mount shows where that is."""
    users = place.volume(2)
    (users / "file").write_bytes(b"1")
    os.setxattr(users / "file", "trusted.somebody", b"1")
    (brick,) = [path for path in place.node.disk.glob(f"{place.name}/brick*/file") if path.stat().st_size]
    os.setxattr(brick, "trusted.glusterfs.dht.linkto", f"{place.name}-client-0\0".encode())
    volume = GlusterVolume(os.fsencode(own()))
    path = os.path.join(volume.root, b"file")
    assert "trusted.glusterfs.dht.linkto" in os.listxattr(path)
    assert list(volume.xattrs(path)) == ["trusted.somebody"]
    # Nor does a secondary that is a volume try to remove them: it may not.
    set_xattrs(path, {}, Powers(), tuple(os.listxattr(path)))
    assert "trusted.glusterfs.dht.linkto" in os.listxattr(path)
    assert "trusted.somebody" not in os.listxattr(path)
    volume.close()


def test_an_attribute_that_changes_behind_its_ctime_is_a_change(place, own):
    """Where something was read before a record of that was heeded, and arrives after it."""
    users = place.volume(2)
    (users / "file").write_bytes(b"1")
    volume = GlusterVolume(os.fsencode(own()))
    stat = volume.stat(volume.root_fd, b"file")
    read = volume.xattrs(os.path.join(volume.root, b"file"))
    before = [(b"file", stat.ino, stat.ctime_ns, read)]
    assert changed_since(volume, before) == set()
    os.setxattr(users / "file", "user.colour", b"blue")
    assert volume.stat(volume.root_fd, b"file").ctime_ns == stat.ctime_ns
    assert changed_since(volume, before) == {b"file"}
    assert changed_since(volume, [(b"file", stat.ino, stat.ctime_ns, None)]) == set()
    volume.close()


def test_the_names_of_a_hard_link_are_found(place, own):
    """Asked for all of them, a brick mixes them up where they are not of one length."""
    users = place.volume(2)
    (users / "folder" / "deeper").mkdir(parents=True)
    volume = GlusterVolume(os.fsencode(own()))
    for number in range(20):
        names = {f"{'a' * (1 + number)}", f"folder/{'b' * (40 - number)}:x", f"folder/deeper/{number}"}
        first, *others = sorted(names)
        (users / first).write_bytes(b"1")
        for name in others:
            os.link(users / first, users / name)
        gfid = os.getxattr(users / first, "glusterfs.gfid")
        assert set(volume.paths_of(gfid)) == set(map(os.fsencode, names))
    volume.close()


def test_a_file_whose_brick_is_away_is_not_said_to_be_nowhere(place, own):
    """A failure that concerns it would end, and what was recorded of it be taken for done."""
    users = place.volume(2)
    for number in range(8):
        (users / f"f{number}").write_bytes(b"1")
    gfids = [os.getxattr(users / f"f{number}", "glusterfs.gfid") for number in range(8)]
    volume = GlusterVolume(os.fsencode(own()))
    assert all(volume.paths_of(gfid) for gfid in gfids)
    place.node.kill_brick(place.name, 1)
    place.node.wait_for(lambda: not all(volume._parts()), "the client to notice")
    assert len(os.listdir(volume.root)) < 8  # that is what Gluster shows, without an error
    with pytest.raises(OSError, match="away"):
        volume.names(volume.root_fd, is_root=True)
    brick = place.node.brick(place.name, 1)
    brick.rename(brick.with_name("elsewhere"))  # as one of another node
    there = [gfid for gfid in gfids if os.path.lexists(handle_of(str(place.node.brick(place.name, 0)), gfid))]
    assert all(volume.paths_of(gfid) for gfid in there) and there != gfids
    for gfid in set(gfids).difference(there):
        with pytest.raises(OSError, match="away|not connected"):  # the latter by Gluster, at times
            volume.paths_of(gfid)
    volume.close()
    brick.with_name("elsewhere").rename(brick)
    place.node.start_bricks(place.name, 1)


def test_attributes_of_a_directory_are_not_believed_while_its_brick_is_away(place, own):
    """The client says then, without an error, that it is root's, and that nobody may do anything with it."""
    users = place.volume(2)
    names = [b"d%d" % number for number in range(12)]
    for name in names:
        path = users / os.fsdecode(name)
        path.mkdir(mode=0o750)
        os.chown(path, 1234, 1235)
    (users / "d1").chmod(0)
    volume = GlusterVolume(os.fsencode(own()))

    def seen(name):
        try:
            inode = volume.observe(volume.root_fd, name, Change.NONE).inode
        except OSError:
            return None
        return stat.S_IMODE(inode.mode), inode.uid, inode.gid

    def compared():
        rows = [Ends(volume, None, Manner(), None).row(volume.root_fd, name) for name in names]
        return [(row.mode, row.uid, row.gid) for row in rows if not row.error]

    def told():
        return [found for found in map(seen, names) if found is not None]

    right = [(0 if name == b"d1" else 0o750, 1234, 1235) for name in names]
    assert told() == compared() == right
    for brick in (0, 1):
        place.node.kill_brick(place.name, brick)
        place.node.wait_for(lambda: not all(volume._parts()), "the client to notice")
        modes = {stat.S_IMODE(os.stat(os.path.join(volume.root, name)).st_mode) for name in names[2:]}
        assert modes == {0, 0o750}  # that is what Gluster shows
        assert told() == compared() == []
        place.node.start_bricks(place.name, brick)
        place.node.wait_for(lambda: set(told()) <= set(right) and len(told()) == len(names), "the brick")
        assert told() == compared() == right
    volume.close()


def test_what_it_is_mounted_on_is_not_the_volume(place, own):
    """It is empty, and so would the volume be; nothing of it must be believed until the volume is mounted again."""
    users = place.volume(2)
    (users / "file").write_text("x")
    mount = own()
    volume = GlusterVolume(os.fsencode(mount))
    gfid = os.getxattr(users / "file", GFID)
    unmount(mount)
    with pytest.raises(VolumeAway, match="not mounted at the moment"):
        GlusterVolume(os.fsencode(mount))
    for _ in range(2):
        with pytest.raises(VolumeAway, match="not mounted at the moment"):
            volume.check_in_place()
    assert volume.paths_of(gfid) == [b"file"]  # of the one that it has still
    own.made[0].stop()
    with pytest.raises(OSError, match="not connected"):
        volume.paths_of(gfid)
    own.made[0].start()
    volume.check_in_place()
    assert volume.observe(volume.root_fd, b"file", Change.NONE).inode.gfid == gfid
    assert volume.paths_of(gfid) == [b"file"]
    volume.close()


@pytest.mark.parametrize("way", ["stream", pytest.param("rsync", marks=pytest.mark.slow), "look"])
def test_who_reads_files_of_a_client_that_was_killed_goes_on_with_the_next_one(place, own, way):
    """A process that does nothing else would fail with each file from then on."""
    (place.volume(2) / "file").write_text("x")
    volume = GlusterVolume(os.fsencode(own()))
    inode = volume.observe(volume.root_fd, b"file", Change.NONE).inode
    item = FileItem(inode.gfid, b"file", "data", inode.ino, inode.ctime_ns, 1, 1)

    def read():
        if way == "look":
            return changed_since(volume, [(b"file", inode.ino, inode.ctime_ns, None)]) == set()
        if way == "stream":
            (opened,) = StreamSender(volume, None, compress=False)._open([item])
            return bool(opened)
        return isinstance(StagedSender(volume, None, SimpleNamespace(path=b""))._open(item), Opened)

    assert read()
    own.made[0]._process.kill()
    own.made[0]._process.wait()
    with pytest.raises(VolumeAway):
        read()
    own.made[0].start()
    with pytest.raises(VolumeAway):
        read()
    assert read()
    volume.close()


def test_what_cannot_be_looked_at_may_have_changed(place, own):
    users = place.volume(2)
    names = [b"f%d" % number for number in range(8)]
    for name in names:
        (users / os.fsdecode(name)).write_text("x")
    volume = GlusterVolume(os.fsencode(own()))
    stats = {name: volume.stat(volume.root_fd, name) for name in names}
    before = [(name, stat.ino, stat.ctime_ns, None) for name, stat in stats.items()]
    assert changed_since(volume, [*before, (b"gone", 1, 1, None)]) == set()
    place.node.kill_brick(place.name, 0)
    place.node.wait_for(lambda: not all(volume._parts()), "the client to notice")
    brick = place.node.brick(place.name, 0)
    assert changed_since(volume, before) == {name for name in names if (brick / os.fsdecode(name)).exists()}
    volume.close()
    place.node.start_bricks(place.name, 0)


def test_a_volume_none_of_whose_bricks_answers_is_away_and_not_gone(place, own):
    """Whoever opens it then waits for it, instead of ending the session."""
    place.volume(1)
    mount = os.fsencode(own())
    place.node.kill_brick(place.name, 0)
    with pytest.raises(VolumeAway, match="not connected"):
        GlusterVolume(mount)
    place.node.start_bricks(place.name, 0)
    place.node.wait_for(lambda: opened(mount), "it to be there again")


def opened(mount):
    try:
        GlusterVolume(mount).close()
    except VolumeAway:
        return False
    return True
