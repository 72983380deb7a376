"""What was recorded on a promoted root counts as changed there, whatever its times say; without a record all is as it was."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import closing, contextmanager

import pytest

from replication.changelog import segment
from replication.changelog.index import State
from replication.changelog.segment import SegmentWriter
from replication.changelog.store import ChangelogStore
from replication.failback.agreement import Agreement
from replication.failback.promoted import promoted_root
from replication.failback.recorded import Changes, Count, Recorded
from replication.failback.seeding import Seeding
from replication.session import Recording
from tests.changelog.running import running
from tests.secondary.test_promotion import agent
from tests.secondary.test_seeding import Turned, kept, said

pytestmark = pytest.mark.root
HOUR_NS = 3600 * 10**9


class Watched(Turned):
    """The promoted side is recorded, and its clock was an hour back while it was written to."""

    def __init__(self, base):
        super().__init__(base)
        self.log = base / "log"
        self.record = True

    def promote(self):
        super().promote()
        self.begun = Recording(term=1, position=0, since_ns=promoted_root(str(self.b)).done_ns)
        set_back(self.b)

    @contextmanager
    def changing(self):
        with running(self.b, self.log) as recorder:
            yield recorder
            recorder.barrier()

    def seed(self, do="commit", fault="", term=None):
        promoted = promoted_root(str(self.b))
        recorded = Recorded(self.log, self.begun) if self.record else None
        with (
            agent(self.a, fault) as client,
            closing(Agreement(self.base / "scratch", promoted, recorded)) as agreement,
        ):
            work = Seeding(client, promoted, session="back", volume="vb", of={"name": "back"})
            work.know(agreement)
            if recorded is not None:
                recorded.close()
            return work.commit() if do == "commit" else work.plan()


def set_back(root):
    """As if the clock had been an hour ahead at the promotion, and that only: what is written now seems older than it."""
    path = root / ".seamark" / "owner"
    owner = json.loads(path.read_text())
    for name in ("since_ns", "done_ns", "uptime_ns"):
        owner["promoted"][name] += HOUR_NS
    path.write_text(json.dumps(owner))


@pytest.fixture
def turned(tmp_path):
    made = Watched(tmp_path)
    yield made
    made.far.close()


def rewrite(path, content):
    """Other content of the same size, and the mtime of before."""
    before = os.stat(path)
    assert len(content) == before.st_size
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("record", [True, False])
def test_what_only_the_record_knows_goes_back(turned, record):
    turned.promote()
    with turned.changing():
        rewrite(turned.b / "d" / "x", b"CONTENT OF d/x" * 50)
    turned.record = record
    plan = turned.seed()
    assert plan.findings == []
    assert plan.back.changed == (1 if record else 0)
    if record:
        assert plan.recorded.names >= 1 and not plan.recorded.at_least
        assert turned.back() == {b"CONTENT OF d/x" * 50}
    else:  # the times lie, and nothing else tells
        with pytest.raises(AssertionError):
            turned.back()


def test_under_whatever_name_it_was_changed(turned):
    """By another link, before and after renames of it and of directories above; moved out and in; a symlink, attributes."""
    outside = turned.base / "outside"
    outside.mkdir()
    turned.promote()
    with turned.changing():
        rewrite(turned.b / "d" / "linked", b"CONTENT OF g" * 50)  # also called g
        rewrite(turned.b / "d" / "x", b"CONTENT OF d/x" * 50)
        os.rename(turned.b / "d" / "x", turned.b / "d" / "e" / "renamed")
        os.rename(turned.b / "d" / "e", turned.base / "outside" / "e")
        rewrite(outside / "e" / "z", b"CONTENT OF d/e/z" * 50)
        os.rename(outside / "e", turned.b / "d" / "came back")
        os.setxattr(turned.b / "h", "user.note", b"here")
        os.rename(turned.b / "d", turned.b / "moved")
        rewrite(turned.b / "moved" / "y", b"CONTENT OF d/y" * 50)
        os.unlink(turned.b / "symlink")
        os.symlink("NOWHERE", turned.b / "symlink")
    plan = turned.seed()
    assert plan.findings == []
    assert turned.back() == {
        text * 50 for text in (b"CONTENT OF g", b"CONTENT OF d/x", b"CONTENT OF d/e/z", b"CONTENT OF d/y")
    }
    assert kept(turned.a) == {}
    assert os.getxattr(turned.a / "h", "user.note") == b"here"
    assert os.readlink(turned.a / "symlink") == "NOWHERE"


def test_an_inode_that_is_used_again_is_another_file(turned):
    turned.promote()
    before = os.stat(turned.b / "h")
    with turned.changing():
        os.unlink(turned.b / "h")
        for number in range(200):
            (turned.b / f"n{number}").write_bytes(b"CONTENT OF H" * 50)
            os.utime(turned.b / f"n{number}", ns=(before.st_atime_ns, before.st_mtime_ns))
    turned.seed()
    turned.back()


def test_changed_on_both_sides_is_a_conflict_by_the_record(turned):
    turned.promote()
    (turned.a / "h").write_bytes(b"there, longer")
    (turned.a / "g").write_bytes(b"there alone")
    os.chmod(turned.a / "d" / "e", 0o711)
    with turned.changing():
        rewrite(turned.b / "h", b"CONTENT OF h" * 50)
        os.chmod(turned.b / "d" / "e", 0o700)
        os.chmod(turned.b / "d" / "e", 0o755)
    plan = turned.seed()
    assert said(plan) == {
        ("h", "changed", True), ("g", "changed", False), ("d/linked", "changed", False), ("d/e", "attributes", True),
    }  # fmt: skip
    turned.back()
    assert kept(turned.a)["h"] == b"there, longer"


def test_names_of_any_bytes_and_a_directory_that_is_gone(turned):
    name = b"\xff\n\t 0/\xfe".replace(b"/", b"")
    base = os.fsencode(turned.a)
    os.mkdir(os.path.join(base, name))
    with open(os.path.join(base, name, name), "wb") as file:
        file.write(b"content")
    turned.complete()
    turned.promote()
    here = os.fsencode(turned.b)
    with turned.changing():
        rewrite(os.path.join(here, name, name), b"CONTENT")
        (turned.b / "d" / "e" / "f").write_bytes(b"soon gone")
        shutil.rmtree(turned.b / "d" / "e")
    turned.seed()
    assert turned.back() == {b"CONTENT"}


def test_what_was_recorded_before_does_not_count(turned):
    with running(turned.b, turned.log) as recorder:
        (turned.b / "before").write_bytes(b"1")
        os.unlink(turned.b / "before")
        position = recorder.barrier()
    turned.promote()
    turned.begun = Recording(term=1, position=position, since_ns=turned.begun.since_ns)
    with turned.changing():
        rewrite(turned.b / "h", b"CONTENT OF h" * 50)
    plan = turned.seed()
    assert plan.recorded.names == 1
    assert turned.back() == {b"CONTENT OF h" * 50}


# ---- counting


def looked(turned, **more):
    with closing(Recorded(turned.log, turned.begun)):
        return Count(turned.log, turned.begun, **more).look()


def test_distinct_names_are_counted_on_and_a_gap_is_told(turned):
    turned.promote()
    count = Count(turned.log, turned.begun)
    assert count.look() == Changes(0, None, at_least=True)
    with running(turned.b, turned.log) as recorder:
        for number in range(30):
            (turned.b / f"n{number % 10}").write_bytes(b"%d" % number)
            if number % 10 == 9:
                recorder.barrier()
        began = time.time()
        found = Count(turned.log, turned.begun).look()
        assert (found.names, found.at_least) == (10, False)
        assert found.since == pytest.approx(began, abs=20)
        count = Count(turned.log, turned.begun)
        assert count.look().names == 10
        (turned.b / "n10").write_bytes(b"more")
        recorder.barrier()
        assert count.look().names == 11
        # Elsewhere on the file system, and known by no name.
        (turned.base / "x").write_bytes(b"1")
        os.link(turned.base / "x", turned.base / "y")
        os.unlink(turned.base / "x")
        recorder.barrier()
        assert count.look().names == 11
        assert Count(turned.log, turned.begun, most=5).look() == Changes(5, found.since, at_least=True)
    (turned.b / "unrecorded").write_bytes(b"nobody saw it")
    with running(turned.b, turned.log) as recorder:
        recorder.barrier()
        assert [reason for _, reason in recorder.states() if reason == "agent down"] == ["agent down"]
        found = count.look()
        assert (found.names, found.at_least) == (11, True)


def test_the_limit_drops_the_oldest_and_it_is_told(turned):
    turned.promote()
    with running(turned.b, turned.log, max_bytes=4096) as recorder:
        for number in range(100):
            (turned.b / f"{number:03}{'n' * 100}").write_bytes(b"1")
            recorder.barrier()
    found = looked(turned)
    assert 0 < found.names < 100
    assert found.at_least
    with ChangelogStore(turned.log) as store:
        last = store.last_closed().number
    turned.begun = Recording(term=1, position=last + 7, since_ns=turned.begun.since_ns)
    assert looked(turned) == Changes(0, None, at_least=True), "another changelog"


def test_a_record_that_makes_no_sense_is_one_that_is_missing(turned):
    """With the right checksums: it shows while records are read."""
    turned.promote()
    count = Count(turned.log, turned.begun)
    assert count.look() == Changes(0, None, at_least=True), "nothing is there yet"
    with turned.changing():
        (turned.b / "made").write_bytes(b"1")
    assert count.look().at_least is False
    with ChangelogStore(turned.log) as store:
        info = [each for each in store.segments() if each.state is State.DATA][-1]
    path = turned.log / f"{info.number:016d}.segment"
    path.unlink()
    writer = SegmentWriter(str(path), info.number, info.start_ns)
    writer._block(segment._RECORDS, [segment._RECORD.pack(1, 99, 1) + b"x"])
    writer.records = 1
    writer.close(info.end_ns)
    assert Count(turned.log, turned.begun).look().at_least is True
    assert turned.seed("plan").recorded.at_least is True
