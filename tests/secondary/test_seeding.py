"""An old primary becomes the secondary of the one that was promoted: what is agreed on stays, the rest is displaced."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from replication.failback.agreement import Agreement
from replication.failback.promoted import PromotedRoot, hand_over, promoted_root
from replication.failback.seeding import Seeding, as_line
from replication.remote.answers import Reply, SecondaryError
from replication.remote.client import PROTOCOL
from replication.remote.errors import LinkLost
from replication.secondary import agreeing
from replication.secondary import seeding as far_side
from replication.volume.directory import DirectoryVolume
from tests.filesystems import mounted
from tests.secondary.primary import Far, Primary, differences
from tests.secondary.test_promotion import agent, contents, promote
from tests.secondary.test_shadows import Pair


@contextmanager
def seeding(client, root, scratch, *, session, volume):
    """What is agreed on was told to an old primary."""
    promoted = promoted_root(str(root))
    work = Seeding(client, promoted, session=session, volume=volume, of={"name": "back"})
    with closing(Agreement(scratch / "scratch", promoted)) as agreement:
        work.know(agreement)
        yield work


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
        with (
            agent(self.a, fault) as client,
            seeding(client, self.b, self.base, session="back", volume="vb") as work,
        ):
            return work.commit() if do == "commit" else work.plan()

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


def test_attributes_that_are_set_back_are_told_in_both_versions(turned):
    """Of directories too, whose times alone say nothing: what was made in them changes those."""
    os.setxattr(turned.a / "d", "user.note", b"of before")
    turned.complete()
    turned.promote()
    os.setxattr(turned.a / "d", "user.note", b"never sent")
    subprocess.run(["setfacl", "-m", "u:1001:rx", turned.a / "d" / "e"], check=True)
    os.setxattr(turned.a / "h", "user.file", b"nor this")
    (turned.a / "new").write_bytes(b"in the root, whose times move")
    plan = turned.seed()
    assert said(plan) == {
        ("d", "attributes", False), ("d/e", "attributes", False), ("h", "attributes", False), ("new", "new", False),
    }  # fmt: skip
    found = {f.path: f for f in plan.findings}
    values = [found["d"].there.attributes["user.note"], found["d"].here.attributes["user.note"]]
    assert [base64.b64decode(value) for value in values] == [b"never sent", b"of before"]
    assert "system.posix_acl_access" in found["d/e"].there.attributes
    assert found["d/e"].here.attributes == {}
    assert found["h"].there.attributes == {"user.file": base64.b64encode(b"nor this").decode()}
    assert json.loads(as_line(found["d"]))["there"]["attributes"]["user.note"] == values[0]
    assert turned.back() == set()
    assert os.getxattr(turned.a / "d", "user.note") == b"of before"


def test_attributes_that_changed_on_both_sides_are_a_conflict(turned):
    turned.promote()
    os.chmod(turned.a / "d", 0o700)
    os.chmod(turned.b / "d", 0o711)
    (turned.b / "d" / "e" / "made").write_bytes(b"its times move, and nothing else of it")
    os.setxattr(turned.a / "d" / "e", "user.note", b"there alone")
    plan = turned.seed()
    assert said(plan) == {("d", "attributes", True), ("d/e", "attributes", False)}
    found = {f.path: f for f in plan.findings}
    assert (found["d"].there.mode, found["d"].here.mode) == ("0700", "0711")
    turned.back()


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
    with agent(turned.b) as client, seeding(client, turned.a, turned.base, session="s", volume="v") as work:
        plan = work.commit()
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


# ---- what looks as it did, and is not


def test_content_that_hides_behind_its_size_and_time_is_kept_aside(turned):
    """Written in place on the old primary, with the mtime put back."""
    turned.promote()
    before = os.stat(turned.a / "h")
    with open(turned.a / "h", "r+b") as file:
        file.write(b"NEVER SENT")
    os.utime(turned.a / "h", ns=(before.st_atime_ns, before.st_mtime_ns))
    plan = turned.seed()
    assert ("h", "changed", False) in said(plan)
    assert turned.back() == {b"content of h" * 50}
    assert kept(turned.a)["h"].startswith(b"NEVER SENT")


def test_content_that_the_new_primary_lost_in_a_crash_destroys_nothing(turned):
    """A power cut there: what had come since its last sync is wanted again, and may be zeros of the right size and time."""
    turned.far.close()
    before = os.stat(turned.b / "h")
    with open(turned.b / "h", "r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(turned.b / "h", ns=(before.st_atime_ns, before.st_mtime_ns))
    with sqlite3.connect(turned.b / ".seamark" / "index.sqlite") as index:
        index.execute("UPDATE inode SET dirty = 1 WHERE mode & 61440 = 32768")
    index.close()
    turned.promote()
    turned.seed()
    turned.back()
    assert kept(turned.a)["h"] == b"content of h" * 50


def test_symlinks_and_special_files_are_what_they_say_not_what_number_they_have(turned):
    os.mkfifo(turned.a / "fifo")
    turned.complete()
    turned.promote()
    for root, target in ((turned.a, "there"), (turned.b, "here")):
        os.unlink(root / "symlink")
        os.symlink(target, root / "symlink")
    os.unlink(turned.b / "fifo")
    os.mkfifo(turned.b / "fifo", 0o600)
    plan = turned.seed()
    assert {f.path for f in plan.findings if f.conflict} == {"symlink"}
    turned.back()
    assert os.readlink(turned.a / "symlink") == "here"


def test_attributes_that_changed_where_the_clock_was_set_back_go_back(turned, monkeypatch):
    turned.promote()
    monkeypatch.setattr(PromotedRoot, "clock_was_set", lambda _: True)
    os.setxattr(turned.b / "h", "user.new", b"here")
    owner = json.loads((turned.b / ".seamark" / "owner").read_text())
    owner["promoted"].update(since_ns=time.time_ns() + 10**12, done_ns=time.time_ns() + 10**12)
    (turned.b / ".seamark" / "owner").write_text(json.dumps(owner))
    turned.seed()
    assert turned.back() == set()
    assert os.getxattr(turned.a / "h", "user.new") == b"here"


class Direct:
    """The far side within this process."""

    def __init__(self, root):
        self.root, self.work = root, None

    def call(self, op, **said):
        if op == "seed_begin":
            self.work = far_side.Seeding(os.fsencode(self.root), said, False)
            return Reply({})
        return Reply(far_side.STEPS[op](self.work, said))


@pytest.mark.parametrize("restarted", [True, False])
def test_what_a_crash_may_have_taken_from_the_old_primary_is_proved(turned, monkeypatch, restarted):
    """It restarted since: of what was written shortly before, the ctime may be on its disk and the content not."""
    with open(turned.a / "h", "r+b") as file:
        file.write(b"LOST IT")
    os.utime(turned.a / "h", ns=(0, os.stat(turned.b / "h").st_mtime_ns))
    ctime = os.stat(turned.a / "h").st_ctime_ns
    with sqlite3.connect(turned.b / ".seamark" / "index.sqlite") as index:
        index.execute(
            "UPDATE inode SET pctime = ? WHERE id = (SELECT inode FROM entry WHERE name = CAST('h' AS BLOB))",
            (ctime,),
        )
        index.execute("INSERT OR REPLACE INTO meta VALUES('mark', ?)", (json.dumps({"stime_ns": ctime + 1}),))
    index.close()
    turned.promote()
    if restarted:
        clock = SimpleNamespace(
            clock_gettime_ns=lambda _: 0, CLOCK_BOOTTIME=7, time_ns=time.time_ns, monotonic=time.monotonic
        )
        monkeypatch.setattr(agreeing, "time", clock)
    client = Direct(turned.a)
    with seeding(client, turned.b, turned.base, session="back", volume="vb") as work:
        assert said(work.plan()) == ({("h", "changed", False)} if restarted else set())
    client.work.close()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"new\nline", b"tab\t and more"])
def test_names_of_any_bytes_are_found_and_told(turned, name):
    base = os.fsencode(turned.a)
    with open(os.path.join(base, b"d", name), "wb") as file:
        file.write(b"replicated")
    turned.complete()
    turned.promote()
    with open(os.path.join(base, b"d", name), "ab") as file:
        file.write(b", and more")
    os.rename(os.path.join(base, b"d"), os.path.join(base, name))
    with open(os.path.join(base, name + b"2"), "wb") as file:
        file.write(b"unsent")
    plan = turned.seed()
    lines = [as_line(finding, term=1) for finding in plan.findings]
    assert {json.loads(line)["path"] for line in lines} >= {os.fsdecode(name), os.fsdecode(name + b"2")}
    turned.back()


def test_a_file_system_that_is_mounted_below_is_left_alone(turned):
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    turned.promote()
    (turned.a / "mounted").mkdir()
    with mounted("tmpfs", "tmpfs", turned.a / "mounted", "size=1m"):
        (turned.a / "mounted" / "theirs").write_bytes(b"theirs")
        plan = turned.seed()
        assert plan.findings == []
        assert (turned.a / "mounted" / "theirs").read_bytes() == b"theirs"


def test_what_cannot_be_displaced_is_named_and_the_rest_is_done(turned):
    if os.geteuid() != 0 or subprocess.run(["chattr", "+i", turned.a / "h"], check=False).returncode:
        pytest.skip("needs root, and a file system with immutable files")
    turned.promote()
    subprocess.run(["chattr", "-i", turned.a / "h"], check=True)
    (turned.a / "h").write_bytes(b"never sent")
    (turned.a / "new").write_bytes(b"nor this")
    subprocess.run(["chattr", "+i", turned.a / "h"], check=True)
    try:
        plan = turned.seed()
        assert [path for path, _ in plan.stuck] == ["h"]
        assert plan.displaced == 1
        assert (turned.a / "h").read_bytes() == b"never sent"
    finally:
        subprocess.run(["chattr", "-i", turned.a / "h"], check=True)


def test_what_is_written_while_it_is_compared_stops_it(turned):
    turned.promote()
    with (
        agent(turned.a) as client,
        seeding(client, turned.b, turned.base, session="back", volume="vb") as work,
    ):
        work.plan()
        (turned.a / "h").write_bytes(b"written now")
        with pytest.raises(SecondaryError, match="1 files were written to while they were compared"):
            client.call("seed_commit", of={})
    assert json.loads((turned.b / ".seamark" / "owner").read_text())["promoted"]
    assert not (turned.a / ".seamark" / "owner").exists()
    assert turned.seed().displaced == 1
    assert kept(turned.a)["h"] == b"written now"


def test_who_was_quicker_meanwhile_is_not_overwritten(turned):
    turned.promote()
    with (
        agent(turned.a) as client,
        seeding(client, turned.b, turned.base, session="back", volume="vb") as work,
    ):
        work.plan()
        turned.seed()
        promote(turned.a, term=2)
        with pytest.raises(SecondaryError, match=r"somebody else .*\[busy\]"):
            client.call("seed_commit", of={})
    assert json.loads((turned.a / ".seamark" / "owner").read_text())["promoted"]["term"] == 2


def test_a_key_of_a_session_alone_makes_nothing_its_secondary(turned, monkeypatch):
    """Unless the promoted side has handed its role over, on its own host."""
    turned.promote()
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", f"seamark-agent {PROTOCOL} {os.fsencode(turned.a).hex()}")
    start = ["-m", "replication.secondary", "gate", "back", os.fsencode(turned.a).hex()]
    with (
        agent(turned.a, start=start, ready=True) as client,
        pytest.raises(SecondaryError, match=r"own key may not make a secondary.*\[permission\]"),
    ):
        client.call("seed_begin", session="back", volume="vb", term=9)
    turned.seed()
    promote(turned.a, term=2)
    hand_over(str(turned.b))  # it was promoted in term 1, and is the secondary from here on
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", f"seamark-agent {PROTOCOL} {os.fsencode(turned.b).hex()}")
    start = ["-m", "replication.secondary", "gate", "s", os.fsencode(turned.b).hex()]
    with (
        agent(turned.b, start=start, ready=True) as client,
        seeding(client, turned.a, turned.base, session="s", volume="v") as work,
    ):
        assert work.commit().findings == []


def test_a_primary_that_was_promoted_tells_its_term(turned):
    """So that a new secondary of it, promoted one day, is above it."""
    with Far(turned.base / "fresh", of={"term": 4}):
        pass
    assert json.loads((turned.base / "fresh" / ".seamark" / "owner").read_text())["term"] == 4
    with pytest.raises(SecondaryError, match="in term 4 already"):
        promote(turned.base / "fresh", term=4)


def test_a_tree_in_use_is_scanned(turned, monkeypatch):
    turned.promote()
    real = DirectoryVolume.open_dir_unchecked

    def gone(volume, path):
        if path == b"d":
            os.rename(turned.b / "d", turned.b / "renamed meanwhile")
        return real(volume, path)

    monkeypatch.setattr(DirectoryVolume, "open_dir_unchecked", gone)
    turned.seed()
    monkeypatch.undo()
    turned.back()
