"""What is shown of each brick, from what its node said last."""

from __future__ import annotations

import msgspec
import pytest

from replication.changelog.brickmembers import RemoteMember
from replication.changelog.brickstatus import BrickStatus, last_rows, rows
from replication.gluster.glusterd import Brick, VolumeInfo

PLACE = ["HTIME.1", 0, 0, [], [0, 0], "boot", [0, 0]]
TOLD = {"place": PLACE, "compared": True, "beat_ms": 100, "recording": True, "unread": "", "uneasy": False}
NAMES = ["gl1:/b1", "gl2:/b1", "gl3:/b1"]


def a_set(*arbiters):
    return tuple(Brick(*name.split(":"), False, number in arbiters) for number, name in enumerate(NAMES))


def members_of(bricks, **told):
    """Each followed, and as its node said: by host, what differs from what a brick at work says."""
    found = {}
    for brick in bricks:
        member = RemoteMember(brick, 0, None)
        member.followed, member.why = True, ""
        member.told({**TOLD, **told.get(brick.host, {})}, 1)
        found[str(brick)] = member
    return found


def shown(bricks, members):
    info = VolumeInfo("v", "id", True, (bricks,), {})
    return rows(
        info, members, lambda each: each.followed and not each.why and each.quiet_s() < 46, lambda _: 5.0
    )


@pytest.mark.parametrize(
    ("arbiters", "told", "expected"),
    [
        ((), {}, ["Active", "Passive", "Passive"]),
        ((0,), {}, ["Passive", "Active", "Passive"]),
        ((), {"gl1": {"beat_ms": 60_000}}, ["Offline", "Active", "Passive"]),
        ((2,), {"gl1": {"beat_ms": -1}, "gl2": {"beat_ms": -1}}, ["Offline", "Offline", "Passive"]),
        ((), {"gl1": {"recording": False}}, ["Faulty", "Active", "Passive"]),
        ((), {"gl2": {"unread": "Input/output error"}}, ["Active", "Faulty", "Passive"]),
    ],
)  # fmt: skip
def test_one_of_a_set_is_active_and_what_is_not_there_says_why(arbiters, told, expected):
    bricks = a_set(*arbiters)
    found = shown(bricks, members_of(bricks, **told))
    assert [(row.node, row.path) for row in found] == [tuple(name.split(":")) for name in NAMES]
    assert [row.status for row in found] == expected
    assert all(bool(row.reason) == (row.status in ("Offline", "Faulty")) for row in found)


def test_a_node_that_went_away_and_one_that_nobody_follows(tmp_path):
    bricks = a_set()
    members = members_of(bricks)
    members["gl1:/b1"].lost("no route")
    del members["gl3:/b1"]
    found = shown(bricks, members)
    assert [row.status for row in found] == ["Offline", "Active", "Passive"]
    assert [row.followed for row in found] == [False, True, False]
    assert found[0].reason == "no route" and "not followed" in found[2].reason
    BrickStatus(tmp_path).write(found, "brick gl1:/b1: no route")
    known = last_rows(tmp_path)
    assert (known.bricks, known.waits_for) == (found, "brick gl1:/b1: no route")
    again = BrickStatus(tmp_path)  # that has not heard of it yet
    again.write([msgspec.structs.replace(row, heard=None) for row in found], "")
    assert last_rows(tmp_path).bricks[0].heard == 5.0
