"""The secondary agent is killed at each point at which it writes anything: asked again, the trees are equal."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import pytest

from replication.remote.errors import LinkLost
from tests.judge import assert_same
from tests.killing import kill_at_each, traced
from tests.secondary.primary import Far, Primary

BIG = bytes(range(256)) * 800
SEEN: dict[str, type[Scene]] = {}


class Scene:
    """A primary and its secondary, equal; then ``change`` on the primary, and ``tell`` says so to the agent."""

    whole = True  # a name shows an old or a new content, never a part of one
    theirs: ClassVar[dict[str, bytes]] = {}  # what somebody else put there, and has to be kept aside
    fault = ""  # kills the agent before, by a point of its own: what is traced is the next one
    greeted = True  # False: also its start is traced

    def __init_subclass__(cls):
        SEEN[cls.__name__] = cls

    def __init__(self, base: Path):
        self.a, self.b = base / "a", base / "b"
        self.a.mkdir()
        self.b.mkdir()
        self.primary = Primary(self.a)
        self.far = None
        self.asked = 0
        self.whole_contents = {b""}

    def prepare(self):
        (self.a / "d" / "e").mkdir(parents=True)
        (self.a / "f").write_bytes(b"old")
        (self.a / "g").write_bytes(b"the other")
        (self.a / "d" / "e" / "h").write_bytes(b"deep" * 2000)
        os.link(self.a / "g", self.a / "d" / "g2")
        os.symlink("nowhere", self.a / "s")

    def change(self):
        raise NotImplementedError

    def tell(self):
        raise NotImplementedError

    # ---- words for these

    @property
    def client(self):
        return self.far.client

    def save(self, path="f", content=b"the new one"):
        (self.a / "aside").write_bytes(content)
        os.rename(self.a / "aside", self.a / path)

    def look(self, *paths, purge=True, along=False, **more):
        """Observe these names, whose directories are asked about together."""
        self.asked += 1
        crawl = str(self.asked)
        self.client.begin_crawl(crawl)
        below = {}
        for path in paths:
            directory, name = os.path.split(os.fsencode(path))
            below.setdefault(directory, []).append(name)
        listings = [self.primary.look(directory, names) for directory, names in below.items()]
        listings = [listing for listing in listings if listing is not None]
        content = self.primary.along(listings) if along else ()
        answer = self.client.observe(listings, crawl=crawl, limbo_until=self.asked, content=content, **more)
        assert answer.errors == []
        if purge:
            self.client.purge(self.asked)
        return answer

    def bring(self, *paths, **more):
        """Observe, and send what is wanted."""
        answer = self.look(*paths, **more)
        self.primary.send(self.client, answer)

    def gfid(self, path):
        return self.primary.gfid(os.fsencode(path))

    # ---- the course

    def begin(self):
        self.prepare()
        with Far(self.b) as client:
            self.primary.crawl(client)
            client.sync()
        self.remember()
        self.change()
        self.remember()
        if self.fault:
            self.far = Far(self.b, fault=self.fault)
            with pytest.raises(LinkLost):
                self.tell()
            self.far.close()

    def remember(self):
        for path in self.a.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode):
                self.whole_contents.add(path.read_bytes())

    def killed(self, log, point):
        """Have the agent told under strace; whether it was killed."""
        tracer = None
        try:
            if self.greeted:
                self.far = Far(self.b)
                tracer = traced(self.far.process.pid, log, point)
                tracer.__enter__()
            else:

                def trace(pid):
                    nonlocal tracer
                    tracer = traced(pid, log, point)
                    tracer.__enter__()

                self.far = Far(self.b, before_hello=trace)
            self.tell()
            self.client.ping()
        except LinkLost:
            return True
        finally:
            tracer.__exit__(None, None, None)
            if self.far is not None:
                self.far.close()
        return False

    def judge_now(self):
        if not self.whole:
            return
        for path in self.b.rglob("*"):
            if ".seamark" not in path.parts and stat.S_ISREG(path.lstat().st_mode):
                content = path.read_bytes()
                assert content in self.whole_contents or content in self.theirs.values(), (path, content[:99])

    def judge(self):
        """A new agent: what the index says is so; the same again; and nothing differs, nothing is left."""
        self.far = Far(self.b)
        self.client.begin_crawl("to recover")
        if self.far.hello["index"] == "ok":
            # What is in limbo to be purged may be gone: the purge that comes next looks again.
            assert [line for line in self.client.check() if "in limbo" not in line[1]] == []
        self.tell()
        self.judge_now()
        hello = self.client.hello(session="s", volume="v", epoch=2, create=True)
        rebuilt = hello["index"] == "rebuilding"
        for _ in range(2):  # the second settles the times
            self.asked += 1
            self.primary.crawl(self.client, str(self.asked), stamp=self.asked, rebuilt=rebuilt)
        assert self.client.check() == []
        assert_same(self.a, self.b)
        found = self.client.stat()
        assert (found["limbo"], found["dirty"]) == (0, 0)
        self.client.sync()
        hidden = self.b / ".seamark"
        with sqlite3.connect(hidden / "index.sqlite") as index:
            assert index.execute("SELECT count(*) FROM shadow").fetchone() == (0,)
            assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        index.close()
        assert os.listdir(hidden / "limbo") == []
        left = [name for name in os.listdir(hidden / "staging") if name != "partial"]
        assert [name for name in left if not name.startswith(f"agent.{self.far.process.pid}.")] == []
        kept = [p.read_bytes() for p in (hidden / "displaced").rglob("*") if p.is_file()]
        assert sorted(kept) == sorted(self.theirs.values())
        assert (hidden / "journal").stat().st_size == 0

    def close(self):
        if self.far is not None:
            self.far.close()


class Create(Scene):
    def change(self):
        (self.a / "new" / "below").mkdir(parents=True)
        (self.a / "new" / "n").write_bytes(b"n" * 5000)
        (self.a / "new" / "below" / "m").write_bytes(b"m")
        os.symlink("f", self.a / "new" / "s")
        os.mkfifo(self.a / "new" / "fifo")
        (self.a / "new" / "empty").touch()

    def tell(self):
        self.bring("new", ".")
        self.bring("new/n", "new/s", "new/fifo", "new/below", "new/empty")
        self.bring("new/below/m")


class Along(Create):
    def tell(self):
        self.bring("new", ".", along=True)
        self.bring("new/n", "new/s", "new/fifo", "new/below", "new/empty", along=True)
        self.bring("new/below/m", along=True)


class Rename(Scene):
    def change(self):
        os.rename(self.a / "f", self.a / "d" / "f")
        os.rename(self.a / "d" / "e", self.a / "moved")
        os.rename(self.a / "s", self.a / "moved" / "s")

    def tell(self):
        self.bring("f", "d/f", "d/e", "moved", "s", "moved/s", ".", "d")


class Exchange(Scene):
    def change(self):
        for one, other in (("f", "x"), ("g", "f"), ("x", "g")):
            os.rename(self.a / one, self.a / other)
        (self.a / "two").mkdir()
        os.rename(self.a / "two", self.a / "d" / "two")
        os.rename(self.a / "d" / "e", self.a / "d" / "two" / "e")
        os.rename(self.a / "d", self.a / "dd")

    def tell(self):
        self.bring("f", "g", "x", "d", "dd", "two", "dd/two", "dd/e", "dd/two/e")


class Link(Scene):
    def change(self):
        os.link(self.a / "f", self.a / "d" / "f2")
        os.link(self.a / "f", self.a / "f3")
        os.unlink(self.a / "d" / "g2")

    def tell(self):
        self.bring("f", "d/f2", "f3", "d/g2", "g")


class Unlink(Scene):
    def change(self):
        os.unlink(self.a / "f")
        os.unlink(self.a / "s")
        shutil.rmtree(self.a / "d")

    def tell(self):
        self.bring("f", "s", "d", "g", ".")


class TypeChanges(Scene):
    def change(self):
        os.unlink(self.a / "f")
        (self.a / "f").mkdir()
        (self.a / "f" / "in").write_bytes(b"in")
        shutil.rmtree(self.a / "d")
        (self.a / "d").write_bytes(b"a file now")
        os.unlink(self.a / "s")
        os.mkfifo(self.a / "s")

    def tell(self):
        self.bring("f", "d", "s", "g")
        self.bring("f/in")


class Limbo(Scene):
    """The old names are told first, the new ones in another request: it all waits in between."""

    def change(self):
        (self.a / "to").mkdir()
        os.rename(self.a / "d", self.a / "to" / "d")
        os.rename(self.a / "f", self.a / "to" / "f")

    def tell(self):
        self.bring("f", "d", purge=False)
        self.bring("to", purge=False)
        self.bring("to/d", "to/f")


class Save(Scene):
    """A shadow of the old object stands at the name until the new content is there."""

    def change(self):
        os.rename(self.a / "f", self.a / "f~")
        self.save()
        self.save("g", b"g anew")

    def tell(self):
        answer = self.look("f", "f~", "g", "d/g2")
        self.primary.send(self.client, answer)


class Forsaken(Scene):
    def prepare(self):
        super().prepare()
        (self.a / "other").touch()

    def change(self):
        self.save()
        (self.a / "other").write_bytes(b"in a new place")
        os.rename(self.a / "other", self.a / "elsewhere")

    def tell(self):
        self.bring("f", "aside", "elsewhere", "other")


class Overwrite(Scene):
    """Content of files that are there, of one with two names as well."""

    def change(self):
        (self.a / "f").write_bytes(b"written again")
        (self.a / "g").write_bytes(b"through both")

    def tell(self):
        self.bring("f", "g", "d/g2")


class Stream(Scene):
    def change(self):
        (self.a / "big").write_bytes(BIG)
        (self.a / "f").write_bytes(BIG[::-1])

    def tell(self):
        answer = self.look("big", "f")
        for gfid, _ in answer.need:
            path = next(p for p in (b"big", b"f") if self.primary.gfid(p).hex() == gfid)
            item = self.primary.item(bytes.fromhex(gfid), path)
            begun = self.client.call("file_begin", gfid=gfid, size=item[1], version="v").header
            content = (self.a / os.fsdecode(path)).read_bytes()
            for at in range(begun["offset"], len(content), 50_000):
                self.client.call("file_data", content[at : at + 50_000], gfid=gfid, offset=at)
            ended = self.client.call("file_end", item=item, gfid=gfid).header
            assert ended["errors"] == []
        self.primary.send_metadata(self.client, answer.meta, self.primary.paths())


class Staged(Scene):
    """As rsync and tar do it: a unit in staging, with a basis; in place: through a link of the live file."""

    in_place = False

    def change(self):
        (self.a / "f").write_bytes(b"by another engine")
        (self.a / "g").write_bytes(b"also")
        (self.a / "n").write_bytes(BIG)

    def tell(self):
        answer = self.look("f", "g", "n", "d/g2")
        gfids = [self.gfid(path) for path in ("f", "g", "n")]
        unit = self.client.stage("u-1", gfids, in_place=self.in_place)
        for gfid, path in zip(gfids, ("f", "g", "n"), strict=True):
            there = self.b / unit["path"] / gfid.hex()
            assert there.exists() == (gfid.hex() in unit["in_place"])
            there.write_bytes((self.a / path).read_bytes())
        items = [self.primary.item(g, os.fsencode(p)) for g, p in zip(gfids, ("f", "g", "n"), strict=True)]
        assert self.client.commit("u-1", items) == []
        self.primary.send_metadata(self.client, answer.meta, self.primary.paths())


class StagedInPlace(Staged):
    in_place = True
    whole = False


class Metadata(Scene):
    def change(self):
        os.chmod(self.a / "f", 0o4711)
        os.setxattr(self.a / "f", "user.one", b"1")
        os.setxattr(self.a / "d", "user.two", b"2")
        os.chmod(self.a / "d", 0o2750)
        os.utime(self.a / "g", ns=(10**18 + 1, 10**18 + 2))
        os.utime(self.a / "s", ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(self.a / "d" / "e" / "h", 1234, 5678)

    def tell(self):
        self.bring("f", "d", "g", "s", "d/e/h")
        self.primary.send_metadata(
            self.client, [self.gfid(p).hex() for p in ("f", "d", "g", "d/e/h")], self.primary.paths()
        )


class Compared(Scene):
    """Young content is compared by digest, and is made clean."""

    def change(self):
        (self.a / "f").write_bytes(b"new")
        os.utime(self.a / "g")

    def tell(self):
        answer = self.look("f", "g")
        items = []
        for path in ("f", "g"):
            gfid, item = self.gfid(path), self.primary.item(self.gfid(path), os.fsencode(path))
            content = (self.a / path).read_bytes()
            items.append([gfid.hex(), len(content), blake2b(content, digest_size=32).hexdigest(), item])
        self.client.call("compare", items=items)
        self.primary.send(self.client, answer)


class Crawled(Scene):
    """A whole hybrid crawl, with its end, its sync and the mark."""

    def change(self):
        os.unlink(self.a / "d" / "g2")
        os.rename(self.a / "d" / "e", self.a / "e")
        (self.a / "e" / "k").write_bytes(b"k")

    def tell(self):
        self.asked += 1
        self.primary.crawl(self.client, str(self.asked), stamp=self.asked)
        self.client.sync()
        self.client.call("mark", text='{"stime_ns": 7}')

    def judge(self):
        super().judge()
        assert self.client.hello(session="s", volume="v", epoch=2, create=True)["mark"] == '{"stime_ns": 7}'


class First(Scene):
    """The very first greeting, on a root where nothing is."""

    greeted = False

    def begin(self):
        self.prepare()
        self.remember()

    def change(self):
        pass

    def tell(self):
        self.asked += 1
        self.primary.crawl(self.client, str(self.asked), stamp=self.asked)


class Rebuilt(Scene):
    """The index is lost, and is made anew by a crawl: what is right stays, what is new there is taken in."""

    greeted = False

    def change(self):
        (self.a / "f").write_bytes(b"changed meanwhile")
        (self.a / "d" / "k").write_bytes(b"k")

    def begin(self):
        super().begin()
        for path in (self.b / ".seamark").glob("index*"):
            path.unlink()

    def tell(self):
        self.asked += 1
        self.primary.crawl(self.client, str(self.asked), stamp=self.asked, rebuilt=True)


class Recovered(Save):
    """Killed in a transaction, and killed again while that is mended."""

    greeted = False
    fault = "commit:2"


class RecoveredRename(Rename):
    """What came into a directory that moved as well."""

    greeted = False
    fault = "commit:3"


class RecoveredContent(Overwrite):
    greeted = False
    fault = "commit:3"


class RecoveredTree(Exchange):
    greeted = False
    fault = "commit:3"


class RecoveredNew(Create):
    """All of it at once: a tree that is new, with files that came from elsewhere."""

    greeted = False
    fault = "commit:3"

    def change(self):
        super().change()
        os.rename(self.a / "f", self.a / "new" / "below" / "f")
        os.rename(self.a / "d", self.a / "new" / "below" / "d")

    def tell(self):
        self.bring(
            "new/below/m", "new/below/f", "f", "d", "new/below/d", "new/n", "new/s", "new/fifo", "new/below",
            "new/empty", "new", ".",
        )  # fmt: skip


class Displaced(Scene):
    """What is not ours stands in the way, and in a directory that goes."""

    theirs: ClassVar = {"new": b"theirs", "d/foreign": b"also theirs", "f": b"put over ours"}

    def change(self):
        (self.a / "new").write_bytes(b"ours")
        shutil.rmtree(self.a / "d")
        (self.a / "f").write_bytes(b"ours again")

    def begin(self):
        super().begin()
        for path, content in self.theirs.items():
            (self.b / "aside").write_bytes(content)
            os.rename(self.b / "aside", self.b / path)

    def tell(self):
        self.bring("new", "d", "f", "g")

    def judge(self):
        # What the index says of a place where somebody was at it is not so until it was looked at.
        self.far = Far(self.b)
        self.tell()
        self.far.close()
        super().judge()


class Purged(Scene):
    """What waits in limbo is removed, with all that is in it."""

    def change(self):
        shutil.rmtree(self.a / "d")
        os.unlink(self.a / "f")

    def tell(self):
        self.bring("f", "d", "g", purge=False)
        self.client.purge(self.asked)


def run(make, directory, log, point):
    base = directory()
    scene = make(base)
    try:
        scene.begin()
        killed = scene.killed(log, point)
        assert point is not None or not killed
        scene.judge_now()
        scene.judge()
        return killed
    finally:
        scene.close()
        shutil.rmtree(base, ignore_errors=True)


QUICK = ("Create", "Rename", "TypeChanges", "Save", "Stream", "Staged", "Rebuilt", "RecoveredNew")


@pytest.mark.parametrize(
    ("name", "most"),
    [
        *[pytest.param(name, 3, id=f"{name}-some") for name in QUICK],
        *[
            pytest.param(name, None, id=f"{name}-each", marks=[pytest.mark.slow, pytest.mark.timeout(900)])
            for name in SEEN
        ],
    ],
)
def test_killed_before_a_call(name, most, in_memory, tmp_path):
    def work(log, point):
        return run(SEEN[name], in_memory, log, point)

    kill_at_each(name, work, tmp_path / "calls", most)
