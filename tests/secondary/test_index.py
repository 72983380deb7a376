"""The index has a row for every name, whatever becomes of directories in the middle of a request."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

import pytest

from replication.observation import Listing
from replication.remote.errors import LinkLost
from tests.secondary.consistency import assert_consistent
from tests.secondary.primary import Far, differences
from tests.secondary.test_shadows import Pair


class Pairs(Pair):
    """Directories `d/e` of files on both sides; ``ask`` looks at many paths in one request."""

    def fill(self):
        (self.a / "d" / "e").mkdir(parents=True)
        (self.a / "d" / "g").write_bytes(b"in d")
        (self.a / "d" / "e" / "h").write_bytes(b"in e")
        (self.a / "d" / "s").symlink_to("nowhere")
        (self.a / "to").mkdir()
        self.complete()

    def ask(self, *paths, stamp=None, **more):
        """Observe these names in this order, in one request, as they are now."""
        listings = [
            self.primary.look(directory, [name])
            for directory, name in map(os.path.split, map(os.fsencode, paths))
        ]
        return self.send([li for li in listings if li is not None], **more)

    def send(self, listings, **more):
        self.crawl += 1
        self.client.begin_crawl(str(self.crawl))
        answer = self.client.observe(listings, crawl=str(self.crawl), limbo_until=self.crawl, **more)
        assert_consistent(self.b)
        return answer

    def heal(self, answer=None):
        """In the end nothing differs; what was foreign may have been displaced."""
        if answer is not None:
            self.primary.send(self.client, answer)
        for _ in range(3):
            self.crawl += 1
            self.primary.crawl(self.client, str(self.crawl), stamp=self.crawl)
            assert_consistent(self.b)
        assert differences(self.a, self.b) == ""
        assert self.client.check() == []


@pytest.fixture
def pair(tmp_path):
    made = Pairs(tmp_path)
    made.fill()
    yield made
    made.far.close()


def take_away(path):
    """Somebody else moves it out of the secondary."""
    shutil.move(path, path.parents[1] / f"taken-{path.name}")


# ---- a directory is found lost while its names are on their way elsewhere


@pytest.mark.parametrize("first", ["d2", "moved"])
def test_a_lost_directory_is_renamed_and_its_names_leave_it(pair, first):
    take_away(pair.b / "d")
    for name in ("g", "s", "e"):
        os.rename(pair.a / "d" / name, pair.a / f"moved-{name}")
    os.rename(pair.a / "d", pair.a / "d2")
    names = ["d2", "d", "moved-g", "moved-s", "moved-e"]
    answer = pair.ask(*(names if first == "d2" else names[::-1]))
    pair.heal(answer)


@pytest.mark.parametrize("along", [False, True])
def test_a_lost_directory_goes_and_its_names_leave_it(pair, along):
    take_away(pair.b / "d")
    for name in ("g", "s", "e"):
        os.rename(pair.a / "d" / name, pair.a / f"moved-{name}")
    os.rmdir(pair.a / "d")
    answer = pair.ask("d", "moved-g", "moved-s", "moved-e")
    pair.heal(answer)


def test_a_lost_directory_is_renamed_and_names_come_into_it(pair):
    take_away(pair.b / "d")
    os.rename(pair.a / "d", pair.a / "d2")
    (pair.a / "d2" / "new").write_bytes(b"new")
    os.link(pair.a / "f", pair.a / "d2" / "link")
    (pair.a / "d2" / "e" / "newer").write_bytes(b"newer")
    os.rename(pair.a / "to", pair.a / "d2" / "to")
    paths = ["d2", "d", "d2/new", "d2/link", "d2/e/newer", "d2/to"]
    pair.heal(pair.ask(*paths))


def test_what_came_into_a_directory_that_is_gone_by_now_and_lost(pair):
    """It was looked at before its directory went."""
    (pair.a / "d" / "new").write_bytes(b"new")
    seen = pair.primary.look(b"d", [b"new"])
    shutil.rmtree(pair.a / "d")
    take_away(pair.b / "d")
    answer = pair.send([seen, pair.primary.look(b"", [b"d"])])
    pair.heal(answer)


def test_a_directory_that_waits_in_limbo_is_lost(pair):
    os.rename(pair.a / "d", pair.a / "to" / "d2")
    pair.ask("d")
    (limbo,) = (pair.b / ".seamark" / "limbo").iterdir()
    shutil.rmtree(limbo)
    os.rename(pair.a / "to" / "d2" / "g", pair.a / "moved-g")
    pair.heal(pair.ask("to/d2", "moved-g"))


def test_a_directory_is_lost_while_content_is_placed_at_several_names(pair):
    """The transaction that finds it lost is looked after before anything is mended."""
    os.link(pair.a / "f", pair.a / "d" / "link")
    pair.complete(pair.ask("d/link", "f"))
    (pair.a / "f").write_bytes(b"the new one")
    answer = pair.ask("f")
    take_away(pair.b / "d")
    pair.primary.send(pair.client, answer)
    assert_consistent(pair.b)
    pair.heal()


# ---- it moved while we looked


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_seen_at_its_new_name_and_then_at_the_old_one(pair, kind):
    """With other attributes; and something of ours stands at the old name by now."""
    name = {"file": "g", "symlink": "s"}[kind]
    os.chown(pair.a / "d" / name, 1, 1, follow_symlinks=False)
    old = pair.primary.look(b"d", [os.fsencode(name)])
    os.rename(pair.a / "d" / name, pair.a / "moved")
    new = pair.primary.look(b"", [b"moved"])
    answer = pair.send([new, old])
    pair.complete(answer)


@pytest.mark.parametrize("kind", ["file", "symlink", "directory"])
def test_seen_at_a_name_that_is_another_ones(pair, kind):
    name = {"file": "g", "symlink": "s", "directory": "e"}[kind]
    os.chown(pair.a / "d" / name, 1, 1, follow_symlinks=False)
    old = pair.primary.look(b"d", [os.fsencode(name)])
    os.rename(pair.a / "d" / name, pair.a / "moved")
    new = pair.primary.look(b"", [b"moved"])
    os.rename(pair.a / "to", pair.a / "d" / name)
    answer = pair.send(
        [new, old, pair.primary.look(b"", [b"to"]), pair.primary.look(b"d", [os.fsencode(name)])]
    )
    pair.complete(answer)


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_seen_at_a_name_that_was_free_again_when_it_was_looked_at_once_more(pair, kind):
    """So it waits in limbo, for its next name. Its attributes are those of its last look."""
    name = {"file": "g", "symlink": "s"}[kind]
    os.chown(pair.a / "d" / name, 1, 1, follow_symlinks=False)
    os.rename(pair.a / "d" / name, pair.a / "first")
    old, seen = pair.primary.look(b"d", [os.fsencode(name)]), pair.primary.look(b"", [b"first"])
    os.rename(pair.a / "first", pair.a / "second")
    ino = os.lstat(pair.b / "d" / name).st_ino
    answer = pair.send([old, seen, pair.primary.look(b"", [b"first"])])
    assert {how for _, how in answer.need} <= {"compare"}
    (waiting,) = (pair.b / ".seamark" / "limbo").iterdir()
    assert waiting.lstat().st_uid == 1
    pair.ask("second")
    pair.client.purge(pair.crawl)
    assert_consistent(pair.b)
    assert os.lstat(pair.b / "second").st_ino == ino
    pair.complete()


@pytest.mark.parametrize("below", [False, True])
def test_something_new_was_seen_at_a_name_that_is_free_by_now(pair, below):
    """It is not known here until it is seen again."""
    (pair.a / "first").mkdir()
    (pair.a / "first" / "in").write_bytes(b"in")
    os.rename(pair.a / "d" / "g", pair.a / "first" / "g")
    seen = [pair.primary.look(b"", [b"first"])]
    if below:
        seen.append(pair.primary.look(b"first", [b"in", b"g"]))
    os.rename(pair.a / "first", pair.a / "second")
    answer = pair.send([*seen, pair.primary.look(b"", [b"first"]), pair.primary.look(b"d", [b"g"])])
    assert answer.unknown == [pair.primary.gfid(b"second").hex()]
    assert {how for _, how in answer.need} <= {"compare"}
    pair.complete(pair.ask("second", "second/g", "second/in"))


def test_what_changes_faster_than_its_times_say_is_compared(pair, monkeypatch):
    """As if each look came within a tick of its ctime, or that were of a clock that is ahead."""
    monkeypatch.setattr("tests.secondary.primary.settled", lambda ctime_ns: 0)
    path = pair.a / "d" / "g"
    for content in (b"in d", b"IN D", b"in D"):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        pair.primary.crawl(pair.client, content.decode())
        assert differences(pair.a, pair.b) == ""


@pytest.mark.parametrize("deletes", [None, {"most": 100, "window_s": 60, "since": 0}])
@pytest.mark.parametrize("anew", [False, True])
def test_absent_at_first_and_there_when_it_was_looked_at_once_more(pair, deletes, anew):
    """The last look counts, also where deletions are limited."""
    os.rename(pair.a / "d" / "g", pair.a / "to" / "away")
    absent = pair.primary.look(b"d", [b"g"])
    os.rename(pair.a / "to" / "away", pair.a / "d" / "g")
    if anew:
        pair.save("d/g")
    answer = pair.send([absent, pair.primary.look(b"d", [b"g"])], deletes=deletes)
    assert (pair.b / "d" / "g").exists()
    assert [how for _, how in answer.need] == ["new"] if anew else ["compare"]
    pair.complete(answer)


def test_there_at_first_and_absent_when_it_was_looked_at_once_more_where_deletions_are_held(pair):
    """It is the old object whose name is held, and which goes once somebody has agreed."""
    rule = {"most": 0, "window_s": 60, "since": 0}
    os.rename(pair.a / "d" / "g", pair.a.parent / "away")
    (pair.a / "d" / "g").write_bytes(b"for a moment")
    seen = pair.primary.look(b"d", [b"g"])
    os.unlink(pair.a / "d" / "g")
    answer = pair.send([seen, pair.primary.look(b"d", [b"g"])], deletes=rule)
    assert answer.need == []
    assert (pair.b / "d" / "g").read_bytes() == b"in d"
    pair.client.call("purge", upto=pair.crawl, deletes={**rule, "allowed_ns": 1 << 62})
    assert_consistent(pair.b)
    assert not (pair.b / "d" / "g").exists()
    pair.complete()


# ---- two plans of one request


def test_a_directory_that_the_first_plan_worked_in_is_gone_by_the_second(pair):
    """The listing of the root comes in parts, the last with a look at what is new in a directory that is gone by then."""
    (pair.a / "d" / "below").mkdir()
    seen = pair.primary.look(b"d", [b"below"])
    shutil.rmtree(pair.a / "d")
    whole = pair.primary.listing(b"")
    parts = [
        Listing(whole.parent, whole.entries[:1], True, 0, False),
        Listing(whole.parent, whole.entries[1:], True, 1, True),
    ]
    pair.send(parts[:1])
    pair.send([seen, parts[1]])
    assert pair.client.check() == []
    pair.client.purge(pair.crawl)
    pair.complete()


# ---- names that the filters leave out


def test_what_is_left_out_and_seen_under_another_name_later_in_the_request(pair):
    pair.restart(filters=["- /d"])
    os.rename(pair.a / "d" / "e", pair.a / "to" / "e")
    os.rename(pair.a / "d" / "g", pair.a / "to" / "g")
    whole = pair.primary.listing(b"")
    entries = [e for e in whole.entries if e.name != b"d"]
    answer = pair.send(
        [Listing(whole.parent, entries, complete=True), pair.primary.look(b"to", [b"e", b"g"])]
    )
    assert (pair.b / "to" / "e" / "h").read_bytes() == b"in e"
    assert (pair.b / "to" / "g").read_bytes() == b"in d"
    assert {how for _, how in answer.need} <= {"compare"}


def test_a_name_that_is_left_out_goes_on_under_another(pair):
    pair.restart(filters=["- /f"])
    os.rename(pair.a / "f", pair.a / "to" / "f")
    whole = pair.primary.listing(b"")
    answer = pair.send([whole, pair.primary.look(b"to", [b"f"])])
    assert (pair.b / "to" / "f").read_bytes() == b"old"
    assert {how for _, how in answer.need} <= {"compare"}


# ---- killed while limbo is emptied


@pytest.mark.parametrize("count", range(1, 9))
def test_killed_in_a_purge_and_then_seen_again(pair, count):
    """What was gone for good comes back all the same: as a healed brick may show it."""
    os.rename(pair.a / "d", pair.a.parent / "away")
    pair.ask("d")
    pair.restart(fault=f"purge:{count}")
    with contextlib.suppress(LinkLost):
        pair.client.purge(pair.crawl)
    pair.restart()
    assert_consistent(pair.b)
    os.rename(pair.a.parent / "away" / "e", pair.a / "e")
    os.rename(pair.a.parent / "away", pair.a / "d")
    answer = pair.ask("e", "e/h", "d")
    pair.complete(answer)


# ---- an index that has the fault already


def test_a_name_of_no_inode_is_nobodys(pair):
    pair.far.close()
    with contextlib.closing(sqlite3.connect(pair.b / ".seamark" / "index.sqlite")) as index, index:
        (inode,) = index.execute("SELECT inode FROM entry WHERE name = ?", (b"g",)).fetchone()
        index.execute("DELETE FROM inode WHERE id = ?", (inode,))
    pair.far = Far(pair.b)
    answer = pair.ask("d/g")
    assert answer.counts["astray"] == 1
    pair.heal(answer)


def test_what_has_a_name_is_not_purged(pair):
    pair.far.close()
    with contextlib.closing(sqlite3.connect(pair.b / ".seamark" / "index.sqlite")) as index, index:
        index.execute("UPDATE inode SET limbo = 1 WHERE id IN (SELECT inode FROM entry WHERE parent <> 1)")
    pair.far = Far(pair.b)
    pair.client.purge(5)
    pair.complete()
