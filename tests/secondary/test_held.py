"""Deletions that are held: by a limit until a person agrees, or for good; renames are none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.observation import Listing
from replication.remote.errors import LinkLost
from replication.volume.identity import ROOT_GFID
from tests.secondary.primary import Far, Primary, differences

IGNORE = {"ignore": True}


def limited(most=None, percent=None, since=5, allowed_ns=0):
    return {"most": most, "percent": percent, "window_s": 600, "since": since, "allowed_ns": allowed_ns}


class Guarded:
    """A primary and a secondary that looks under a rule of deletions."""

    def __init__(self, a, b, client, rule):
        self.a, self.b, self.client, self.rule = a, b, client, rule
        self.primary = Primary(a)
        self.stamp = 0

    def look(self, *directories, names=None):
        """Whole listings of these directories, in one request; or of ``names`` in the first of them."""
        self.stamp += 1
        crawl = str(self.stamp)
        self.client.begin_crawl(crawl)
        if names is not None:
            listings = [self.primary.look(directories[0], names)]
        else:
            listings = [self.primary.listing(directory) for directory in directories]
        answer = self.client.observe(listings, crawl=crawl, limbo_until=self.stamp, deletes=self.rule)
        self.primary.send(self.client, answer)
        self.client.end_crawl(crawl)
        return answer

    def crawl(self):
        self.look(
            *(
                os.path.relpath(at, self.primary.root).replace(b".", b"", 1)
                if at == self.primary.root
                else os.path.relpath(at, self.primary.root)
                for at, _, _ in os.walk(self.primary.root)
            )
        )
        self.primary.send_metadata(self.client, [ROOT_GFID.hex()], self.primary.paths())

    def purge(self):
        return self.client.call("purge", upto=self.stamp, deletes=self.rule).header

    def sound(self):
        assert self.client.check() == []

    def extra(self):
        """What is there and not on the primary; nothing else may differ."""
        lines = [line for line in differences(self.a, self.b).splitlines() if line.strip()]
        assert all(line.startswith("*deleting") for line in lines), lines
        return sorted(line.split(maxsplit=1)[1] for line in lines)


@pytest.fixture
def guarded(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    for d in range(3):
        (a / f"d{d}").mkdir()
        for f in range(5):
            (a / f"d{d}" / f"f{f}").write_text(f"{d} {f}")
    with Far(b) as client:
        made = Guarded(a, b, client, None)
        made.crawl()
        assert made.extra() == []
        yield made
        made.sound()


def test_within_the_limit_they_are_carried_out_at_once(guarded):
    guarded.rule = limited(most=6)
    shutil.rmtree(guarded.a / "d0")
    guarded.crawl()
    assert guarded.extra() == []
    assert guarded.purge()["question"] is None
    assert guarded.client.stat()["limbo"] == 0


def test_what_is_more_stays_until_somebody_agrees(guarded):
    guarded.rule = limited(most=5)
    shutil.rmtree(guarded.a / "d0")
    guarded.crawl()
    assert guarded.extra() == ["d0/"] + [f"d0/f{n}" for n in range(5)]
    assert guarded.client.sync()["since"] == 5
    for _ in range(2):
        answer = guarded.purge()
        assert answer["question"] == {"count": 6, "most": 5, "names": ["d0"]}
        assert (answer["since"], answer["held"]) == (5, True)
    # It stops removing: what comes now is held as well, though it would be few enough.
    (guarded.a / "d1" / "f0").unlink()
    guarded.crawl()
    assert "d1/f0" in guarded.extra()
    assert guarded.purge()["question"]["count"] == 7
    guarded.rule = limited(most=5, allowed_ns=guarded.stamp)
    answer = guarded.purge()
    assert (answer["question"], answer["since"], answer["held"]) == (None, None, False)
    assert guarded.extra() == []
    assert guarded.client.stat()["limbo"] == 0
    # It was once: the next is counted anew.
    guarded.rule = limited(most=5, allowed_ns=guarded.stamp)
    shutil.rmtree(guarded.a / "d1")
    guarded.crawl()
    assert guarded.purge()["question"] is None
    shutil.rmtree(guarded.a / "d2")
    guarded.crawl()
    assert guarded.purge()["question"]["count"] == 6


def test_few_at_a_time_are_counted_together(guarded):
    guarded.rule = limited(most=3)
    for n in range(5):
        (guarded.a / "d0" / f"f{n}").unlink()
        guarded.crawl()
        guarded.purge()
    assert guarded.extra() == ["d0/f3", "d0/f4"]
    assert guarded.purge()["question"]["count"] == 2


def test_a_percentage_is_of_what_is_there_but_of_a_few_files_some_may_go(guarded):
    guarded.rule = limited(percent=10)
    shutil.rmtree(guarded.a / "d0")  # 6 of 19
    guarded.crawl()
    assert guarded.extra() == []
    shutil.rmtree(guarded.a / "d1")
    guarded.crawl()
    assert guarded.purge()["question"]["most"] == 10
    assert len(guarded.extra()) == 6


def test_a_directory_that_is_renamed_is_no_deletion_though_its_new_name_comes_later(guarded):
    guarded.rule = limited(most=1)
    inode = os.stat(guarded.b / "d0" / "f0").st_ino
    os.rename(guarded.a / "d0", guarded.a / "d1" / "moved")
    guarded.look(b"")  # d0 is gone
    assert (guarded.b / "d0" / "f0").exists()
    guarded.look(b"d1")
    assert os.stat(guarded.b / "d1" / "moved" / "f0").st_ino == inode
    guarded.crawl()
    assert guarded.purge()["question"] is None
    assert guarded.extra() == []


def test_names_that_come_back_count_no_more(guarded):
    guarded.rule = limited(most=2)
    for _ in range(10):
        (guarded.a / "d0" / "f0").unlink()
        guarded.crawl()
        (guarded.a / "d0" / "f0").write_text("again")
        guarded.crawl()
        answer = guarded.purge()
        assert (answer["question"], answer["held"]) == (None, False)
    assert guarded.extra() == []


def test_a_primary_that_is_put_right_ends_it(guarded):
    guarded.rule = limited(most=3)
    os.rename(guarded.a / "d0", guarded.a.parent / "away")
    guarded.look(b"")
    assert guarded.purge()["question"]["count"] == 6
    os.rename(guarded.a.parent / "away", guarded.a / "d0")
    guarded.look(b"")
    answer = guarded.purge()
    assert (answer["question"], answer["held"]) == (None, False)
    # And made anew under the same names, with other inodes.
    shutil.rmtree(guarded.a / "d1")
    guarded.crawl()
    assert guarded.purge()["question"]["count"] == 6
    shutil.copytree(guarded.b / "d1", guarded.a / "d1")
    guarded.crawl()
    guarded.crawl()
    assert guarded.purge()["question"] is None
    assert guarded.extra() == []


def test_a_directory_that_another_replaced_is_not_deleted_uncounted(guarded):
    guarded.rule = limited(most=3)
    shutil.rmtree(guarded.a / "d0")
    (guarded.a / "d0").mkdir()
    guarded.crawl()
    guarded.purge()
    (kept,) = guarded.b.glob(".seamark/displaced/*/d0")
    assert sorted(os.listdir(kept)) == [f"f{n}" for n in range(5)]
    assert guarded.extra() == []


def test_held_is_held_after_a_crash_and_without_the_rule_it_goes(tmp_path, guarded):
    guarded.rule = limited(most=3)
    shutil.rmtree(guarded.a / "d0")
    guarded.crawl()
    guarded.purge()
    with Far(guarded.b, epoch=2) as client:
        again = Guarded(guarded.a, guarded.b, client, guarded.rule)
        again.stamp = 10
        assert again.purge()["question"]["count"] == 6
        assert client.call("held").header["items"] == [["d0", 2, False]]
        again.rule = None
        assert again.purge()["held"] is False
        assert again.extra() == []
        again.sound()


@pytest.mark.parametrize("fault", ["journal:1", "step:1", "step:4", "commit:2", "committed:2", "purge:3"])
def test_killed_while_what_was_held_is_removed(guarded, fault):
    guarded.rule = limited(most=3)
    shutil.rmtree(guarded.a / "d0")
    for n in range(3):
        (guarded.a / "d1" / f"f{n}").unlink()
    guarded.crawl()
    assert guarded.purge()["question"]["count"] == 9
    agreed = limited(most=3, allowed_ns=guarded.stamp)
    far = Far(guarded.b, epoch=2, fault=fault)
    with pytest.raises(LinkLost):
        far.client.call("purge", upto=guarded.stamp, deletes=agreed)
    far.close()
    with Far(guarded.b, epoch=3) as client:
        answer = client.call("purge", upto=guarded.stamp, deletes=agreed).header
        assert (answer["held"], answer["question"], answer["left"]) == (False, None, 0)
        assert client.check() == []
    assert guarded.extra() == []


@pytest.mark.parametrize("most", [4100, 3000])
def test_a_listing_that_comes_in_parts(guarded, most):
    guarded.rule = limited(most=most)
    many = guarded.a / "many"
    many.mkdir()
    for n in range(4005):
        os.link(guarded.a / "d0" / "f0", many / f"f{n}")
    guarded.crawl()
    for n in range(4000):
        (many / f"f{n}").unlink()
    whole = guarded.primary.listing(b"many")
    guarded.client.begin_crawl("p")
    for part, last in ((0, False), (1, True)):
        listing = Listing(whole.parent, whole.entries[part * 3 : part * 3 + 3], True, part, last)
        guarded.client.observe([listing], crawl="p", limbo_until=9, deletes=guarded.rule)
    # Two thousand at a time: those that are still within the limit are removed.
    assert len(os.listdir(guarded.b / "many")) - 5 == (0 if most > 4000 else 2000)


# ---- ignored


def test_ignored_deletions_stay_and_renames_are_carried_out(guarded):
    guarded.rule = IGNORE
    a, b = guarded.a, guarded.b
    shutil.rmtree(a / "d0")
    (a / "d1" / "f0").unlink()
    os.rename(a / "d1" / "f1", a / "d2" / "moved")
    os.rename(a / "d1" / "f2", a / "d1" / "renamed")
    inode = os.stat(b / "d1" / "f1").st_ino
    guarded.crawl()
    answer = guarded.purge()
    assert (answer["question"], answer["since"]) == (None, None)
    assert guarded.extra() == ["d0/"] + [f"d0/f{n}" for n in range(5)] + ["d1/f0"]
    assert os.stat(b / "d2" / "moved").st_ino == inode
    # A directory of which only that differs needs no look.
    digests = [(guarded.primary.gfid(d), b"") for d in (b"d1",)]
    assert guarded.client.digests(digests) == [0]
    assert b"d1" not in {guarded.primary.paths()[g] for g, _ in guarded.client.dirty()[0]}


def test_a_rename_that_is_seen_in_two_looks_is_carried_out_too(guarded):
    guarded.rule = IGNORE
    os.rename(guarded.a / "d0" / "f0", guarded.a / "d1" / "x")
    guarded.look(b"d0")
    assert (guarded.b / "d0" / "f0").exists()
    guarded.look(b"d1")
    guarded.crawl()
    guarded.purge()
    assert guarded.extra() == []


def test_a_name_that_is_made_again_is_replaced(guarded):
    guarded.rule = IGNORE
    (guarded.a / "d0" / "f0").unlink()
    guarded.crawl()
    (guarded.a / "d0" / "f0").write_text("new")
    guarded.crawl()
    guarded.purge()
    assert guarded.extra() == []
    shutil.rmtree(guarded.a / "d1")
    guarded.crawl()
    (guarded.a / "d1").write_text("a file now")
    guarded.crawl()
    guarded.purge()
    (kept,) = guarded.b.glob(".seamark/displaced/*/d1")
    assert len(os.listdir(kept)) == 5
    assert guarded.extra() == []


def test_no_longer_ignored_they_are_carried_out(guarded):
    guarded.rule = IGNORE
    shutil.rmtree(guarded.a / "d0")
    guarded.crawl()
    guarded.purge()
    guarded.rule = limited(most=3)
    assert guarded.purge()["question"]["count"] == 6
    guarded.rule = None
    guarded.purge()
    assert guarded.extra() == []


def test_what_was_held_is_ignored_once_deletions_are(guarded):
    guarded.rule = limited(most=3)
    shutil.rmtree(guarded.a / "d0")
    guarded.crawl()
    assert guarded.purge()["question"]["count"] == 6
    guarded.rule = IGNORE
    answer = guarded.purge()
    assert (answer["question"], answer["since"], answer["held"]) == (None, None, True)
    assert guarded.client.sync()["since"] is None
    assert len(guarded.extra()) == 6


def test_a_lost_index_is_made_anew_around_what_is_ignored(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    (a / "gone").write_text("kept")
    (a / "stays").write_text("stays")
    with Far(b) as client:
        made = Guarded(a, b, client, IGNORE)
        made.crawl()
        (a / "gone").unlink()
        made.crawl()
    for path in b.glob(".seamark/index.sqlite*"):
        path.unlink()
    with Far(b, epoch=2) as client:
        made = Guarded(a, b, client, IGNORE)
        client.begin_crawl("r")
        answer = client.observe([made.primary.listing(b"")], crawl="r", limbo_until=9, deletes=IGNORE)
        made.primary.send(client, answer)
        client.end_crawl("r", rebuilt=True)
        assert made.extra() == ["gone"]


def test_a_rule_that_says_nothing_is_refused(guarded):
    from replication.remote.answers import SecondaryError

    with pytest.raises(SecondaryError, match="rule of deletions"):
        guarded.client.begin_crawl("c")
        guarded.client.observe([Listing(ROOT_GFID)], crawl="c", limbo_until=1, deletes={"most": None})


# ---- whatever happens under whatever rules, without a rule the trees are the same in the end

NAMES = st.sampled_from(["x", "y", "d/x", "d/y", "e/x", "d", "e", "d/z", "e/d"])
RULES = st.sampled_from([None, IGNORE, limited(most=1), limited(most=3), limited(percent=5), limited(most=0)])
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "mkdir", "rename", "link", "remove", "look", "crawl", "purge"]), NAMES, NAMES, RULES),
    min_size=5, max_size=25,
)  # fmt: skip


def change(a, what, one, other):
    if what == "write":
        (a / one).write_text(other)
    elif what == "mkdir":
        (a / one).mkdir()
    elif what == "rename":
        os.rename(a / one, a / other)
    elif what == "link":
        os.link(a / one, a / other)
    elif what == "remove":
        shutil.rmtree(a / one) if (a / one).is_dir() else (a / one).unlink()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_no_rule_breaks_anything(steps):
    with tempfile.TemporaryDirectory() as base:
        a, b = Path(base, "a"), Path(base, "b")
        a.mkdir()
        with Far(b) as client:
            made = Guarded(a, b, client, None)
            made.crawl()
            for what, one, other, rule in steps:
                made.rule = rule
                if what == "purge":
                    made.purge()
                elif what == "crawl":
                    made.crawl()
                elif what == "look":
                    if (a / "d").is_dir():
                        made.look(b"", b"d")
                else:
                    with contextlib.suppress(OSError):
                        change(a, what, one, other)
            made.sound()
            made.rule = None
            for _ in range(2):
                made.crawl()
                made.purge()
            assert made.extra() == []
            assert client.stat()["limbo"] == 0
            made.sound()
