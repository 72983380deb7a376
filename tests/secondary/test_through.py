"""Content that is copied into a file that is there."""

from __future__ import annotations

import os
import random

import pytest

from replication.secondary import mounting
from replication.secondary.gfids import set_of_bricks
from replication.secondary.mounting import place_of, volume_of
from replication.secondary.owner import open_root
from replication.secondary.protocol import AgentError
from replication.secondary.staged import Staged
from replication.secondary.through import replace_content

MIB = 1 << 20


@pytest.mark.parametrize("seed", range(20))
def test_a_file_holds_what_another_one_does_holes_and_all(tmp_path, seed):
    draw = random.Random(seed)
    for name in ("source", "target"):
        with open(tmp_path / name, "wb") as file:
            for _ in range(draw.randrange(5)):
                file.seek(draw.randrange(3 * MIB))
                file.write(draw.randbytes(draw.randrange(1, MIB)))
            file.truncate(draw.randrange(4 * MIB))
    before = (tmp_path / "target").stat()
    said = []
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "r+b") as target:
        replace_content(source.fileno(), target.fileno(), lambda: said.append(1))
    after = (tmp_path / "target").stat()
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
    assert after.st_ino == before.st_ino
    assert len(said) >= after.st_blocks * 512 // MIB - 1  # whoever waits for a large one is told of it
    assert after.st_blocks * 512 <= (tmp_path / "source").stat().st_blocks * 512 + 64 * 1024


def test_what_is_mounted_is_in_directories_of_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(mounting, "BASE", os.fsencode(tmp_path / "run" / "seamark" / "gluster"))
    (tmp_path / "run").mkdir()
    before = os.umask(0)
    try:
        mounting._make_private(mounting.BASE + b"/far")
    finally:
        os.umask(before)
    for path in ("seamark", "seamark/gluster", "seamark/gluster/far"):
        assert (tmp_path / "run" / path).stat().st_mode & 0o7777 == 0o700
    (tmp_path / "run" / "seamark").chmod(0o777)
    with pytest.raises(OSError, match="this user alone"):
        mounting._make_private(mounting.BASE + b"/far")


def test_a_path_says_which_volume_it_is_on():
    place = volume_of(place_of("far", "photos", b"a/b"))
    assert (place.host, place.volume, place.below) == ("far", "photos", b"a/b")
    assert volume_of(place_of("far", "photos", b"")).below == b""
    for other in (
        b"/srv",
        b"/run/seamark/gluster",
        b"/run/seamark/gluster/far",
        b"/run/seamark/gluster/far/../x",
    ):
        assert volume_of(other) is None
    assert os.fsencode(place.mount.decode()) == b"/run/seamark/gluster/far/photos"


def test_a_client_that_says_nothing_of_its_bricks_does_not_say_that_none_is_away(tmp_path):
    place = mounting.Place("far", "photos", os.fsencode(tmp_path), b"")
    private = tmp_path / ".meta" / "graphs" / "active" / "photos-dht" / "private"
    private.parent.mkdir(parents=True)
    private.write_text("subvol_cnt = 2\nsubvolume_status[0] = 1\nsubvolume_status[1] = 0\n")
    assert mounting.states(place) == [True, False]
    private.write_text("")
    with pytest.raises(OSError, match="does not say"):
        mounting.states(place)


def test_what_is_aside_is_closed_once_also_where_that_fails(tmp_path):
    """As on a volume, where it says that what was written before is lost."""
    fd = os.open(tmp_path, os.O_RDONLY)
    file = Staged(None, fd, 1, -1, None)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        file.close()
    assert os.open(tmp_path, os.O_RDONLY) == fd
    file.close()
    os.close(fd)


def test_which_set_of_bricks_a_file_is_on_is_said_the_same_whoever_of_it_answers_first():
    one, other = b"<POSIX(/b/1):gl1:/b/1/x>", b"<POSIX(/b/2):gl2:/b/2/x>"
    said = [
        b"(<DISTRIBUTE:v-dht> (<REPLICATE:v-replicate-0> %s %s))\0" % pair
        for pair in [(one, other), (other, one)]
    ]
    assert {set_of_bricks(each) for each in said} == {b"REPLICATE:v-replicate-0"}
    for name in (b"x", b"y"):  # a brick is the same whatever the file is
        assert set_of_bricks(b"(<DISTRIBUTE:v-dht> <POSIX(/b/1):gl1:/b/1/%s>)" % name) == b"gl1:/b/1"
    with pytest.raises(OSError, match="not said"):
        set_of_bricks(b"")


def test_no_symlink_within_a_volume_leads_out_of_it(tmp_path, monkeypatch):
    """Whoever may write to a volume may have put one there, and the agent is root."""
    monkeypatch.setattr(mounting, "BASE", os.fsencode(tmp_path / "run"))
    volume, elsewhere = tmp_path / "run" / "far" / "photos", tmp_path / "elsewhere"
    (volume / "a" / "b").mkdir(parents=True)
    elsewhere.mkdir()
    (volume / "link").symlink_to(elsewhere)
    os.close(open_root(os.fsencode(volume / "a" / "b"), False))
    os.close(open_root(os.fsencode(volume / "a" / "new"), True))
    assert (volume / "a" / "new").is_dir()
    for name, create in (("link", False), ("link/new", True)):
        with pytest.raises(AgentError):
            open_root(os.fsencode(volume / name), create)
    assert not os.listdir(elsewhere)
    (tmp_path / "outside").symlink_to(elsewhere)  # the administrator's own
    os.close(open_root(os.fsencode(tmp_path / "outside"), False))
