"""A Gluster volume whose bricks are added, removed, replaced, healed or killed while everybody goes on working.

Each time the copy becomes identical by itself, as the users' mount has it, and what somebody did before the mark is on the
secondary whenever the mark moves.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from replication.observation import Change
from replication.transfer.pieces import read_pieces
from replication.volume.gluster import GlusterVolume, VolumeAway
from tests.system.gluster.worked import Worked
from tests.system.trees import many_small_files

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


def test_files_move_to_new_bricks(place):
    with Worked(place, "distribute 2").loaded() as at:
        place.node.add_bricks(place.name, 2, 3)
        at.go_on()
        place.node.rebalance(place.name)


def test_files_move_away_from_bricks_that_are_removed(place):
    """Gluster moves no file that somebody writes to meanwhile, and not every hard link: what is left is lost, at both ends."""
    with Worked(place, "distribute 2").loaded() as at:
        place.node.add_bricks(place.name, 2)
        place.node.rebalance(place.name)
        at.go_on()
        place.node.empty_bricks(place.name, 0)
        with at.stillness():
            place.node.empty_bricks(place.name, 0)
            place.node.remove_bricks(place.name, 0)


def test_a_brick_of_a_replica_is_replaced(place):
    with Worked(place, "replica 2 + arbiter").loaded() as at:
        place.node.replace_brick(place.name, 0, 5)
        at.go_on()
        with at.stillness():
            at.whole()


def test_what_was_healed_is_read_from_the_healed_brick(place):
    """A brick misses what is written, is healed, and then is the only one that has it."""
    with Worked(place, "replica 2 + arbiter").loaded() as at:
        place.node.kill_brick(place.name, 0)
        at.go_on()
        place.node.start_bricks(place.name, 0)
        with at.stillness():
            at.whole()
            place.node.kill_brick(place.name, 1)
        at.go_on()
        place.node.start_bricks(place.name, 1)  # Gluster itself may lack a hard link without it


def test_bricks_of_a_replica_are_killed_in_turn(place):
    with Worked(place, "replica 2 + arbiter").loaded() as at:
        for brick in (0, 1):
            place.node.kill_brick(place.name, brick)
            at.go_on(60)
            place.node.start_bricks(place.name, brick)
            with at.stillness():
                at.whole()


def test_a_volume_is_stopped_and_started(place):
    with Worked(place, "distribute 2").loaded() as at:
        for _ in range(2):
            place.node.ask("volume", "stop", place.name, "force")
            time.sleep(3)
            place.node.ask("volume", "start", place.name)
            at.go_on()


def test_files_that_move_are_seen_all_the_time(place, own):
    """By a session's own mount, and by a listing; a usual mount loses some for a while."""
    users = place.volume(2)
    many_small_files(users / "many", 600, 1)
    for number in range(100):
        (users / "many" / "d0" / f"below{number}").mkdir()
        os.symlink("x", users / "many" / "d0" / f"symlink{number}")
    volume = GlusterVolume(os.fsencode(own()))
    names = sorted(map(os.fsencode, os.listdir(users / "many" / "d0")))
    folder = volume.open_dir_unchecked(b"many/d0")
    gfids = {name: volume.identify(folder, name)[0] for name in names}
    for number in range(30):
        (users / f"sparse{number}").write_bytes(b"begin")
        with open(users / f"sparse{number}", "r+b") as file:
            file.seek(2_000_000)
            file.write(b"middle")
            file.truncate(3_000_000)
    held = [os.open(volume.root + b"/sparse%d" % number, os.O_RDONLY) for number in range(30)]
    over, missed, looks = threading.Event(), [], 0

    def look_once():
        listed = set(volume.names(folder, is_root=False))
        missed.extend(("not listed", name) for name in names if name not in listed)
        for name in names[looks % 7 :: 7]:
            if volume.observe(folder, name, Change.NONE).inode is None:
                missed.append(("not there", name))
            if volume.paths_of(gfids[name]) != [b"many/d0/" + name]:
                missed.append(("not found by its gfid", name))

    def look():
        nonlocal looks
        while not over.is_set():
            with contextlib.suppress(OSError, VolumeAway):  # for a moment, when bricks come
                look_once()
                looks += 1

    looker = threading.Thread(target=look)
    looker.start()
    try:
        place.node.add_bricks(place.name, 2, 3)
        place.node.rebalance(place.name)
        for fd in held:  # what was opened before it moved
            pieces = list(read_pieces(fd, 0, 3_000_000, sparse=True))
            assert [(offset, piece.strip(b"\0")) for offset, piece in pieces] == [
                (0, b"begin"),
                (2_000_000 // 4096 * 4096, b"middle"),
            ]
        place.node.empty_bricks(place.name, 2, 3)
    finally:
        over.set()
        looker.join()
        for fd in [folder, *held]:
            os.close(fd)
        volume.close()
    assert looks and not missed, (looks, len(missed), missed[:10])
