"""`--dry-run`: say what would be done, and touch nothing on either side."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from replication.errors import ExitCode
from replication.remote.answers import SecondaryError
from replication.remote.look import looking
from replication.secondary.filters import Filters
from replication.volume.directory import VanishedError
from replication.volume.identity import ROOT_GFID
from replication.volume.opening import open_volume
from scheduler.preflight import check_not_emptied, in_child, refused
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from replication.remote.client import SecondaryClient
    from replication.session import Session, SessionDir
    from replication.volume.directory import DirectoryVolume

log = logging.getLogger("seamark.dry_run")
_ASK_DIRS = 256


def dry_run(
    place: SessionDir, session: Session, update: Callable[[ProgressSnapshot], None], until: float
) -> int:
    """Compare the whole tree with what the secondary has, and report. Raises SeamarkError.

    ``until``: time.monotonic() at which it is given up.
    """
    found = in_child(lambda: _look(place, session), until)
    if found["missing"]:
        log.info("the secondary %s does not exist: it would be created", session.secondary)
    if found["lost"]:
        log.info(
            "the secondary %s has lost its index: all would be compared, and what is right not sent",
            session.secondary,
        )
    elif found["new"]:
        log.info("the secondary %s is new: everything would be sent", session.secondary)
    else:
        check_not_emptied(session, found)
    for path in found["examples"]:
        log.info("differs: %s", path)
    log.info(
        "%d directories and %d names looked at; %d directories differ and would be brought in line; nothing was touched",
        found["directories"], found["names"], found["different"],
    )  # fmt: skip
    update(
        ProgressSnapshot(phase=Phase.FINISHED, crawl=Crawl.HYBRID, scanned=found["names"], state="dry run")
    )
    return ExitCode.OK


def _look(place: SessionDir, session: Session) -> dict[str, Any]:
    try:
        return _compare(place, session)
    except SecondaryError as error:
        raise refused(session, error) from None


def _compare(place: SessionDir, session: Session) -> dict[str, Any]:
    """Walk the primary and compare digests; runs in a child, for ssh's threads."""
    with looking(place, session, dry=True) as (client, hello):
        found: dict[str, Any] = {
            "new": hello["index"] == "new", "lost": hello["index"] == "lost", "entries": hello["entries"], "directories": 0, "names": 0,
            "different": 0, "examples": [], "missing": bool(hello.get("missing")),
        }  # fmt: skip
        volume = open_volume(session)
        filters = Filters(session.filters)
        queue: list[tuple[bytes, bytes]] = [(ROOT_GFID, b"")]
        while queue:
            group = _summaries(volume, queue, found, filters)
            differing = range(len(group)) if found["new"] or found["lost"] else _differing(client, group)
            found["different"] += len(differing)
            for index in list(differing)[: 20 - len(found["examples"])]:
                found["examples"].append(os.fsdecode(group[index][1]) or "/")
    return found


def _differing(client: SecondaryClient, group: list[tuple[bytes, bytes, bytes]]) -> list[int]:
    return client.digests([(gfid, digest) for gfid, _, digest in group])


def _summaries(
    volume: DirectoryVolume, queue: list[tuple[bytes, bytes]], found: dict[str, Any], filters: Filters
) -> list[tuple[bytes, bytes, bytes]]:
    """(gfid, path, digest) of the next directories; their subdirectories join the queue."""
    group: list[tuple[bytes, bytes, bytes]] = []
    while queue and len(group) < _ASK_DIRS:
        gfid, path = queue.pop()
        try:
            fd = volume.open_dir(path, gfid)
        except VanishedError:
            continue
        except OSError as error:
            log.warning("cannot read %s: %s", os.fsdecode(path), error.strerror)
            continue
        try:
            summary = volume.summarise(fd, volume.names(fd, is_root=not path), path, filters)
        finally:
            os.close(fd)
        found["directories"] += 1
        found["names"] += summary.names
        group.append((gfid, path, summary.digest))
        queue += [(sub, os.path.join(path, name)) for sub, name in summary.subdirs]
    return group
