"""Whose secondary this is: the root, ``.seamark/owner``, the epoch, the state of the index. The op `hello`."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import sqlite3
import time
from typing import Any, Dict, Optional, Tuple, Union

from replication.secondary import layout, mounting, snapshots, sql
from replication.secondary.agent import Agent
from replication.secondary.boot import boot_id
from replication.secondary.damage import is_damaged
from replication.secondary.directories import our_directory
from replication.secondary.filters import Filters
from replication.secondary.homes import sweep_aside
from replication.secondary.index import Index, root_row
from replication.secondary.kept import Copied, check_home, read_settings
from replication.secondary.leftovers import drop_transfers, end_frozen, sweep_staging, sweep_units
from replication.secondary.lineage import kept_lineage, refuse_loop
from replication.secondary.metadata import Powers
from replication.secondary.onlooker import Onlooker, look
from replication.secondary.protocol import VERSION, AgentError
from replication.secondary.syscalls import free_bytes
from replication.secondary.trial import probe, program_version

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORIES = (layout.LIMBO, layout.STAGING, layout.DISPLACED, layout.TEMPORARY)


def life_of(place: Optional[mounting.Place]) -> str:
    """The boot of this host; of a volume with the life of its mount. What was not synced in another one may be lost. Raises OSError."""
    return boot_id() if place is None else "{}.{}".format(boot_id(), mounting.life(place))


def hello(
    root: bytes, request: Dict[str, Any], before: Union[Agent, Onlooker, None]
) -> Tuple[Union[Agent, Onlooker, None], Dict[str, Any]]:
    """Open the secondary for this connection. Raises AgentError, OSError, sqlite3.Error."""
    if request.get("protocol") != VERSION:
        raise AgentError("protocol", "this agent speaks protocol {}".format(VERSION))
    read_only = bool(request.get("read_only"))
    if not os.path.lexists(root):
        _refuse_unmounted(request)
        if request.get("dry") and os.path.isdir(os.path.dirname(root)):
            return None, {"protocol": VERSION, "index": "new", "entries": 0, "missing": True}
    root_fd = open_root(root, bool(request.get("create")))
    owner = read_owner(root_fd)
    if owner is None:
        refuse_loop(root_fd, request.get("lineage"))
        if not _foreign(root_fd):
            _refuse_unmounted(request)
    _check_owner(root_fd, owner, request)
    refuse_loop(root_fd, request.get("lineage"))  # what it is now says more: promoted, or another session's
    answer: Dict[str, Any] = {
        "protocol": VERSION, "boot_id": life_of(mounting.volume_of(root)), "python": platform.python_version(), "uid": os.geteuid(),
        "free_bytes": free_bytes(root_fd), "rsync": program_version("rsync"), "tar": program_version("tar"),
    }  # fmt: skip
    powers = Powers()
    if before is not None:
        before.close()
    if request.get("dry"):
        onlooker, seen = look(root_fd, owner, request)
        return onlooker, {**answer, **seen}
    if read_only and owner is None:
        found = os.statvfs(root_fd)
        if request.get("create") and not found.f_flag & os.ST_RDONLY:
            _may_write(root, root_fd)
        by_user = {"chown": powers.chown, "mknod": powers.mknod, "trusted": powers.trusted}
        answer.update(index="new", entries=0, fs={"writable": not found.f_flag & os.ST_RDONLY, **by_user})
        return None, answer
    agent = open_agent(root_fd, owner, request, powers, read_only)
    entries = agent.index.db.execute(sql.COUNT_ENTRIES).fetchone()[0] if request.get("count", True) else 0
    state = agent.index.meta.get("state", "ok")
    answer.update(
        index="rebuilding" if state == "rebuilding" else "new" if not entries else "ok",
        entries=entries, fs={**probe(agent), "snapshot": snapshots.method(agent) or None}, index_id=agent.index.meta["index_id"], gen=agent.index.meta["gen"],
        mark=agent.index.meta.get("mark"),
    )  # fmt: skip
    answer["epoch"], answer["holder"] = _served(agent.index, owner if read_only else None)
    return agent, answer


def open_root(root: bytes, create: bool) -> int:
    """A descriptor of the root. Raises AgentError when it cannot be one."""
    if not root.startswith(b"/"):
        raise AgentError("protocol", "the root must be an absolute path", os.fsdecode(root))
    real = os.path.realpath(root)
    if layout.HIDDEN in real.split(b"/"):
        raise AgentError("inside", "this lies inside the .seamark of another secondary", os.fsdecode(root))
    try:
        if create and not os.path.lexists(root):
            mounting.make_root(root)
        return mounting.open_root(root, _DIR)
    except FileNotFoundError:
        raise AgentError("not-found", "there is no such directory", os.fsdecode(root)) from None
    except NotADirectoryError:
        raise AgentError("not-found", "not a directory", os.fsdecode(root)) from None


def belongs(root: bytes) -> Dict[str, Any]:
    """Whose secondary this is, and the settings that are kept, for who has lost the session. The op `belongs`. Raises AgentError."""
    root_fd = open_root(root, False)
    try:
        owner = read_owner(root_fd)
        if owner is None:
            return {"owner": None, "settings": None}
        hidden_fd = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
        try:
            return {"owner": owner, "settings": read_settings(hidden_fd)}
        finally:
            os.close(hidden_fd)
    finally:
        os.close(root_fd)


def _may_write(root: bytes, root_fd: int) -> None:
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=root_fd, effective_ids=True):
        raise AgentError("permission", "Permission denied: it may not be written by us", os.fsdecode(root))


def read_owner(root_fd: int) -> Optional[Dict[str, Any]]:
    try:
        hidden = os.open(layout.HIDDEN, _DIR, dir_fd=root_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise AgentError("not-empty", "there is a .seamark that is not ours", ".seamark") from None
        raise
    try:
        fd = os.open(layout.OWNER, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=hidden)
        with open(fd, "rb") as file:
            owner = json.loads(file.read())
        return owner if isinstance(owner, dict) else None
    except (FileNotFoundError, ValueError):
        return None
    finally:
        os.close(hidden)


def _check_owner(root_fd: int, owner: Optional[Dict[str, Any]], request: Dict[str, Any]) -> None:
    if owner is not None:
        if owner.get("session") != request["session"]:
            raise AgentError("owned", "this belongs to session {}".format(owner.get("session")))
        refuse_promoted(owner)
        if not request.get("read_only"):
            _check_fence(owner.get("epoch", 0), owner.get("holder"), request)
        return
    if request.get("adopt"):
        return
    if _foreign(root_fd):
        raise AgentError("not-empty", "the directory is not empty, and not ours: adopt it, or choose another")


def refuse_promoted(found: Optional[Dict[str, Any]]) -> None:
    """A primary is nobody's secondary. Raises AgentError."""
    promoted = (found or {}).get("promoted")
    if promoted is not None:
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(promoted["at_ns"] / 1e9))
        raise AgentError(
            "promoted",
            "it was promoted to a primary on {} (term {}{})".format(
                at, promoted["term"], ", by " + promoted["by"] if promoted["by"] else ""
            ),
        )


def _check_fence(epoch: int, holder: Optional[str], request: Dict[str, Any]) -> None:
    """One holder is served, and its newest epoch. Another one takes over from the epoch that it saw. Raises AgentError."""
    if request["epoch"] < epoch:
        raise AgentError("stale-epoch", "epoch {} has taken over".format(epoch))
    if holder and holder != request.get("holder"):
        if request.get("takes") != epoch or request["epoch"] == epoch:
            raise AgentError("stale-epoch", "{} has taken over, with epoch {}".format(holder, epoch))


def _served(index: Index, owner: Optional[Dict[str, Any]]) -> Tuple[int, Optional[str]]:
    """The epoch that is served, and whose it is. The file goes before the index for a moment while it is taken over."""
    kept = (index.meta.get("epoch", 0), index.meta.get("holder"))
    told = ((owner or {}).get("epoch", 0), (owner or {}).get("holder"))
    return told if told[0] > kept[0] else kept


def _foreign(root_fd: int) -> bool:
    """Whether anything is there that makes a root without an owner somebody else's."""
    # lost+found belongs to the file system, .trashcan to a Gluster volume; .seamark without an owner: we were killed while taking over.
    return bool(set(os.listdir(root_fd)) - {"lost+found", ".trashcan", os.fsdecode(layout.HIDDEN)})


def _refuse_unmounted(request: Dict[str, Any]) -> None:
    """Nothing is there. That is a new secondary, unless this session has filled one: then it is not mounted."""
    if request.get("filled"):
        raise AgentError("unmounted", "nothing is there, where this session filled a secondary before")


def write_owner(hidden_fd: int, owner: Dict[str, Any]) -> None:
    temporary = layout.OWNER + b".%d" % os.getpid()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=hidden_fd)
    try:
        os.write(fd, json.dumps(owner).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, layout.OWNER, src_dir_fd=hidden_fd, dst_dir_fd=hidden_fd)


def open_agent(
    root_fd: int, owner: Optional[Dict[str, Any]], request: Dict[str, Any], powers: Powers, read_only: bool
) -> Agent:  # fmt: skip
    found = os.fstat(root_fd)
    hidden_fd = our_directories(root_fd)
    end_frozen(hidden_fd)
    lock_fd = os.open(layout.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=hidden_fd)
    fcntl.flock(lock_fd, fcntl.LOCK_EX)
    try:
        os.environ["SQLITE_TMPDIR"] = "/proc/self/fd/{}/tmp".format(hidden_fd)
        index = _open_index(hidden_fd, owner, request, found)
        sweep_staging(hidden_fd)
        staging = b"agent.%d.%d" % (os.getpid(), time.time_ns())
        os.mkdir(layout.STAGING + b"/" + staging, 0o700, dir_fd=hidden_fd)
        agent = Agent(root_fd, index, powers, staging)
        agent.epoch = request["epoch"]
        agent.filters = Filters(request.get("filters") or ())
        agent.read_only = read_only
        agent.believes_ns = int(request.get("believes_ns") or 0)
        agent.content_only = bool(request.get("content_only"))
    finally:
        fcntl.flock(lock_fd, fcntl.LOCK_UN)
        os.close(lock_fd)
    sweep_aside(hidden_fd)
    if not read_only:
        with agent.transaction(check_epoch=False):
            _take_over(agent, hidden_fd, owner, request)
    return agent


def our_directories(root_fd: int) -> int:
    """``.seamark`` and what lies in it, made where they are missing; a descriptor of it."""
    found = os.fstat(root_fd)
    hidden_fd = our_directory(root_fd, layout.HIDDEN)
    for name in _DIRECTORIES:
        os.close(our_directory(hidden_fd, name))
    if found.st_mtime_ns != os.fstat(root_fd).st_mtime_ns:
        os.utime(root_fd, ns=(found.st_atime_ns, found.st_mtime_ns))
    return hidden_fd


def _open_index(
    hidden_fd: int, owner: Optional[Dict[str, Any]], request: Dict[str, Any], root: os.stat_result
) -> Index:
    """The index, made anew where it is missing or damaged. The lock is held."""
    path = b"/proc/self/fd/%d/%s" % (hidden_fd, layout.INDEX)
    there = _size(hidden_fd, layout.INDEX) > 0
    other_volume = owner is not None and owner.get("volume") != request["volume"]
    if other_volume and not request.get("adopt"):
        raise AgentError("owned", "this is a copy of another volume; adopt it to go on with this one")
    if other_volume or _size(hidden_fd, layout.DAMAGED) >= 0 or (owner is not None and not there):
        retire_index(hidden_fd)
        there = False
    rebuild = owner is not None or bool(request.get("adopt"))
    try:
        index = _create(path, root, rebuild, hidden_fd)
    except sqlite3.DatabaseError as error:
        if not is_damaged(error, hidden_fd) or not there:
            raise
        retire_index(hidden_fd)
        index = _create(path, root, True, hidden_fd, error.mark if isinstance(error, Copied) else None)
    if owner is None and index.db.execute(sql.ANY_OBJECT).fetchone() is not None:
        # Whose objects it speaks of nobody knows: what is in it would be removed as ours.
        index.close()
        retire_index(hidden_fd)
        index = _create(path, root, True, hidden_fd)
    return index


def _create(
    path: bytes, root: os.stat_result, rebuild: bool, hidden_fd: int, mark: Optional[str] = None
) -> Index:
    index = Index(path)
    index.db.execute("BEGIN IMMEDIATE")
    try:
        # Whether it was there says the content of the file, not the file: who made it may have been killed before.
        made = index.create(root_row(root))
        if index.meta.get("format") != sql.FORMAT:
            raise sqlite3.DatabaseError("the index is of another format")
        check_home(index, hidden_fd)
        if mark is not None:
            index.set_meta("mark", mark)
        if made and rebuild:
            index.set_meta("state", "rebuilding")
            index.db.execute(sql.INDEX_INO)
        index.db.execute("COMMIT")
    except BaseException:
        index.rollback()
        index.close()
        raise
    return index


def _size(dir_fd: int, name: bytes) -> int:
    """In bytes: -1 where there is no such file, 0 also where a power cut took what was never written out."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return -1


def retire_index(hidden_fd: int) -> None:
    """A damaged index is kept for whoever wants to know; the limbo it described becomes displaced."""
    stamp = b".%d" % time.time_ns()
    for suffix in (b"", b"-wal", b"-shm"):
        try:
            os.rename(
                layout.INDEX + suffix,
                b"damaged-index" + stamp + suffix,
                src_dir_fd=hidden_fd,
                dst_dir_fd=hidden_fd,
            )
        except FileNotFoundError:
            pass
    for name in (layout.DAMAGED, layout.JOURNAL):
        try:
            os.unlink(name, dir_fd=hidden_fd)
        except FileNotFoundError:
            pass
    limbo = os.open(layout.LIMBO, _DIR, dir_fd=hidden_fd)
    try:
        if os.listdir(limbo):
            os.rename(
                layout.LIMBO, layout.DISPLACED + b"/limbo" + stamp, src_dir_fd=hidden_fd, dst_dir_fd=hidden_fd
            )
            os.mkdir(layout.LIMBO, 0o700, dir_fd=hidden_fd)
    finally:
        os.close(limbo)


def mark_damaged(agent: Agent) -> None:
    """The index turned out to be damaged: the next hello makes it anew."""
    os.close(os.open(layout.DAMAGED, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=agent.tree.hidden_fd))


def _take_over(
    agent: Agent, hidden_fd: int, owner: Optional[Dict[str, Any]], request: Dict[str, Any]
) -> None:
    index = agent.index
    _check_fence(*_served(index, owner), request)
    if request["epoch"] > index.meta.get("epoch", -1):
        index.set_meta("epoch", request["epoch"])
        index.set_meta("applied", None)
        index.set_meta("current", None)
        index.set_meta("crawl", None)
        if not request.get("promoted"):  # which looks first what was being written in place
            sweep_units(agent)
    if index.meta.get("holder") != request.get("holder"):
        index.set_meta("holder", request.get("holder"))
    _after_boot(agent)
    wanted = {name: request[name] for name in ("session", "volume", "epoch")}
    wanted["holder"] = request.get("holder")
    if lineage := kept_lineage(owner, request):
        wanted["lineage"] = lineage
    # Who replicates to here, for people and for a promotion; only the primary's own node says it.
    wanted["of"] = request.get("of") or (owner or {}).get("of")
    # A primary that was promoted itself: whoever is promoted after it has to be above.
    told = (request.get("of") or {}).get("term", 0)
    wanted["term"] = max((owner or {}).get("term", 0), int(told))
    if request.get("promoted"):
        wanted.update(promoted=request["promoted"], term=request["promoted"]["term"])
    if owner != wanted:
        write_owner(hidden_fd, wanted)


def _after_boot(agent: Agent) -> None:
    """After a reboot, or what is like one to a volume, content that came since the last sync may be gone although the index has it."""
    index = agent.index
    now = life_of(agent.volume)
    before = index.meta.get("boot")
    if before not in (None, now):
        index.db.execute(sql.AFTER_POWER_CUT, (index.meta["gen"],))
        index.db.execute(sql.DIGESTS_AFTER_POWER_CUT)
        drop_transfers(agent.tree.staging_fd, keeps_inodes=agent.gfids is not None)
    if before != now:
        index.set_meta("boot", now)
