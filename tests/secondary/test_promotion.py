"""A secondary that is promoted: fenced first, then complete in itself; each step may be interrupted and done again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from replication.remote.answers import SecondaryError
from replication.remote.client import SecondaryClient
from replication.remote.errors import LinkLost
from replication.secondary import promotion
from tests.secondary.primary import REPOSITORY, Far
from tests.secondary.test_shadows import Pair


@contextlib.contextmanager
def agent(root, fault="", start=None, ready=False):
    """An agent that nobody has greeted. ``ready``: it says first that it is."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), SEAMARK_FAULT=fault)
    process = subprocess.Popen(
        [sys.executable, *(start or ["-m", "replication.secondary", "serve", str(root)])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0, cwd="/",
    )  # fmt: skip
    reader = os.fdopen(os.dup(process.stdout.fileno()), "rb", 1 << 20)
    process.stdout.close()
    if ready:
        assert reader.readline() == b"seamark-agent ready\n"
    client = SecondaryClient(reader, process.stdin)
    try:
        yield client
    finally:
        client.close()
        code = process.wait(20)
        client._thread.join(5)
        reader.close()
    assert code == 0, "it ended by an error"


def look(root):
    with agent(root) as client:
        return client.promotion(do="look")


def promote(root, term=1, fault=""):
    with agent(root, fault) as client:
        return client.promotion(do="promote", term=term, by="a test")


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    made.far.close()


def contents(root):
    """Paths and contents of all files but ours."""
    found = {}
    for directory, dirs, files in os.walk(root):
        if directory == str(root):
            dirs.remove(".seamark")
        for name in files:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                continue
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


def test_a_look_changes_nothing_and_says_what_would_be_lost(pair):
    pair.client.call("tell", text="what the primary said")
    pair.client.call("mark", text='{"stime_ns": 5}')
    pair.save(content=b"newer")
    pair.look("f", purge=False)
    before = contents(pair.b)
    facts = look(pair.b)
    assert (facts["mark"], facts["told"], facts["term"]) == ('{"stime_ns": 5}', "what the primary said", 0)
    assert (facts["missing"], facts["limbo"], facts["promoted"]) == (1, 1, None)
    assert contents(pair.b) == before
    pair.client.stat()  # the session is served as before


def test_whoever_replicated_is_refused_from_then_on(pair):
    report = promote(pair.b)["report"]
    assert report == {"restored": 0, "displaced": 0, "missing": 0, "wanted": 0, "torn": [], "others": 0}
    with pytest.raises(LinkLost):
        pair.client.stat()
        pair.client.begin_crawl("later")
    pair.far.close()
    for epoch in (1, 2, 100):
        with pytest.raises(SecondaryError, match=r"promoted to a primary on .*by a test.*\[promoted\]"):
            Far(pair.b, epoch=epoch)
        with pytest.raises(SecondaryError, match="promoted"):
            Far(pair.b, epoch=epoch, holder="other", takes=2)


def test_who_could_not_be_ended_commits_nothing(pair, monkeypatch):
    """An agent of another user, or on another host of a shared file system."""
    monkeypatch.setattr(promotion, "end_others", lambda _agent: None)
    for _ in promotion.promotion(os.fsencode(pair.b), {"do": "promote", "term": 1}, gated=False):
        pass
    (pair.a / "f").write_bytes(b"written by who slept through it")
    with pytest.raises(SecondaryError, match=r"\[stale-epoch\]"):
        pair.client.begin_crawl("later")
    with pytest.raises(SecondaryError, match=r"\[stale-epoch\]"):
        pair.client.observe([pair.primary.look(b"", [b"f"])], crawl="later", limbo_until=1)
    assert contents(pair.b) == {"f": b"old"}


def test_what_waits_in_limbo_is_where_it_last_was(pair):
    (pair.a / "d" / "e").mkdir(parents=True)
    (pair.a / "d" / "e" / "g").write_bytes(b"deep")
    pair.complete()
    os.rename(pair.a / "d" / "e" / "g", pair.a / "elsewhere")
    pair.look("g", directory=b"d/e", purge=False)
    (pair.a / "d" / "e").rmdir()
    pair.look("e", directory=b"d", purge=False)
    os.rename(pair.a / "d", pair.a / "moved")
    pair.look("d", purge=False)
    assert contents(pair.b) == {"f": b"old"}
    report = promote(pair.b)["report"]
    assert contents(pair.b) == {"f": b"old", "d/e/g": b"deep"}
    assert (report["restored"], report["displaced"]) == (3, 0)
    assert os.listdir(pair.b / ".seamark" / "limbo") == []


def test_what_lost_its_name_to_another_is_kept_aside(pair):
    os.rename(pair.a / "f", pair.a / "kept")
    (pair.a / "f").write_bytes(b"")
    pair.look("f", purge=False)  # the new f is there, the old one is in limbo; "kept" was not observed yet
    report = promote(pair.b)["report"]
    assert (report["restored"], report["displaced"]) == (0, 1)
    assert contents(pair.b) == {"f": b""}
    kept = next((pair.b / ".seamark" / "displaced").glob("*/limbo/f"))
    assert kept.read_bytes() == b"old"


def test_a_name_whose_new_content_never_came_keeps_the_old(pair):
    pair.save()
    pair.look("f", purge=False)
    report = promote(pair.b)["report"]
    assert contents(pair.b) == {"f": b"old"}
    assert (report["restored"], report["missing"]) == (1, 0)
    assert os.lstat(pair.b / "f").st_nlink == 1


def test_an_old_version_beside_the_moved_file_is_a_file_of_its_own(pair):
    """f moved to g, and f's new content had not come: both names were links of one inode."""
    os.setxattr(pair.a / "f", "user.note", b"kept")
    os.chmod(pair.a / "f", 0o640)
    pair.complete()
    os.rename(pair.a / "f", pair.a / "g")
    (pair.a / "f").write_bytes(b"never arrives")
    pair.look("f", "g", purge=False)
    f, g = os.lstat(pair.b / "f"), os.lstat(pair.b / "g")
    assert f.st_ino == g.st_ino
    promote(pair.b)
    f, g = os.lstat(pair.b / "f"), os.lstat(pair.b / "g")
    assert f.st_ino != g.st_ino
    assert contents(pair.b) == {"f": b"old", "g": b"old"}
    assert (f.st_mode, f.st_mtime_ns, f.st_nlink, g.st_nlink) == (g.st_mode, g.st_mtime_ns, 1, 1)
    assert os.getxattr(pair.b / "f", "user.note") == b"kept"


def test_staging_is_empty_and_a_file_that_was_written_in_place_is_named(pair):
    (pair.a / "f").write_bytes(b"rewritten, and large")
    pair.look("f")
    gfid = pair.primary.gfid(b"f")
    pair.client.stage("abc", [gfid], in_place=True)
    live = pair.b / ".seamark" / "staging" / "unit.abc" / "new" / gfid.hex()
    words = "import sys, time; f = open(sys.argv[1], 'r+b'); print(flush=True); time.sleep(600)"
    writer = subprocess.Popen([sys.executable, "-c", words, live], stdout=subprocess.PIPE)
    try:
        writer.stdout.readline()
        assert look(pair.b)["torn"] == ["f"]
        assert promote(pair.b)["report"]["torn"] == ["f"]
        assert writer.wait(10) == -9
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert os.listdir(pair.b / ".seamark" / "staging") == []


def test_twice_is_once_and_an_older_term_is_refused(pair):
    pair.save()
    pair.look("f", purge=False)
    first = promote(pair.b, term=3)
    assert promote(pair.b, term=3)["report"] == first["report"]
    for term in (2, 1):
        with pytest.raises(SecondaryError, match=r"in term 3 already.*\[stale-term\]"):
            promote(pair.b, term=term)


@pytest.mark.parametrize("point", ["torn", "back", "copied", "commit", "committed", "journal"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_killed_anywhere_and_run_again(pair, point, after):
    (pair.a / "d").mkdir()
    for name in ("x", "y"):
        (pair.a / "d" / name).write_bytes(name.encode())
    pair.complete()
    os.rename(pair.a / "d", pair.a / "later")
    os.rename(pair.a / "f", pair.a / "g")
    (pair.a / "f").write_bytes(b"never arrives")
    pair.look("d", "f", "g", purge=False)
    pair.far.close()
    died = False
    try:
        promote(pair.b, fault=f"{point}:{after}")
    except LinkLost:
        died = True
    if not died:
        assert point in ("torn", "copied", "back", "journal"), "this point was never reached"
    with pytest.raises(SecondaryError, match="promoted"):
        Far(pair.b, epoch=9)
    promote(pair.b)
    assert contents(pair.b) == {"f": b"old", "g": b"old", "d/x": b"x", "d/y": b"y"}
    assert os.lstat(pair.b / "f").st_ino != os.lstat(pair.b / "g").st_ino
    assert os.listdir(pair.b / ".seamark" / "limbo") == []
    assert os.listdir(pair.b / ".seamark" / "displaced") == []


def test_what_was_never_a_secondary_is_not_promoted(tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(SecondaryError, match="no session has ever replicated"):
        promote(tmp_path)
    assert os.listdir(tmp_path) == ["f"]
