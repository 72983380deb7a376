"""The primary changes while it is looked at, and somebody else changes the secondary at any moment: the index stays consistent, and in the end both sides are the same."""

from __future__ import annotations

import contextlib
import os
import random
import shutil

import pytest

from replication.observation import Change, Listing
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from tests.secondary.consistency import assert_consistent
from tests.secondary.disturbing import disturb
from tests.secondary.primary import Far, differences
from tests.secondary.test_machine import Tree

EXAMPLES = int(os.environ.get("SEAMARK_EXAMPLES", "4"))
FIRST = int(os.environ.get("SEAMARK_FIRST", "0"))
_AT_ONCE = "directories moved while they were observed"
_POINTS = ("journal", "step", "linked", "over", "place", "commit", "committed", "purge")


class Moving(Tree):
    """Names are looked at one after the other while they change; looks arrive late, two in one request, listings in parts."""

    kills = False

    def looks(self, gfid, names):
        """Entries of a directory, wherever it is by now; None: it is gone."""
        path = self.primary.paths().get(gfid)
        if path is None:
            return None
        fd = os.open(os.path.join(self.a, path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            entries = []
            for name, change in names.items():
                if self.random.random() < 0.06:
                    self.change()
                entries.append(
                    self.primary.own(fd, gfid) if name == b"." else self.primary.entry(fd, name, change)
                )
            return entries
        finally:
            os.close(fd)

    def look_at(self, gfid, names):
        entries = self.looks(gfid, names)
        return [] if entries is None else [Listing(gfid, entries)]

    def move_one_of(self, gfid, names):
        path, name = self.primary.paths().get(gfid), self.random.choice(list(names))
        if path is not None and name != b".":
            with contextlib.suppress(OSError):
                self.do_rename(os.path.join(path, name), self.some_path())

    def look(self, taken):
        by_parent = {}
        taken = taken + self.random.sample(taken, len(taken) // 4)
        self.random.shuffle(taken)
        for gfid, name, change in taken:
            names = by_parent.setdefault(gfid, {})
            names[name] = max(names.get(name, change), change)
        listings = []
        for gfid, names in by_parent.items():
            listings += self.look_at(gfid, names)
            if self.random.random() < 0.2:  # some of it is looked at twice, and has moved in between
                again = dict(self.random.sample(sorted(names.items()), (len(names) + 1) // 2))
                self.move_one_of(gfid, again)
                listings += self.look_at(gfid, again)
        if self.random.random() < 0.5:
            self.random.shuffle(listings)
        cut = self.random.randrange(len(listings) + 1)
        self.outbox += [part for part in (listings[:cut], listings[cut:]) if part]
        if len(self.outbox) > 1 and self.random.random() < 0.3:
            later = self.outbox.pop()
            self.outbox[-1] = self.outbox[-1] + later

    def observe(self, listings):
        """A complete listing may come in parts, the last of them with other things."""
        (listing, *others) = listings
        if others or not listing.complete or len(listing.entries) < 2 or self.random.random() < 0.5:
            return self.observe_one(listings)
        cut = self.random.randrange(1, len(listing.entries))
        parts = [
            Listing(listing.parent, listing.entries[:cut], True, 0, False),
            Listing(listing.parent, listing.entries[cut:], True, 1, True),
        ]
        if self.random.random() < 0.5:
            self.needs.append(self.observe_one(parts[:1]))
            if self.random.random() < 0.5:
                self.change()
            return self.observe_one(parts[1:])
        return self.observe_one(parts)

    def observe_one(self, listings):
        try:
            return super().observe(listings)
        finally:
            assert_consistent(self.b)

    def send_one(self):
        try:
            super().send_one()
        except SecondaryError as error:
            if not error.message.startswith(_AT_ONCE):
                raise
            for listing in self.outbox.pop(0):
                self.touch_again(listing)

    def touch_again(self, listing):
        self.recorder.touched += [(listing.parent, e.name, Change.UNKNOWN) for e in listing.entries]

    def purge_some(self):
        self.client.purge(self.stamp)
        assert_consistent(self.b)

    # ---- killed

    def survive(self, work):
        for _ in range(100):
            try:
                return work()
            except LinkLost:
                self.restart()
        raise AssertionError("it keeps dying")

    def restart(self):
        self.far.close()
        fault = ""
        if self.kills and self.random.random() < 0.7:
            fault = f"{self.random.choice(_POINTS)}:{self.random.randint(1, 12)}"
        while True:
            try:
                self.far = Far(os.fsdecode(self.b), fault=fault)
                self.client = self.far.client
                self.client.begin_crawl("x")
                return
            except LinkLost:
                self.far.close()
                fault = ""

    # ---- a course

    def step(self):
        kind = self.random.choice(
            ["change", "change", "look", "look", "send", "send", "send", "purge", "restart", "rest"]
        )
        if kind == "change":
            for _ in range(self.random.randint(1, 8)):
                self.change()
        elif kind == "look":
            self.look(self.take(self.random.randint(1, 40)))
        elif kind == "send":
            self.survive(self.send_some)
        elif kind == "purge":
            self.survive(self.purge_some)
        elif kind == "restart":
            self.restart()
        elif self.random.random() < 0.3:
            self.survive(self.rest)

    def run(self, seed):
        self.seed_all(seed)
        try:
            for _ in range(25):
                self.step()
            self.survive(self.rest)
        except BaseException:
            print(f"seed {seed} of {type(self).__name__}")
            raise
        finally:
            self.end()

    def seed_all(self, seed):
        self.random = random.Random(seed)
        for _ in range(12):
            self.change()

    def end(self):
        self.far.process.kill()
        with contextlib.suppress(Exception):
            self.far.close()
        shutil.rmtree(self.base, ignore_errors=True)


class Killed(Moving):
    """The agent dies in between as well."""

    kills = True


class Disturbed(Moving):
    """Somebody else changes the secondary between requests, and in the middle of them."""

    disturbances = 8

    def __init__(self):
        super().__init__()
        self.primary.lenient = True

    def restart(self):
        chance = self.random.choice([0, 0.02, 0.1, 0.3])
        while True:
            self.far.close()
            seed = str(self.random.randrange(1 << 30))
            program = ["-m", "tests.secondary.disturbing", seed, str(chance), str(self.disturbances)]
            try:
                self.far = Far(os.fsdecode(self.b), start=program)
                self.client = self.far.client
                self.client.begin_crawl("x")
                return
            except LinkLost:
                chance = 0

    def step(self):
        if self.random.random() < 0.3:
            disturb(self.b, self.random)
        super().step()

    def survive(self, work):
        """What cannot be done for somebody is at it is asked again."""
        for _ in range(30):
            try:
                return work()
            except SecondaryError as error:
                if error.code == "protocol" or "Error:" in error.message:
                    raise
                assert_consistent(self.b)
            except LinkLost:
                self.restart()
        raise AssertionError("it cannot be done")

    def observe_one(self, listings):
        content = self.primary.along(listings) if self.random.random() < 0.7 else ()
        try:
            answer = self.client.observe(listings, crawl="x", limbo_until=self.stamp, content=content)
        finally:
            assert_consistent(self.b)
        answer.errors.clear()
        return answer

    def fulfil(self):
        while self.needs:
            answer = self.needs[0]
            for directory in self.primary.send(self.client, answer):
                with contextlib.suppress(OSError):
                    listing = self.primary.listing(directory)
                    again = self.observe([listing])
                    if again.unknown:
                        self.unknown(listing.parent, [e.name for e in listing.entries])
                    self.needs.append(again)
            assert_consistent(self.b)
            self.needs.pop(0)

    def rest(self):
        """Nobody disturbs any more, and what differs is mended."""
        self.far.close()
        self.far = Far(os.fsdecode(self.b))
        self.client = self.far.client
        for turn in range(20):
            self.stamp += 1
            self.primary.crawl(self.client, "x", stamp=self.stamp)
            assert_consistent(self.b)
            found = differences(self.a, self.b)
            # What somebody put into limbo is in nobody's way there.
            wrong = [each for each in self.client.check() if each[1] != "in limbo, not in the index"]
            if found == "" and not wrong:
                break
            paths = [os.path.relpath(p, r) for r in (self.a, self.b) for p in everything(r)]
            self.client.call("mend", items=[[os.fsdecode(p), turn > 1] for p in dict.fromkeys(paths)])
            assert_consistent(self.b)
        assert (found, wrong) == ("", []), (found, wrong)
        self.recorder.touched.clear()
        self.outbox.clear()
        self.needs.clear()
        assert self.client.stat()["inodes"] == len(self.primary.paths())
        self.restart()


def everything(root):
    for at, below, files in os.walk(root):
        if at == root and b".seamark" in below:
            below.remove(b".seamark")
        yield from (os.path.join(at, name) for name in sorted(below + files))


@pytest.mark.parametrize("kind", [Moving, Killed, Disturbed])
@pytest.mark.parametrize("seed", range(FIRST, FIRST + EXAMPLES))
def test_whatever_moves_and_whoever_disturbs_the_index_is_consistent(kind, seed):
    kind().run(seed)
