"""What is known of each brick of a volume, for people: written beside the changelog by who records, read by whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from replication.changelog.brickmembers import Member
from replication.gluster.glusterd import VolumeInfo

_NAME = "bricks.status"
_EVERY_S = 2.0  # while nothing changes, so that its age says something


class BrickRow(msgspec.Struct, frozen=True, kw_only=True):
    """One brick. ``set``: bricks with the same number hold the same files. ``heard``: when its node last said something.

    ``status``: "Active": changes of its set are known from it; "Passive": from another one, whose twin it is;
    "Offline": it has ended, or its node is away; "Faulty": it is there, and cannot be followed. ``followed``: what it records is read.
    """

    node: str
    path: str
    set: int
    status: str
    followed: bool
    reason: str = ""
    heard: float | None = None


class BrickRows(msgspec.Struct, frozen=True, kw_only=True):
    """``time``: seconds since the epoch. ``waits_for``: the brick that holds the mark, and why; empty: none does."""

    time: float
    bricks: list[BrickRow]
    waits_for: str = ""


def rows(
    info: VolumeInfo,
    members: Mapping[str, Member],
    lives: Callable[[Member], bool],
    heard: Callable[[Member], float],
) -> list[BrickRow]:
    """Of all bricks, in the order of the volume's information."""
    found = []
    for number, bricks in enumerate(info.sets):
        mine = [members[str(brick)] for brick in bricks if str(brick) in members]
        able = (each for each in mine if not each.brick.arbiter and each.recording and lives(each))
        active = next((str(each.brick) for each in able), "")
        for brick in bricks:
            member = members.get(str(brick))
            if member is None:
                status, why = "Passive" if active else "Offline", "on another node, and not followed"
            else:
                status, why = _state(member, lives=lives(member), active=active)
            found.append(
                BrickRow(
                    node=brick.host, path=brick.path, set=number, status=status, reason=why,
                    followed=member is not None and member.followed,
                    heard=(heard(member) or None) if member is not None else None,
                )
            )  # fmt: skip
    return found


def _state(member: Member, *, lives: bool, active: str) -> tuple[str, str]:
    if not member.followed:
        return "Offline", member.why
    if member.why:
        return "Faulty", member.why
    if not member.recording:
        return "Faulty", "it records nothing: is changelog.changelog on?"
    if not lives:
        return "Offline", "it has not begun a new changelog for long: its process has ended, or hangs"
    if str(member.brick) == active:
        return "Active", ""
    return "Passive", ""


class BrickStatus:
    """The file, of its writer."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        before = last_rows(directory)
        self._heard = {(row.node, row.path): row.heard for row in before.bricks} if before is not None else {}
        self._last: tuple[list[BrickRow], str] = [], ""
        self._at = 0.0

    def write(self, bricks: list[BrickRow], waits_for: str) -> None:
        """Not synced: it is worth nothing after a crash. That it cannot be written is no reason to stop."""
        bricks = [
            row
            if row.heard is not None
            else msgspec.structs.replace(row, heard=self._heard.get((row.node, row.path)))
            for row in bricks
        ]
        bare = [msgspec.structs.replace(row, heard=None) for row in bricks], waits_for
        if bare == self._last and time.monotonic() < self._at + _EVERY_S:
            return
        self._last, self._at = bare, time.monotonic()
        aside = self._path.with_suffix(".new")
        try:
            said = BrickRows(time=time.time(), bricks=bricks, waits_for=waits_for)
            aside.write_bytes(msgspec.json.encode(said))
            aside.replace(self._path)
        except OSError:
            self._at = 0.0


def last_rows(directory: Path) -> BrickRows | None:
    """What was known last; None where there is nothing that can be read."""
    try:
        return msgspec.json.decode((directory / _NAME).read_bytes(), type=BrickRows)
    except (OSError, msgspec.DecodeError):
        return None
