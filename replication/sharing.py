"""Sessions of one state directory that replicate the same directory share one changelog, and one agent.

The changelog of a volume lies in ``volumes/<digest of the primary's path>/changelog``; a session that uses it has a symlink
to it as its own ``changelog``, and is thereby one of its *consumers*: nothing is deleted that one of them has not applied,
until the limit. Numbers mean something in one changelog only, so each has an id, which its consumers note.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from replication.changelog import quiet
from replication.errors import SeamarkError
from replication.private import private_dir
from replication.session import Desired, SessionDir
from replication.session_file import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ID = "id"
_UNREAD_S = 5.0  # between segments that nobody waits for: a changelog holds so many, and no more


class Needs(NamedTuple):
    """What the consumers of a changelog need of its agent: the shortest interval, the largest limit that one of them has."""

    close_after_ms: int
    max_bytes: int


def volume_dir(state_dir: Path, primary: str) -> Path:
    """Where the changelog of a primary is, and what belongs to it."""
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(primary)), digest_size=8).hexdigest()
    return state_dir / "volumes" / digest


def volume_of(place: SessionDir) -> Path | None:
    """The volume whose changelog a session uses; None while it uses none."""
    try:
        target = Path(os.readlink(place.changelog))
    except OSError:
        return None
    return place.path.parent.parent / "volumes" / target.parent.name


def primary_of(volume: Path) -> str | None:
    """The directory that is recorded there, as one of its consumers has it; None where none of them can be asked."""
    for place in consumers(volume):
        with contextlib.suppress(SeamarkError):
            primary = place.load_config().primary
            if volume_dir(volume.parent.parent, primary) == volume:
                return primary
    return None


def consumers(volume: Path) -> list[SessionDir]:
    """The sessions that use the changelog of a volume."""
    found = []
    state_dir = volume.parent.parent
    for link in sorted((state_dir / "sessions").glob("*/changelog")):
        with contextlib.suppress(SeamarkError):
            place = SessionDir(state_dir, link.parent.name)
            if volume_of(place) == volume:
                found.append(place)
    return found


def needs(volume: Path) -> Needs | None:
    """What its consumers need; None where none of them can be asked."""
    found = []
    for place in consumers(volume):
        with contextlib.suppress(SeamarkError):  # a damaged session is no trouble of the others
            config, waits = place.load_config(), False
            with contextlib.suppress(SeamarkError):  # it is recorded all the same
                state = place.state()
                waits = state is not None and state.desired is Desired.RECORDING
            interval_s = _UNREAD_S if waits else config.segment_interval
            found.append(Needs(round(interval_s * 1000), int(config.changelog_limit)))
    if not found:
        return None
    return Needs(min(each.close_after_ms for each in found), max(each.max_bytes for each in found))


def join(place: SessionDir, primary: str, lost: Callable[[], None]) -> Path:
    """Have a session use the changelog of its primary; returns the volume. ``lost`` is called, before it is noted, where what
    the session applied was of another one: its positions mean nothing here.

    A changelog that was the session's own becomes the volume's, if that has none. Raises OSError.
    """
    volume = volume_dir(place.path.parent.parent, primary)
    with _alone(volume.parent):
        private_dir(volume)
        store, own = volume / "changelog", place.changelog
        noted = place.path / "changelog.id"
        if own.is_dir() and not own.is_symlink():
            if store.exists():
                shutil.rmtree(own)
            else:
                replace_file(noted, _id_of(own))
                own.rename(store)
        private_dir(store)
        if volume_of(place) != volume:
            _link(own, os.path.join("..", "..", "volumes", volume.name, "changelog"))
        known = noted.read_text(encoding="ascii") if noted.exists() else ""
        if known != _id_of(store):
            lost()
            replace_file(noted, _id_of(store))
    return volume


def leave(place: SessionDir) -> None:
    """The session uses no changelog any more: nothing is kept for it. Raises OSError."""
    if place.changelog.is_symlink():
        place.changelog.unlink()


def unused_volumes(state_dir: Path) -> list[Path]:
    """Those whose changelog no session uses: whoever deleted the last one was killed, or an agent was still at it."""
    return [path for path in (state_dir / "volumes").glob("*/") if not consumers(path)]


def remove_unused(volume: Path) -> bool:
    """Remove the changelog of a volume that no session uses. False: one does, or an agent is still at it. Raises OSError."""
    with _alone(volume.parent):
        if consumers(volume):
            return False
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(volume / "changelog" / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            finally:
                os.close(fd)
        quiet.forget(volume / "changelog")
        shutil.rmtree(volume, ignore_errors=True)
    return True


@contextlib.contextmanager
def _alone(volumes: Path) -> Iterator[None]:
    private_dir(volumes)
    with open(volumes / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _id_of(store: Path) -> str:
    """The id of a changelog, made where it has none yet."""
    path = store / _ID
    if not path.exists():
        replace_file(path, uuid.uuid4().hex)
    return path.read_text(encoding="ascii")


def _link(link: Path, target: str) -> None:
    aside = link.with_name("changelog.new")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
