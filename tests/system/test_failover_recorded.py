"""After a failover what is changed on the new primary is recorded, and failback goes by that as well as by times."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from replication import sharing
from replication.session import SessionDir
from scheduler.monitor_client import ask_monitor
from scheduler.reports import as_json, session_report
from tests.conftest import need
from tests.judge import assert_same
from tests.secondary.test_recorded import rewrite, set_back
from tests.system.test_cascade import differing
from tests.system.test_failover import NAME, Pair, kept

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def pair(tmp_path):
    need("rsync", "mtree", "sshd")
    made = Pair(tmp_path, files=60)
    yield made
    made.close()


def report(site, name=NAME):
    """What `status --json` prints; asked in this process, which takes no start of a Python."""
    return as_json(session_report(str(site.state), name))


def names(site, count, name=NAME):
    site.wait_for(
        lambda: report(site, name)["recorded"]["names"] >= count,
        lambda: f"{count} names: {report(site, name)}",
    )


@pytest.mark.root
def test_what_only_the_record_knows_goes_back(pair):
    """The clock is set back while the new primary is written to: size, mtime and ctime say that nothing was changed."""
    a, b = pair.a, pair.b
    a.kill()
    (a.root / "unsent").write_bytes(b"never sent")
    b.monitor()
    said = pair.failover()
    assert f"session {NAME} records from now on what is changed there" in said, said
    set_back(b.root)
    for number in range(1, 8):
        rewrite(b.root / "d0000" / f"f{number}", os.urandom((b.root / "d0000" / f"f{number}").stat().st_size))
    rewrite(b.root / "d0000" / "link0", os.urandom((b.root / "d0000" / "f0").stat().st_size))
    names(b, 8)
    found = report(b)
    assert (found["status"], found["healthy"], found["recorded"]["at_least"]) == ("Recording", True, False)
    shown = b.ok("status", NAME)
    assert "8 names were changed since" in shown and f"seamark failback {NAME}" in " ".join(shown.split())

    # The old primary cannot be reached yet: what is known is told.
    words = ("failback", b.root, "--to", a.address, *a.way())
    a.ssh.stop()
    done = b.command(*words, "--dry-run")
    assert done.returncode not in (0, 9), done
    assert "0 new, 8 changed, 0 removed" in done.stdout and "8 names were changed since" in done.stdout, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    a.ssh.start()
    done = b.command(*words, "--dry-run")
    assert done.returncode == 0 and "8 names were changed since" in done.stdout, done
    assert "127.0.0.1" not in b.ok("config", NAME), "a plan writes nothing down"

    said = pair.failback()
    assert "1 objects were displaced" in said
    assert b.ok("list").split()[0] == NAME and len(b.ok("list").splitlines()) == 1
    pair.in_sync(b)
    assert_same(b.root, a.root)
    assert kept(a.root) == {"unsent": b"never sent"}
    assert report(b)["recorded"] is None
    (b.root / "followed").write_bytes(b"live")
    b.wait_for_file(a.root / "followed", "live")
    b.ok("failback", NAME, "--switch", "--yes", "--timeout", "100s")

    # And once more, with the session of then.
    a.monitor()
    a.wait_for(lambda: a.status()["healthy"], lambda: f"a to be at work: {a.status()}", 100)
    pair.in_sync(a)
    a.kill()
    assert "records from now on" in pair.failover()
    assert json.loads((b.state / "sessions" / NAME / "state.json").read_text())["recording"]["term"] == 3
    set_back(b.root)
    rewrite(b.root / "d0000" / "f9", os.urandom((b.root / "d0000" / "f9").stat().st_size))
    names(b, 1)
    b.ok("failback", b.root, "--yes")
    pair.in_sync(b)
    assert_same(b.root, a.root)


@pytest.mark.slow
@pytest.mark.root
def test_where_no_monitor_runs_it_begins_with_one_and_the_verbs_know_the_session(pair):
    a, b = pair.a, pair.b
    a.ok("stop", NAME)
    assert "seamark failover" in a.ok("failover", NAME, "--yes").splitlines()[-1]  # from elsewhere
    assert not (b.state / "sessions").exists()
    b.ok("failover", b.root, "--no-record")
    assert not (b.state / "sessions").exists()
    # It goes on where it was cut off.
    said = b.ok("failover", b.root)
    assert f"session {NAME} records what is changed there once a monitor runs here" in said, said
    found = report(b)
    assert (found["status"], found["healthy"]) == ("Faulty", False) and "no monitor" in found["reason"]
    (b.root / "before").write_text("nobody records")
    time.sleep(11)  # the recording of a promotion begins sooner
    b.monitor()
    b.wait_for(lambda: report(b)["healthy"], lambda: f"it to record: {report(b)}")
    (b.root / "after").write_text("recorded")
    names(b, 1)
    assert report(b)["recorded"]["at_least"] is True
    place = SessionDir(b.state, NAME)
    assert sharing.needs(sharing.volume_of(place)).close_after_ms == 5000
    for words, code, said in (
        (["pause", NAME], 2, "is recording, not started"),
        (["delete", NAME], 2, "is recording: stop it first"),
        (["start", NAME, "--adopt"], 2, "would overwrite what its old primary never sent"),
        (["failback", NAME, "--switch", "--yes", "--to", a.address, *a.way()], 2, "does not follow yet"),
        (["failback", NAME, "--name", "other"], 2, "replicates back to"),
    ):
        done = b.command(*words)
        assert done.returncode == code and said in done.stderr, (words, done)
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "is recording already" in b.ok("start", NAME)
    assert "records from now on" in b.ok("failover", b.root)
    assert b.ok("list").count("\n") == 1

    b.ok("stop", NAME)
    b.wait_for(lambda: not _recorded_now(b), "nothing to record")
    assert report(b)["status"] == "Stopped"
    assert "is stopped: seamark start" in b.ok("failover", b.root)
    b.ok("start", NAME)
    b.wait_for(lambda: report(b)["status"] == "Recording", "it to record again")
    names(b, 1)

    # All of the state is lost: the failover is run again.
    b.stop(signal.SIGTERM)
    for name in ("sessions", "volumes", "config"):
        os.rename(b.state / name, b.base / f"lost {name}")
    b.monitor()
    b.wait_for(lambda: ask_monitor(str(b.state), "look") is not None, "the monitor")
    assert "records from now on" in b.ok("failover", b.root)
    (b.root / "after").write_text("recorded again")
    names(b, 1)
    assert report(b)["recorded"]["at_least"] is True
    pair.failback()
    pair.in_sync(b)
    assert_same(b.root, a.root)
    b.ok("stop", NAME)
    assert "started" in b.ok("start", NAME)


def _recorded_now(site):
    pids = json.loads((site.state / "monitor" / "pids.json").read_text())
    return any(name.startswith("agent ") for name in pids)


@pytest.mark.slow
@pytest.mark.root
def test_a_chain_shares_its_changelog_and_a_monitor_that_dies_leaves_a_gap(pair):
    a, b = pair.a, pair.b
    b.ok("create", "onwards", b.root, b.base / "c")
    b.ok("start", "onwards")
    b.monitor()
    pair.in_sync(b, "onwards")
    a.kill()
    said = pair.failover()
    assert f"session {NAME} records from now on" in said, said
    assert report(b)["recorded"] == {
        "names": 0,
        "since": pytest.approx(time.time(), abs=60),
        "at_least": False,
    }
    for more in ([], ["--switch"]):
        done = b.command("failback", "onwards", "--yes", *more)
        assert done.returncode == 2 and "session onwards goes on to" in done.stderr, done
    places = [SessionDir(b.state, name) for name in (NAME, "onwards")]
    assert len({os.readlink(place.changelog) for place in places}) == 1
    set_back(b.root)
    rewrite(b.root / "d0000" / "f3", os.urandom((b.root / "d0000" / "f3").stat().st_size))
    names(b, 1)
    pair.in_sync(b, "onwards")
    b.ok("stop", "onwards")
    names(b, 1)  # what the other one has applied is kept
    b.kill()
    (b.root / "d0000" / "f4").write_bytes(b"nobody saw it")
    b.monitor()
    b.wait_for(lambda: report(b)["recorded"]["at_least"], lambda: f"a gap: {report(b)}")
    pair.failback()
    pair.in_sync(b)
    assert differing(b.root, a.root) == []
    b.ok("start", "onwards")
    pair.in_sync(b, "onwards")


@pytest.mark.root
def test_where_nothing_can_be_written_the_failover_succeeds_and_says_so(pair):
    a, b = pair.a, pair.b
    a.kill()
    b.state.mkdir(exist_ok=True)
    (b.state / "volumes").write_text("in the way")
    done = b.command("failover", b.root, "--yes", "--json")
    assert done.returncode == 0, done
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["message_type"] for line in lines] == ["prospect", "promoted", "recording"]
    assert lines[-1]["recording"] is False and "is not recorded" in lines[-1]["says"]
    assert done.stderr == ""
    os.unlink(b.state / "volumes")
    b.monitor()
    # The monitor that was started just now needs a moment to be there.
    b.wait_for(lambda: "records from now on" in b.ok("failover", b.root), "it to be recorded")
    assert len(b.ok("list").splitlines()) == 1
