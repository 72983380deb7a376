"""Random operations on a real tree, observed in part, late, twice and in any grouping: at rest the trees are equal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import stat
import tempfile
import time

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from replication.observation import Change
from replication.volume.identity import ROOT_GFID
from tests.secondary.primary import FOREVER, Far, Primary, differences
from tests.secondary.watch import Watch

NAMES = [b"a", b"b", b"c", b"d\xff", b"e\n e", b"f" * 255, "ü".encode(), b"-x"]
_libc = ctypes.CDLL(None, use_errno=True)


class Recorder:
    """Which names were touched, by the gfid of their directory: what a changelog would hold."""

    def __init__(self, primary):
        self.primary = primary
        self.touched = []

    def touch(self, path, change=Change.NONE):
        parent = os.path.dirname(path)
        gfid = self.primary.gfid(parent)
        self.touched.append((gfid, os.path.basename(path), change))
        self.touched.append((gfid, b".", Change.NONE))


class Tree(RuleBasedStateMachine):
    complete_listings = False

    def __init__(self):
        super().__init__()
        self.base = tempfile.mkdtemp(
            prefix="seamark-machine-",
            dir=os.environ.get("SEAMARK_TEST_DIR") or ("/dev/shm" if os.path.isdir("/dev/shm") else None),
        )
        self.a, self.b = os.path.join(self.base, "a").encode(), os.path.join(self.base, "b").encode()
        os.mkdir(self.a)
        os.mkdir(self.b)
        self.primary = Primary(self.a)
        self.recorder = Recorder(self.primary)
        self.far = Far(os.fsdecode(self.b))
        self.client = self.far.client
        self.client.begin_crawl("x")
        self.watch = Watch(self.b, self.primary.contents)
        self.outbox = []
        self.needs = []
        self.stamp = 1
        self.carried = 0  # files whose content went along
        self.log = []

    @initialize(seed=st.integers(0, 1 << 30))
    def seed(self, seed):
        self.random = random.Random(seed)
        for _ in range(12):
            self.change()

    # ---- the primary

    def directories(self):
        return [b""] + [
            p for p in self.primary.paths().values() if p and stat.S_ISDIR(os.lstat(self.full(p)).st_mode)
        ]

    def full(self, path):
        return os.path.join(self.a, path)

    def some_path(self):
        """Mostly what is there, sometimes a new name."""
        existing = [p for p in self.primary.paths().values() if p]
        if existing and self.random.random() < 0.6:
            return self.random.choice(existing)
        return os.path.join(self.random.choice(self.directories()), self.random.choice(NAMES))

    def change(self):
        path, other = self.some_path(), self.some_path()
        kind = self.random.choice(
            ["write", "write", "append", "truncate", "mkdir", "mkdir", "rename", "rename", "rename", "exchange", "exchange",
             "link", "unlink", "rmtree", "symlink", "fifo", "chmod", "chown", "utime", "xattr", "swap_type", "save", "save", "save",
             "back_up", "back_up", "write_anew", "links_write", "move_out_and_remove"]
        )  # fmt: skip
        self.log.append((kind, path, other))
        with contextlib.suppress(OSError):
            getattr(self, "do_" + kind)(path, other)

    def touch(self, *paths, change=Change.NONE):
        for path in paths:
            self.recorder.touch(path, change)

    def do_write(self, path, _):
        content = self.random.randbytes(self.random.choice([0, 1, 5, 4096, 9000]))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self.full(path), flags, 0o644), "wb") as f:
            f.write(content)
        self.touch_inode(path, Change.DATA)

    def touch_inode(self, path, change):
        """A changelog names the inode; whoever looks may find it under any of its names."""
        found = os.lstat(self.full(path))
        for directory, _, files in os.walk(self.a):
            for name in files:
                full = os.path.join(directory, name)
                if os.lstat(full).st_ino == found.st_ino:
                    self.touch(os.path.relpath(full, self.a), change=change)
        self.touch(path, change=change)

    def do_append(self, path, _):
        if stat.S_ISREG(os.lstat(self.full(path)).st_mode):
            with open(self.full(path), "ab") as f:
                f.write(b"more")
            self.touch_inode(path, Change.DATA)

    def do_truncate(self, path, _):
        if stat.S_ISREG(os.lstat(self.full(path)).st_mode):
            os.truncate(self.full(path), self.random.choice([0, 3, 5000]))
            self.touch_inode(path, Change.DATA)

    def do_mkdir(self, path, _):
        os.mkdir(self.full(path), self.random.choice([0o755, 0o700, 0o2775, 0o1777]))
        self.touch(path)

    def do_rename(self, path, other):
        os.rename(self.full(path), self.full(other))
        self.moved(path, other)

    def moved(self, path, other):
        """Both names, wherever their directories are now (one may lie below the other's new place)."""
        for p in (path, other):
            with contextlib.suppress(OSError):
                self.touch(p)
        parent = os.path.dirname(path)
        if not os.path.lexists(self.full(parent)):
            raise AssertionError("the directory of a renamed name is gone")

    def do_exchange(self, path, other):
        parents = {p: self.primary.gfid(os.path.dirname(p)) for p in (path, other)}
        if _libc.renameat2(-100, self.full(path), -100, self.full(other), 2) == 0:
            for p, gfid in parents.items():
                self.recorder.touched += [(gfid, os.path.basename(p), Change.NONE), (gfid, b".", Change.NONE)]

    def do_link(self, path, other):
        os.link(self.full(path), self.full(other), follow_symlinks=False)
        self.touch(path, other)

    def do_unlink(self, path, _):
        os.unlink(self.full(path))
        self.touch(path)

    def do_rmtree(self, path, _):
        full = self.full(path)
        if not stat.S_ISDIR(os.lstat(full).st_mode):
            return
        parent = self.primary.gfid(os.path.dirname(path))
        shutil.rmtree(full)
        self.recorder.touched += [(parent, os.path.basename(path), Change.NONE), (parent, b".", Change.NONE)]

    def do_symlink(self, path, other):
        os.symlink(self.random.choice([b"nowhere\xfe", other, b"/etc/passwd", b"x" * 300]), self.full(path))
        self.touch(path)

    def do_fifo(self, path, _):
        os.mkfifo(self.full(path), 0o640)
        self.touch(path)

    def do_chmod(self, path, _):
        if not stat.S_ISLNK(os.lstat(self.full(path)).st_mode):
            os.chmod(self.full(path), self.random.choice([0o644, 0o4755, 0o2711, 0o777, 0o600, 0o1755]))
            self.touch_inode(path, Change.NONE)

    def do_chown(self, path, _):
        if os.geteuid() == 0:
            os.chown(
                self.full(path),
                self.random.choice([0, 1000]),
                self.random.choice([0, 1001]),
                follow_symlinks=False,
            )
            self.touch_inode(path, Change.NONE)

    def do_utime(self, path, _):
        os.utime(
            self.full(path),
            ns=(self.random.randrange(1 << 60), self.random.randrange(1 << 60)),
            follow_symlinks=False,
        )
        self.touch_inode(path, Change.NONE)

    def do_xattr(self, path, _):
        mode = os.lstat(self.full(path)).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            if os.listxattr(self.full(path)):
                os.removexattr(self.full(path), "user.k")
            else:
                os.setxattr(self.full(path), "user.k", self.random.randbytes(4))
            self.touch_inode(path, Change.NONE)

    def do_swap_type(self, path, other):
        full = self.full(path)
        mode = os.lstat(full).st_mode
        if stat.S_ISDIR(mode):
            self.do_rmtree(path, other)
            self.do_write(path, other)
        else:
            os.unlink(full)
            os.mkdir(full)
            self.touch(path)
            self.do_write(os.path.join(path, b"in"), other)

    def do_save(self, path, _):
        """As editors do: write aside, rename over."""
        aside = path[:-1] + b"~" if len(os.path.basename(path)) > 1 else path + b"~"
        self.do_write(aside, b"")
        os.rename(self.full(aside), self.full(path))
        self.touch(aside, path)

    def do_back_up(self, path, other):
        """The old file is kept, by a rename or a link; a new one takes its name."""
        if stat.S_ISREG(os.lstat(self.full(path)).st_mode):
            self.random.choice([self.do_rename, self.do_link])(path, other)
            self.do_save(path, other)

    def do_write_anew(self, path, other):
        os.unlink(self.full(path))
        self.touch(path)
        self.random.choice([self.do_write, self.do_symlink, self.do_fifo])(path, other)

    def do_links_write(self, path, other):
        self.do_link(path, other)
        self.do_append(other, b"")

    def do_move_out_and_remove(self, path, other):
        """A directory moved into another that is then removed."""
        if stat.S_ISDIR(os.lstat(self.full(path)).st_mode) and stat.S_ISDIR(
            os.lstat(self.full(other)).st_mode
        ):
            inside = os.path.join(other, b"moved")
            os.rename(self.full(path), self.full(inside))
            self.touch(path)
            self.do_rmtree(other, b"")

    # ---- the changelog crawl

    def take(self, amount):
        touched = self.recorder.touched
        taken = touched[:amount]
        del touched[:amount]
        return taken

    def look(self, taken):
        """Listings of what is there now, in any order and grouping, some of it twice."""
        if self.random.random() < 0.5:
            time.sleep(0.03)  # a version as young as a clock's tick is none, and its content stays behind
        paths = self.primary.paths()
        taken = taken + self.random.sample(taken, len(taken) // 4)
        self.random.shuffle(taken)
        by_parent = {}
        for gfid, name, change in taken:
            if gfid not in paths:
                continue
            names = by_parent.setdefault(gfid, {})
            names[name] = max(names.get(name, change), change)
            if gfid != ROOT_GFID and self.random.random() < 0.5:
                parent, own = os.path.split(paths[gfid])
                by_parent.setdefault(self.primary.gfid(parent), {}).setdefault(own, Change.NONE)
        listings = []
        for gfid, names in by_parent.items():
            listing = self.primary.look(paths[gfid], list(names))
            if listing is None:
                continue
            changes = [names[e.name] for e in listing.entries]
            listing = type(listing)(
                gfid,
                [
                    type(e)(e.name, e.inode, e.target, c)
                    for e, c in zip(listing.entries, changes, strict=True)
                ],
            )
            listings.append(listing)
            self.wanted_again(gfid, names)
        self.random.shuffle(listings)
        cut = self.random.randrange(len(listings) + 1)
        self.outbox += [part for part in (listings[:cut], listings[cut:]) if part]

    def wanted_again(self, gfid, names):
        self.in_flight = getattr(self, "in_flight", {})
        self.in_flight.setdefault(gfid, {}).update(names)

    def send(self):
        self.send_one()
        if self.random.random() < 0.7:
            self.fulfil()

    def observe(self, listings):
        """With content that goes along, or without."""
        content = self.primary.along(listings) if self.random.random() < 0.7 else ()
        with self.watch.observing(listings):
            answer = self.client.observe(listings, crawl="x", limbo_until=self.stamp, content=content)
        self.carried += answer.content[0]
        return answer

    def send_one(self):
        listings = self.outbox[0]
        answer = self.observe(listings)
        self.outbox.pop(0)
        assert answer.errors == [], answer.errors
        for parent in answer.unknown:
            self.unknown(
                bytes.fromhex(parent),
                [e.name for li in listings if li.parent.hex() == parent for e in li.entries],
            )
        self.needs.append(answer)

    def unknown(self, gfid, names):
        """A parent that the secondary has not: observe the way to it, and these names again."""
        path = self.primary.paths().get(gfid)
        if path is None:
            return
        while path:
            self.recorder.touch(path)
            path = os.path.dirname(path)
        self.recorder.touched += [(gfid, name, Change.UNKNOWN) for name in names]

    def fulfil(self):
        while self.needs:
            answer = self.needs[0]
            with self.watch.sending():
                directories = self.primary.send(self.client, answer)
            for directory in directories:
                try:
                    listing = self.primary.listing(directory)
                except OSError:
                    continue
                again = self.observe([listing])
                if again.unknown:
                    self.unknown(listing.parent, [e.name for e in listing.entries])
                assert again.errors == []
                self.needs.append(again)
            self.needs.pop(0)

    # ---- rules

    @rule(amount=st.integers(1, 8))
    def changes(self, amount):
        for _ in range(amount):
            self.change()

    @rule(amount=st.integers(1, 40))
    def observe_some(self, amount):
        self.look(self.take(amount))

    @rule()
    def send_some(self):
        if self.outbox:
            self.send()

    @rule()
    def restart_agent(self):
        if self.random.random() < 0.3:
            self.restart()

    def restart(self):
        self.far.close()
        self.far = Far(os.fsdecode(self.b))
        self.client = self.far.client
        self.client.begin_crawl("x")

    @rule()
    def rest(self):
        """Observe all that was recorded, and judge."""
        for _ in range(50):
            if self.outbox:
                self.send()
            elif self.recorder.touched:
                self.look(self.take(1000))
            elif self.needs:
                self.fulfil()
            else:
                break
        else:
            raise AssertionError("it does not come to rest")
        paths = self.primary.paths()
        self.primary.send_metadata(self.client, [ROOT_GFID.hex()], paths)
        self.client.purge(self.stamp)
        self.stamp += 1
        found = differences(self.a, self.b)
        assert found == "", found + repr(self.client.check())
        wrong = self.client.check()
        assert wrong == [], wrong
        found = self.client.stat()
        assert (found["limbo"], found["dirty"], found["displaced"]) == (0, 0, 0)
        assert found["inodes"] == len(paths)

    def teardown(self):
        try:
            self.rest()
        finally:
            self.far.close()
            shutil.rmtree(self.base, ignore_errors=True)


assert FOREVER

Machine = Tree.TestCase
Machine.settings = settings(
    max_examples=int(os.environ.get("SEAMARK_EXAMPLES", "12")), stateful_step_count=20,
    suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip
