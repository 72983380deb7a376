"""Going back: a promotion to a snapshot. What the root holds now is displaced, and what the snapshot holds takes its place.

First a copy of the snapshot is made beside the tree (its files share their blocks with it, so that takes no room); what cannot be
had is found out then, and nothing has changed. From there on it can only be gone on with, and each step may be done again after a kill:

new/      the copy, complete in itself: made whole, then renamed to this name
out       every name of the root goes to ``displaced``
in        every name of the copy comes to the root
index     the copy's becomes the root's, and says what the root is
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any, Dict, Iterator, List

from replication.secondary import copies, faults, homes, layout, snapshots
from replication.secondary.agent import Agent
from replication.secondary.directories import our_directory
from replication.secondary.displaced import _fresh
from replication.secondary.handles import stat_at
from replication.secondary.mirror import dress
from replication.secondary.protocol import AgentError
from replication.secondary.syscalls import list_directory, rename_new, syncfs

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = b"going-back"
_PLAN = b"plan"
_STAY = frozenset((layout.HIDDEN, b"lost+found"))
# What the index that goes back knows of the root itself, and not of what the root holds.
_OF_THE_ROOT = ("epoch", "holder", "boot", "displaced", "told")


def is_moving(root_fd: int) -> bool:
    """Whether a root is on its way to a snapshot, from where it can only go on."""
    try:
        os.stat(layout.HIDDEN + b"/" + _NEW, dir_fd=root_fd, follow_symlinks=False)
        return True
    except FileNotFoundError:
        return False


def go_back(agent: Agent, name: str, term: int) -> Iterator[int]:
    """Make the root what a snapshot is, once in each term. ``agent`` is open for writing, and alone; its index is another one afterwards, so
    it has to be opened anew. A step for each name. Raises AgentError, OSError, sqlite3.Error.
    """
    hidden_fd = agent.tree.hidden_fd
    with agent.transaction():  # replays the journal, if there is one
        pass
    if _NEW not in list_directory(hidden_fd):
        meta = agent.index.meta
        if (meta.get("gone_back"), meta.get("gone_back_to", name)) == (term, name):
            yield from homes.sweep(hidden_fd)
            return
        yield from _prepare(agent, name, term)
    new_fd = os.open(_NEW, _DIR, dir_fd=hidden_fd)
    try:
        plan = _plan(new_fd)
        if plan["snapshot"] != name:
            raise AgentError("protocol", "it is going back to snapshot {} already".format(plan["snapshot"]))
        if plan["step"] == "out":
            _out(agent, plan)
            syncfs(new_fd)  # the plan may reach the disk before what it is about
            plan["step"] = "in"
            _write(new_fd, plan)
        _in(agent, new_fd, plan)
    finally:
        os.close(new_fd)
    faults.point("gone-back")
    # What is left of the copy is nobody's from here on, and is swept whoever comes next.
    kind_fd = our_directory(hidden_fd, layout.VIEWS)
    os.rename(_NEW, homes.going(), src_dir_fd=hidden_fd, dst_dir_fd=kind_fd)
    os.close(kind_fd)
    yield from homes.sweep(hidden_fd)


def _prepare(agent: Agent, name: str, term: int) -> Iterator[int]:
    """The copy, and the plan of what is to come."""
    _refuse_what_stays(agent.tree.root_fd)
    with snapshots.reading(agent.tree.root_fd, name) as source_fd:
        yield from _prepare_from(agent, name, source_fd, term)


def _prepare_from(agent: Agent, name: str, source_fd: int, term: int) -> Iterator[int]:
    record = snapshots.record_of(agent, name)
    home = homes.Home(agent.tree.hidden_fd, layout.VIEWS)
    try:
        share = bool(copies.method_here(source_fd, agent.staging_fd))
        with copies.Source(source_fd) as source:
            yield from copies.copy(source, home.fd, copies.REFLINK if share else copies.COPY)
        yield from copies.make_complete(os.open(copies.ROOT, _DIR, dir_fd=home.fd))
        displaced = int(agent.index.meta.get("displaced", 0)) + 1
        aside = _fresh(agent.tree.displaced_fd, displaced)
        kept = {key: agent.index.meta.get(key) for key in _OF_THE_ROOT}
        kept.update(
            gone_back=term, gone_back_to=name, displaced=displaced, mark=json.dumps(record.get("mark", {}))
        )
        found = os.fstat(source_fd)
        times = [found.st_atime_ns, found.st_mtime_ns]
        plan = {"snapshot": name, "step": "out", "aside": aside.decode(), "meta": kept, "times": times}
        _write(home.fd, plan)
        syncfs(home.fd)
        faults.point("copied-back")
        rename_new(home.kind_fd, home.name, agent.tree.hidden_fd, _NEW)
    except BaseException:
        for _ in home.throw_away():
            pass
        raise
    finally:
        home.close()


def _refuse_what_stays(root_fd: int) -> None:
    """What nobody can move is said before anything is moved. Raises AgentError."""
    for name in _names(root_fd):
        try:
            found = stat_at(root_fd, name)
        except AttributeError:  # a C library without statx
            return
        if found.mount_root or found.fixed:
            raise AgentError(
                "busy",
                "it cannot be moved aside, as {}; change that, and run it again".format(
                    "something is mounted there" if found.mount_root else "it is immutable or append-only"
                ),
                os.fsdecode(name),
            )


def _plan(new_fd: int) -> Dict[str, Any]:
    with open(os.open(_PLAN, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=new_fd), "rb") as file:
        plan: Dict[str, Any] = json.loads(file.read())
    return plan


def _write(new_fd: int, plan: Dict[str, Any]) -> None:
    """Durably, and never half."""
    aside = _PLAN + b".new"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=new_fd)
    with open(fd, "w") as file:
        file.write(json.dumps(plan))
        file.flush()
        os.fsync(fd)
    os.rename(aside, _PLAN, src_dir_fd=new_fd, dst_dir_fd=new_fd)
    os.fsync(new_fd)


def _names(fd: int) -> List[bytes]:
    return sorted(name for name in list_directory(fd) if name not in _STAY)


def _move(from_fd: int, name: bytes, to_fd: int, new: bytes) -> None:
    """A directory may only be moved by whoever may write to it, but root."""
    found = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
    loosened = stat.S_ISDIR(found.st_mode) and os.geteuid() != 0 and not found.st_mode & stat.S_IWUSR
    if loosened:
        os.chmod(name, stat.S_IMODE(found.st_mode) | stat.S_IWUSR, dir_fd=from_fd)
    rename_new(from_fd, name, to_fd, new)
    if loosened:
        os.chmod(new, stat.S_IMODE(found.st_mode), dir_fd=to_fd)


def _out(agent: Agent, plan: Dict[str, Any]) -> None:
    """What stands in the root, and what waits in limbo, is kept aside."""
    aside_fd = os.open(plan["aside"], _DIR, dir_fd=agent.tree.displaced_fd)
    try:
        for name in _names(agent.tree.root_fd):
            faults.point("out")
            _move(agent.tree.root_fd, name, aside_fd, name)
        for name in list_directory(agent.tree.limbo_fd):
            _move(agent.tree.limbo_fd, name, aside_fd, b".seamark-limbo-" + name)
    finally:
        os.close(aside_fd)


def _bring(agent: Agent, copy_fd: int, name: bytes) -> None:
    """A name of the copy comes to the root. Somebody may have taken it meanwhile: what stands there is displaced as well."""
    while True:
        try:
            _move(copy_fd, name, agent.tree.root_fd, name)
            return
        except FileExistsError:
            aside = _fresh(agent.tree.displaced_fd, int(agent.index.meta.get("displaced", 0)) + 1)
            aside_fd = os.open(aside, _DIR, dir_fd=agent.tree.displaced_fd)
            try:
                _move(agent.tree.root_fd, name, aside_fd, name)
            except FileNotFoundError:
                pass  # gone again
            finally:
                os.close(aside_fd)


def _in(agent: Agent, new_fd: int, plan: Dict[str, Any]) -> None:
    """The copy's names, looks and index become the root's. The agent's index is closed."""
    copy_fd = os.open(copies.ROOT, _DIR, dir_fd=new_fd)
    copied_fd = os.open(layout.HIDDEN, _DIR, dir_fd=copy_fd)
    try:
        for name in _names(copy_fd):
            faults.point("in")
            _bring(agent, copy_fd, name)
        dress(agent.tree.root_fd, copy_fd, os.fstat(copy_fd))
        if layout.INDEX in list_directory(copied_fd):
            _index(copy_fd, os.fstat(agent.tree.root_fd).st_ino, plan["meta"])
            agent.index.close()
            for suffix in (b"-wal", b"-shm"):
                if layout.INDEX + suffix in list_directory(agent.tree.hidden_fd):
                    os.unlink(layout.INDEX + suffix, dir_fd=agent.tree.hidden_fd)
            faults.point("index")
            os.rename(layout.INDEX, layout.INDEX, src_dir_fd=copied_fd, dst_dir_fd=agent.tree.hidden_fd)
        os.utime(agent.tree.root_fd, ns=tuple(plan["times"]))
        syncfs(agent.tree.root_fd)
    finally:
        os.close(copied_fd)
        os.close(copy_fd)


def _index(copy_fd: int, root_ino: int, kept: Dict[str, Any]) -> None:
    """Have the copy's index speak of the root, in one file."""
    copied = copies.opened(os.dup(copy_fd))
    try:
        copied.index.begin()
        for key, value in kept.items():
            copied.index.set_meta(key, value)
        row = copied.index.inode_by_id(layout.ROOT_ID)
        if row is not None:
            row.ino, row.changed = root_ino, True
            copied.index.save([row], [], [])
        copied.index.commit()
    finally:
        copied.close()
