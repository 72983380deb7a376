"""Where directories are by now that a changelog names, or that are to be listed: they may move while it is read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from replication.volume.directory import VanishedError
from replication.volume.identity import ROOT_GFID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replication.changelog.together import Together
    from replication.observer import Observer
    from replication.volume.directory import DirectoryVolume
    from tasks.unit import Unit


class NotFoundError(VanishedError):
    """Neither where it was, nor where the secondary has it, and no handle can be asked."""


def open_parent(work: Unit, segment: Together, parent: bytes) -> tuple[int, bytes]:
    """The directory of a record, wherever it is now: by its path, its handle, or the secondary's index."""
    volume = work.ctx.volume
    hint = segment.dirs.get(parent)
    if parent == ROOT_GFID:
        return volume.open_dir(b"", ROOT_GFID), b""
    if hint is not None:
        if hint.path:
            with suppress(VanishedError):
                return volume.open_dir(hint.path, parent), hint.path
        try:
            return volume.open_dir_by_handle(hint.handle)
        except PermissionError:
            pass
        except OSError as error:
            if volume.keeps_handles:
                raise
            volume.check_answers(error)  # else it may be found by its name all the same
    client = work.ctx.secondary(work.epoch).client
    for path in client.names([parent]).get(parent, []):
        try:
            return volume.open_dir(path, parent), path
        except VanishedError:
            continue
    raise NotFoundError(parent)  # moved, and its new name is observed in a later segment


def believed_at(work: Unit, segment: Together, directory: bytes) -> list[bytes]:
    """Where a directory was; none, where neither the record nor the index knows: then it is listed when its name is seen."""
    path = segment.dirs[directory].path
    if path or directory == ROOT_GFID:
        return [path]
    return work.ctx.secondary(work.epoch).client.names([directory]).get(directory, [])


def where_now(
    work: Unit, observer: Observer, directories: Mapping[bytes, bytes | None]
) -> list[tuple[bytes, bytes]]:
    """Where directories are that are to be listed, and were not found (at that path).

    Of one that the secondary does not know a record will tell, or of what it is in; until that is applied it is among what was
    missed. So is what the secondary has in another place than the primary: if it was something above it that moved, no record leads to it.
    """
    observer.flush()
    observer.collect()
    client = work.ctx.secondary(work.epoch).client
    known = client.whereabouts(directories)
    found = []
    for gfid, tried in directories.items():
        at = known.get(gfid)
        paths = _said_by(work.ctx.volume, gfid)
        path = paths[0] if paths else at.path if at is not None else None
        if paths == []:
            continue
        if path is not None and path != tried:
            found.append((gfid, path))
        elif at is None or not at.listed:
            observer.findings.missed.append((gfid, tried))
    return found


def _said_by(volume: DirectoryVolume, gfid: bytes) -> list[bytes] | None:
    """Where the volume itself says that it is; None where it cannot tell."""
    try:
        return volume.paths_of(gfid)
    except OSError:
        return None
