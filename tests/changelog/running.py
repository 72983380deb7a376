"""An agent in a thread, and what its records are judged by."""

from __future__ import annotations

import hashlib
import os
import stat as st
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from replication.agent import Agent, AgentConfig, agent_call
from replication.changelog.index import SegmentInfo, State
from replication.changelog.record import Kind
from replication.changelog.store import ChangelogStore
from replication.volume.identity import ROOT_GFID, identify


@dataclass
class Running:
    config: AgentConfig
    seen: list[SegmentInfo]
    agent: Agent

    def barrier(self) -> int:
        return int(agent_call(self.config.directory, "barrier")["position"])

    def states(self, after: int = 0) -> list[tuple[int, str]]:
        with ChangelogStore(self.config.directory) as store:
            return [(info.number, info.reason or str(info.state)) for info in store.segments(after)]

    def recorded(self, after: int, upto: int) -> Recorded:
        return recorded(self.config.directory, after, upto)


@contextmanager
def running(root: Path, store: Path, **options: object) -> Iterator[Running]:
    """An agent until the end of the ``with``; raises what it raised."""
    config = AgentConfig(root=str(root), directory=str(store), **options)  # type: ignore[arg-type]
    stop, ready = threading.Event(), threading.Event()
    seen: list[SegmentInfo] = []
    failed: list[BaseException] = []
    agent = Agent(config, seen.append)

    def run() -> None:
        try:
            agent.run(stop, lambda _mode: ready.set())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        if not failed:
            yield Running(config, seen, agent)
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


@dataclass
class Recorded:
    names: dict[tuple[bytes, bytes], Kind] = field(default_factory=lambda: defaultdict(lambda: Kind(0)))
    objects: dict[bytes, Kind] = field(default_factory=lambda: defaultdict(lambda: Kind(0)))
    paths: dict[bytes, bytes] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)


def recorded(directory: str, after: int, upto: int) -> Recorded:
    """Everything in the segments beyond ``after``, up to ``upto``."""
    found = Recorded()
    with ChangelogStore(directory) as store:
        for info in store.segments(after):
            if info.number > upto:
                break
            found.segments.append(info.number)
            if info.state is State.GAP:
                found.gaps.append(info.reason)
            segment = store.read(info.number)
            found.paths.update({gfid: hint.path for gfid, hint in segment.dirs.items()})
            for record in segment:
                if record.name is None:
                    assert record.gfid is not None
                    found.objects[record.gfid] |= record.kinds
                else:
                    assert record.parent is not None
                    assert record.parent in segment.dirs
                    found.names[record.parent, record.name] |= record.kinds
    return found


@dataclass(frozen=True)
class Thing:
    gfid: bytes
    mode: int
    owner: tuple[int, int]
    mtime: int
    content: bytes

    @property
    def is_dir(self) -> bool:
        return st.S_ISDIR(self.mode)


State_ = dict[tuple[bytes, bytes], Thing]


def snapshot(root: Path) -> State_:
    """Every name below the root, by the gfid of its directory."""
    found: State_ = {}
    pending = [(os.open(root, os.O_RDONLY), ROOT_GFID)]
    while pending:
        fd, parent = pending.pop()
        for name in map(os.fsencode, os.listdir(fd)):
            gfid, stat = identify(fd, name)
            content = b""
            if st.S_ISDIR(stat.mode):
                pending.append((os.open(name, os.O_RDONLY, dir_fd=fd), gfid))
            elif st.S_ISREG(stat.mode):
                with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                    content = hashlib.blake2b(file.read()).digest()
            elif st.S_ISLNK(stat.mode):
                content = os.fsencode(os.readlink(name, dir_fd=fd))
            found[parent, name] = Thing(gfid, stat.mode, (stat.uid, stat.gid), stat.mtime_ns, content)
        os.close(fd)
    return found


def uncovered(before: State_, after: State_, records: Recorded, *, contents: bool = True) -> list[str]:
    """What a consumer that looks only at what is recorded, and only now, would have missed.

    It looks at the names recorded, lists directories that are new to it, and all below a directory with D.
    ``contents`` False forgives everything about content and metadata.
    """
    known = {ROOT_GFID} | {thing.gfid for thing in before.values()}
    missed: list[str] = []
    kinds_of: dict[bytes, Kind] = defaultdict(lambda: Kind(0))
    for gfid, kinds in records.objects.items():
        kinds_of[gfid] |= kinds
    for place, kinds in records.names.items():
        if place in after:
            kinds_of[after[place].gfid] |= kinds
    rescanned = _below({gfid for gfid, kinds in kinds_of.items() if kinds & Kind.D}, after)
    alive = {thing.gfid for thing in after.values()} | {ROOT_GFID}
    for place in before.keys() | after.keys():
        parent, name = place
        old, new = before.get(place), after.get(place)
        if old == new or parent not in known or parent not in alive or parent in rescanned:
            continue
        kinds = records.names.get(place, Kind(0))
        label = f"{records.paths.get(parent, b'?')!r} {name!r}: {old} -> {new}, recorded {kinds!r}"
        if old is None or new is None or old.gfid != new.gfid:
            if not kinds & Kind.E:
                missed.append("E " + label)
        elif old.content != new.content and not new.is_dir:
            if contents and not kinds_of[new.gfid] & Kind.D:
                missed.append("D " + label)
        elif (old.mode, old.owner) != (new.mode, new.owner) or not new.is_dir:
            if contents and not kinds_of[new.gfid]:
                missed.append("M " + label)
    # Content of what was renamed: known before, and standing at any name now.
    earlier = {thing.gfid: thing for thing in before.values()}
    for place, new in after.items():
        old = earlier.get(new.gfid)
        if old is None or new.is_dir or old.content == new.content or place[0] in rescanned:
            continue
        if contents and not kinds_of[new.gfid] & Kind.D:
            missed.append(f"D of renamed {place[1]!r}")
    return missed


def _below(directories: set[bytes], state: State_) -> set[bytes]:
    children = defaultdict(list)
    for (parent, _), thing in state.items():
        if thing.is_dir:
            children[parent].append(thing.gfid)
    found: set[bytes] = set()
    pending = [
        gfid
        for gfid in directories
        if gfid in children or gfid in {t.gfid for t in state.values() if t.is_dir}
    ]
    while pending:
        gfid = pending.pop()
        if gfid not in found:
            found.add(gfid)
            pending.extend(children[gfid])
    return found
