"""What the primary may hold, and the secondary cannot keep.

The primary is never written to: what it may hold is judged by the type of its file system, and by what
can be read. What the secondary can keep was found by trying (secondary/survey.py).
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

from replication.secondary.survey import filesystem
from scheduler.checks.outcome import Outcome, fail, good, warn
from scheduler.preflight import NO_SNAPSHOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replication.session import Session

# File systems that do not know owners, links and the like, and have coarse times and names without case.
_PLAIN = frozenset({"vfat", "msdos", "exfat"})
_RIGHTS = (
    ("chown", "owners and groups will not be kept: log in there as root to keep them"),
    ("mknod", "device nodes will not be kept: each is a failure; log in there as root to keep them"),
    (
        "trusted",
        "trusted.* attributes and file capabilities will not be kept: log in there as root to keep them",
    ),
)
_FEATURES = (
    ("links", "hard links", "files with several names cannot be replicated: each further name is a failure"),
    ("symlinks", "symbolic links", "they cannot be replicated: each is a failure"),
    ("fifo", "FIFOs and sockets", "they cannot be replicated: each is a failure"),
    ("xattr", "extended attributes", "user.* attributes will not be kept"),
    ("acl", "POSIX ACLs", "ACLs will not be kept"),
    ("holes", "holes", "sparse files will take all of their length there"),
    ("bytes", "names of any bytes", "names that are not UTF-8, or hold control characters, will be failures"),
)


def primary_has(path: str) -> dict[str, Any]:
    """What the primary may hold: as `can` of a survey; its type, and the longest name. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = filesystem(fd).get("type", "")
        plain = kind in _PLAIN
        has: dict[str, Any] = {name: not plain for name, _, _ in _FEATURES}
        has["xattr"] = not plain and _readable(fd, "user.seamark.probe")
        has["acl"] = not plain and _readable(fd, "system.posix_acl_access")
        has.update(case=not plain, time_ns=2_000_000_000 if plain else 1)
        return {"type": kind, "name_max": os.fstatvfs(fd).f_namemax, "can": has}
    finally:
        os.close(fd)


def _readable(fd: int, name: str) -> bool:
    try:
        os.getxattr(fd, name)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def check_rights(facts: dict[str, Any]) -> Iterator[Outcome]:
    """What the far user may do."""
    can = facts.get("can")
    if can is None:
        advice = "give that user the directory, or mount it writable"
        if facts.get("volume_id"):
            advice = (
                "gluster volume set VOLUME features.read-only off (gsyncd's 'create' sets it on a secondary)"
            )
        yield fail("rights", f"{facts['user']} cannot write there: {facts.get('refused')}; {advice}")
        return
    lacking = [words for name, words in _RIGHTS if not can[name]]
    for words in lacking:
        yield warn("rights", f"{facts['user']} may write there, but {words}")
    if not lacking:
        yield good(
            "rights", f"{facts['user']} may write there, and set owners, devices and trusted attributes"
        )


def check_programs(session: Session, facts: dict[str, Any]) -> Iterator[Outcome]:
    """rsync and tar: needed on both sides by the sessions that insist on them."""
    for name in ("rsync", "tar"):
        missing = [
            side
            for side, there in (("here", shutil.which(name)), ("on the secondary", facts[name]))
            if not there
        ]
        if not missing:
            yield good(name, facts[name])
        elif session.sync_method == name:
            where = " and ".join(missing)
            yield fail(name, f"not installed {where}; install it, or use sync_method auto")
        elif name == "rsync" and session.sync_method == "auto":
            yield warn(
                name, f"not installed {' and '.join(missing)}: large files that changed are sent whole"
            )


def check_snapshots(session: Session, facts: dict[str, Any]) -> Iterator[Outcome]:
    """Whether a session that wants snapshots of its secondary can have them."""
    can = facts.get("can")
    if not session.checkpoint_snapshot or can is None:
        return
    if can["reflink"]:
        yield good("snapshots", f"{facts['fs'].get('type', '?')}: copies take neither time nor room")
    else:
        yield fail("snapshots", f"secondary {session.secondary}: {NO_SNAPSHOTS}")


def check_features(has: dict[str, Any], facts: dict[str, Any]) -> Iterator[Outcome]:
    """File system features at both ends."""
    can = facts.get("can")
    if can is None:
        return
    where = f"{has['type'] or '?'} → {facts['fs'].get('type', '?')}"
    quiet = True
    for name, what, consequence in _FEATURES:
        if has["can"][name] and not can[name]:
            quiet = False
            yield warn("file system", f"{where}: the secondary has no {what}: {consequence}")
    if can["time_ns"] > has["can"]["time_ns"]:
        quiet = False
        yield warn(
            "file system", f"{where}: the secondary keeps times in steps of {can['time_ns'] / 1e9:g} s only"
        )
    if facts["name_max"] < has["name_max"]:
        quiet = False
        said = f"names longer than {facts['name_max']} bytes cannot be replicated: each is a failure"
        yield warn("file system", f"{where}: {said}")
    if has["can"]["case"] and not can["case"]:
        quiet = False
        yield fail(
            "file system",
            f"{where}: the secondary does not tell upper from lower case, so names that differ by case only "
            "would be one file there; use another file system",
        )
    if quiet:
        words = ", ".join(what for name, what, _ in _FEATURES if can[name])
        spare = "" if can["tmpfile"] else " (no O_TMPFILE: not needed)"
        yield good("file system", f"{where}: {words}, times to {can['time_ns']} ns{spare}")
