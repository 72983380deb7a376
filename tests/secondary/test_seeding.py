"""An old primary becomes the secondary of the one that was promoted: what is agreed on stays, the rest is displaced."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from replication.failback.agreement import Agreement
from replication.failback.promoted import promoted_root
from replication.failback.seeding import Seeding
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from tests.secondary.primary import Far, Primary, differences
from tests.secondary.test_promotion import agent, contents, promote
from tests.secondary.test_shadows import Pair


class Turned(Pair):
    """A pair whose second was promoted: `a` is the old primary, `b` the new one."""

    def __init__(self, base):
        super().__init__(base)
        self.base = base
        self.epoch = 100
        (self.a / "d" / "e").mkdir(parents=True)
        for name in ("d/x", "d/y", "d/e/z", "g", "h"):
            (self.a / name).write_bytes(f"content of {name}".encode() * 50)
        os.link(self.a / "g", self.a / "d" / "linked")
        os.symlink("nowhere", self.a / "symlink")
        time.sleep(0.03)  # a version that is younger is not believed, and content compared
        self.complete()

    def promote(self):
        self.far.close()
        return promote(self.b)

    def seed(self, do="commit", fault="", term=None):
        """One failback; its plan."""
        agreement = Agreement(self.base / "scratch", promoted_root(str(self.b)))
        try:
            with agent(self.a, fault) as client:
                seeding = Seeding(client, agreement, session="back", volume="vb", of={"name": "back"})
                return seeding.commit() if do == "commit" else seeding.plan()
        finally:
            agreement.close()

    def back(self):
        """Replicate from b to a until nothing differs; what content was sent for it."""
        self.epoch += 100
        primary = Primary(self.b)
        with Far(self.a, session="back", volume="vb", epoch=self.epoch) as client:
            for crawl in range(3):
                primary.crawl(client, str(crawl), stamp=crawl)
            assert differences(self.b, self.a) == ""
            assert client.check() == []
        return primary.sent


@pytest.fixture
def turned(tmp_path):
    made = Turned(tmp_path)
    yield made
    made.far.close()


def kept(root):
    """What was displaced: path to content, or None for a directory."""
    found = {}
    for number in sorted((root / ".seamark" / "displaced").iterdir()):
        for directory, dirs, files in os.walk(number):
            for name in files:
                path = os.path.join(directory, name)
                found[os.path.relpath(path, number)] = (
                    Path(path).read_bytes() if os.path.isfile(path) else None
                )
            if not dirs and not files:
                found[os.path.relpath(directory, number)] = None
    return found


def said(plan):
    return {(f.path, f.what, f.conflict) for f in plan.findings}


def test_where_nothing_changed_nothing_is_sent(turned):
    turned.promote()
    before = contents(turned.a) if os.path.exists(turned.a / ".seamark") else None
    assert before is None
    plan = turned.seed("plan")
    assert not os.path.exists(turned.a / ".seamark"), "a plan changes nothing"
    assert (plan.findings, plan.known, plan.agreed) == ([], 9, 9)
    assert turned.seed().displaced == 0
    assert turned.back() == set()
    assert kept(turned.a) == {}


def test_what_changed_on_the_new_primary_alone_goes_back_and_nothing_is_displaced(turned):
    turned.promote()
    (turned.b / "h").write_bytes(b"newer")
    (turned.b / "made").write_bytes(b"made here")
    shutil.rmtree(turned.b / "d" / "e")
    os.rename(turned.b / "d", turned.b / "moved")
    os.unlink(turned.b / "symlink")
    plan = turned.seed()
    assert plan.findings == []
    assert (plan.back.new, plan.back.changed, plan.back.removed) == (1, 1, 3)
    assert turned.back() == {b"newer", b"made here"}
    assert kept(turned.a) == {}


def test_what_the_old_primary_wrote_is_displaced_and_told(turned):
    turned.promote()
    (turned.a / "h").write_bytes(b"never sent")
    (turned.a / "new").mkdir()
    (turned.a / "new" / "file").write_bytes(b"nor this")
    os.unlink(turned.a / "symlink")
    os.chmod(turned.a / "g", 0o600)
    os.unlink(turned.a / "d" / "y")
    os.mkfifo(turned.a / "d" / "y")
    plan = turned.seed()
    assert said(plan) == {
        ("h", "changed", False), ("new", "new", False), ("symlink", "removed", False), ("g", "attributes", False),
        ("d/linked", "attributes", False), ("d/y", "replaced", False),
    }  # fmt: skip
    assert turned.back() == {b"content of d/y" * 50, b"content of h" * 50}
    found = kept(turned.a)
    assert found.pop("h") == b"never sent"
    assert found.pop("new/file") == b"nor this"
    assert found == {"d/y": None}, "the FIFO"


def test_renames_on_the_old_primary_are_undone_without_data(turned):
    turned.promote()
    os.rename(turned.a / "d", turned.a / "D")
    os.rename(turned.a / "h", turned.a / "swap")
    os.rename(turned.a / "g", turned.a / "h")
    os.rename(turned.a / "swap", turned.a / "g")
    plan = turned.seed()
    assert {(f.path, f.what, f.before) for f in plan.findings} == {
        ("D", "renamed", "d"), ("h", "linked", "g"), ("g", "renamed", "h"),
        ("D/linked", "attributes", None),
    }  # fmt: skip
    assert turned.back() == set()
    assert kept(turned.a) == {}


def test_changed_on_both_sides_is_a_conflict_with_both_versions(turned):
    turned.promote()
    (turned.a / "h").write_bytes(b"there, longer")
    (turned.b / "h").write_bytes(b"here")
    (turned.a / "both").write_bytes(b"made there")
    (turned.b / "both").write_bytes(b"made here")
    (turned.a / "g").write_bytes(b"changed there")
    os.unlink(turned.b / "g")
    os.unlink(turned.a / "d" / "x")
    (turned.b / "d" / "x").write_bytes(b"changed here")
    plan = turned.seed()
    found = {f.path: f for f in plan.findings}
    assert {path for path, f in found.items() if f.conflict} >= {"h", "both", "d/x", "g"}
    assert (found["h"].there.size, found["h"].here.size) == (13, 4)
    assert found["h"].here.mtime == pytest.approx((turned.b / "h").stat().st_mtime, abs=1e-5)
    assert (found["d/x"].there, found["d/x"].here.size) == (None, 12)
    turned.back()
    aside = kept(turned.a)
    assert {aside["h"], aside["both"], aside["g"]} == {b"there, longer", b"made there", b"changed there"}


def test_what_had_not_come_yet_is_no_agreement(turned):
    """Content that was written on the old primary, and was on its way when it died."""
    turned.save("h", b"on its way")
    turned.look("h", purge=False)
    (turned.a / "g").write_bytes(b"longer than what was there, by far" * 100)
    turned.look("g", purge=False)
    turned.promote()
    plan = turned.seed()
    assert ("h", "replaced", False) in said(plan) or ("h", "new", False) in said(plan)
    assert ("g", "changed", False) in said(plan)
    assert turned.back() == {b"content of h" * 50, b"content of g" * 50}
    aside = kept(turned.a)
    assert aside["h"] == b"on its way"
    assert aside["g"] == b"longer than what was there, by far" * 100


@pytest.mark.parametrize("point", ["seeded:1", "aside:1", "aside:2", "unowned:1"])
def test_killed_anywhere_and_run_again(turned, point):
    turned.promote()
    (turned.a / "h").write_bytes(b"never sent")
    (turned.a / "new").write_bytes(b"nor this")
    (turned.b / "made").write_bytes(b"made here")
    with pytest.raises(LinkLost):
        turned.seed(fault=point)
    with pytest.raises(SecondaryError):  # nothing is replicated to what is half a secondary
        Far(turned.a, session="back", volume="vb", epoch=9)
    turned.seed()
    assert turned.back() == {b"content of h" * 50, b"made here"}
    assert kept(turned.a) == {"h": b"never sent", "new": b"nor this"}


def test_there_and_back_again(turned):
    """Roles are turned round three times; each time only what changed is sent, and older terms are refused."""
    turned.promote()
    (turned.b / "h").write_bytes(b"from b")
    turned.seed()
    assert turned.back() == {b"from b"}
    with pytest.raises(SecondaryError, match=r"promoted to a primary"):
        Far(turned.b, epoch=50)
    promote(turned.a, term=2)
    (turned.a / "i").write_bytes(b"from a")
    agreement = Agreement(turned.base / "scratch", promoted_root(str(turned.a)))
    try:
        with agent(turned.b) as client:
            plan = Seeding(client, agreement, session="s", volume="v", of={}).commit()
    finally:
        agreement.close()
    assert plan.findings == []
    turned.primary.sent = set()
    with Far(turned.b, epoch=60) as client:
        for crawl in range(3):
            turned.primary.crawl(client, str(crawl), stamp=crawl)
        assert differences(turned.a, turned.b) == ""
    assert turned.primary.sent == {b"from a"}
    with pytest.raises(SecondaryError, match="in term 2 already"):
        promote(turned.b, term=2)
    promote(turned.b, term=3)
    turned.seed()
    assert turned.back() == set()


def test_who_was_promoted_earlier_is_refused_by_who_was_later(turned):
    """Both take themselves for the primary: one of them is."""
    turned.promote()
    turned.seed()
    promote(turned.a, term=2)
    with pytest.raises(SecondaryError, match=r"in term 2 already \[stale-term\]"):
        turned.seed()
    assert os.listdir(turned.a / ".seamark" / "displaced") == []


def test_a_change_that_hides_behind_its_time_and_size_goes_back(turned):
    """The same size and mtime as before: the ctime tells, and the digest decides."""
    turned.promote()
    before = os.stat(turned.b / "h")
    (turned.b / "h").write_bytes(b"CONTENT OF H" * 50)
    os.utime(turned.b / "h", ns=(before.st_atime_ns, before.st_mtime_ns))
    turned.seed()
    assert turned.back() == {b"CONTENT OF H" * 50}


def test_another_directory_is_refused(turned):
    turned.promote()
    shutil.rmtree(turned.a)
    turned.a.mkdir()
    (turned.a / "else").write_bytes(b"somebody's")
    with pytest.raises(Exception, match="it is another directory"):
        turned.seed()
    assert contents_of(turned.a) == ["else"]


def contents_of(root):
    return sorted(os.listdir(root))


def test_what_is_another_sessions_secondary_is_refused(turned):
    turned.promote()
    with Far(turned.base / "other"):
        pass
    for name in os.listdir(turned.base / "other" / ".seamark"):
        (turned.a / ".seamark").mkdir(exist_ok=True)
        source = turned.base / "other" / ".seamark" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, turned.a / ".seamark" / name)
    with pytest.raises(SecondaryError, match=r"belongs to session s \[owned\]"):
        turned.seed()
