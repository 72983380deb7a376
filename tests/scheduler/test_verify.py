"""verify on whole sessions: it finds and repairs what somebody did on the secondary, and nothing else, while work goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.judge import assert_same, differences
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.scheduler.test_resync import same


def fill(primary):
    for directory in range(6):
        (primary / f"d{directory}").mkdir()
        for name in range(40):
            (primary / f"d{directory}" / f"f{name}").write_bytes(b"%d %d" % (directory, name))
    os.symlink("f1", primary / "d0" / "symlink")
    os.mkfifo(primary / "d0" / "fifo")
    for name in range(4):
        os.link(primary / "d1" / f"f{name}", primary / "d2" / f"linked{name}")
    (primary / "large").write_bytes(os.urandom(40 << 20))


def wound(copy):
    """Damage of every kind; what verify has to say of it, but for the times of directories."""
    (copy / "d0" / "f0").unlink()
    (copy / "d0" / "symlink").unlink()
    os.symlink("f2", copy / "d0" / "symlink")
    (copy / "d0" / "fifo").unlink()
    (copy / "d0" / "fifo").mkdir()
    (copy / "d0" / "new").write_text("foreign")
    (copy / "d0" / "foreign" / "deep").mkdir(parents=True)
    (copy / "d1" / "f20").write_bytes(b"? ?!")
    (copy / "d1" / "f21").write_bytes(b"longer than it was")
    (copy / "d1" / "f22").chmod(0o600)
    os.setxattr(copy / "d1" / "f23", "user.foreign", b"1")
    shutil.rmtree(copy / "d3")
    shutil.copy2(copy / "d2" / "linked1", copy / "aside")
    os.replace(copy / "aside", copy / "d2" / "linked1")
    s = (copy / "large").stat()
    with open(copy / "large", "r+b") as file:
        file.seek(35 << 20)
        file.write(b"?")
    os.utime(copy / "large", ns=(s.st_atime_ns, s.st_mtime_ns))
    shutil.move(copy / "d4" / "f1", copy / "d4" / "moved")
    gone = {"d3": "MISSING"} | {f"d3/f{name}": "MISSING" for name in range(40)}
    return gone | {
        "d0/f0": "MISSING", "d0/symlink": "CONTENT", "d0/fifo": "TYPE", "d0/new": "EXTRA", "d0/foreign": "EXTRA",
        "d1/f20": "CONTENT", "d1/f21": "SIZE", "d1/f22": "META", "d1/f23": "META", "d2/linked1": "LINKS",
        "large": "CONTENT", "d4/f1": "MISSING", "d4/moved": "EXTRA",
    }  # fmt: skip


def verify(node, *words, code=0):  # noqa: F811
    """Its rows, {path: kind}, and its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "seamark", "verify", *map(str, words), "--json"], capture_output=True, text=True,
        env=node.environment, cwd="/", timeout=240, check=False,
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == code, (done.returncode, done.stderr, said[-30:])
    rows = {m["path"]: m["kind"] for m in said if m["message_type"] == "difference"}
    return rows, said[-1]


class Writer:
    """Changes the primary all the time, in directories that nobody wounds."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def _run(self):
        while not self._stop.wait(0.05):
            self.rounds += 1
            path = self.directory / f"w{self.rounds % 20}"
            what = self.rounds % 7
            if what == 5:
                path.unlink(missing_ok=True)
            elif what == 6 and (self.directory / "w1").exists():
                (self.directory / "w1").rename(path)
            else:
                path.write_bytes(b"%d" % self.rounds * (1 + self.rounds % 50))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("detector", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
def test_what_somebody_did_on_the_secondary_is_found_and_repaired(node, detector):  # noqa: F811
    primary, copy = node.session("photos", "--set", f"change_detector={detector}")
    fill(primary)
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: (copy / "large").exists() and same(primary, copy), "the copy")
    with Writer(primary / "live") as writer:
        planted = wound(copy)
        rows, summary = verify(node, "photos", code=9)
        found = {path: kind for path, kind in rows.items() if kind != "UNSETTLED"}
        times = {path for path in found if path not in planted}
        assert times <= {".", "d0", "d1", "d2", "d4"}, found
        assert {found[path] for path in times} <= {"META"}
        assert {path: found[path] for path in planted} == planted
        assert all(path.split("/")[0] == "live" or path == "." for path in rows if path not in found), rows
        assert writer.rounds > 5
        rows, summary = verify(node, "photos", "--repair")
        assert summary["different"] == 0
        assert summary["displaced"] >= 5
        assert sum(summary["mended"].values()) >= len(planted)
    node.wait_for(lambda: same(primary, copy), "the copy")
    assert_same(primary, copy)
    assert sorted(p.name for p in (copy / ".seamark" / "displaced").rglob("new")) == [
        "new"
    ]  # nothing was deleted
    rows, summary = verify(node, "photos")
    assert summary["different"] == summary["unsettled"] == 0
    node.wait_for(
        lambda: "PROVEN                     30 of 30" in node.ok("status", "photos", "--detail"), "the proof"
    )
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_session_that_does_not_run_is_compared_all_the_same(node):  # noqa: F811
    primary, copy = node.session("photos")
    assert "never replicated" in node.command("verify", "photos").stderr
    (primary / "d").mkdir()
    for name in ("a", "b", "d/c"):
        (primary / name).write_text(f"this is {name}")
    os.utime(primary / "a", ns=(0, 10**18))
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: same(primary, copy), "the copy")
    time.sleep(2)
    node.ok("stop", "photos")
    node.wait_for(
        lambda: json.loads(node.ok("status", "photos", "--json"))["pid"] is None, "the session to end"
    )
    time.sleep(3)
    node.wait_for(lambda: "nothing differs" in node.command("verify", "photos").stdout, "a comparison")
    (copy / "d" / "c").write_text("this is d/x")
    (primary / "b").write_text("changed since")  # is not there yet, and nobody says it should be
    rows, summary = verify(node, "photos", "d", code=9)
    assert rows == {"d/c": "CONTENT"}
    assert summary["names"] == 1  # d itself
    rows, _ = verify(node, "photos", code=9)
    assert {path: kind for path, kind in rows.items() if kind != "UNSETTLED"} == {"d/c": "CONTENT"}
    report, lines = node.base / "report", node.base / "combined"
    done = node.command("verify", "photos", "--report", report, "--combined", lines)
    assert done.returncode == 9
    assert "CONTENT    d/c  the content differs" in done.stdout
    assert "DIFFERENT" in report.read_text()
    assert "digest of all digests:" in report.read_text()
    assert {"= a", "= d", "* d/c"} <= set(lines.read_text().splitlines())
    done = node.command("verify", "photos", "--repair")
    assert (done.returncode, "seamark start photos" in done.stderr) == (2, True)
    for words, code, says in [
        (("--subset", "4/3"), 2, "n/t"), (("--quick", "--checksum"), 2, "exclude each other"), (("/etc",), 2, "not in"),
        (("--min-age", "x"), 2, "--min-age"), (("--report", "/nowhere/x"), 1, "cannot be written"),
        (("--report", "-", "--json"), 2, "standard output"),
    ]:  # fmt: skip
        done = node.command("verify", "photos", *words)
        assert (done.returncode, says in done.stderr) == (code, True), done
    assert node.command("verify", "nobody").returncode == 4
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_slice_is_proved_in_its_turn_and_what_is_found_is_told(node):  # noqa: F811
    primary, copy = node.session("photos", "--set", "verify.slices=3", "--set", "verify.at=* * * * *")
    for name in range(30):
        (primary / f"f{name}").write_text(f"this is {name}")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: same(primary, copy), "the copy")
    (copy / "f7").write_text("foreign")

    def status():
        return json.loads(node.ok("status", "photos", "--json"))

    node.wait_for(
        lambda: (status()["proof"] or {}).get("proven") == 3, "three slices to be proved", timeout=300
    )
    node.wait_for(lambda: "differences" in [r["code"] for r in status()["reasons"]], "the reason")
    assert status()["proof"]["differences"] >= 1
    assert "differences-found" in (node.base / "monitor.log").read_text()
    node.ok("config", "photos", "set", "verify.at", "")
    rows, _ = verify(node, "photos", "--repair")
    assert rows["f7"] in ("SIZE", "CONTENT")
    node.wait_for(lambda: status()["healthy"], "it to be healthy")
    node.wait_for(lambda: "differences-gone" in (node.base / "monitor.log").read_text(), "the event")
    assert not differences(primary, copy)
    assert node.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_and_the_secondary_may_go_away_in_the_middle(node, ssh_server, monkeypatch):  # noqa: F811
    """By a key of the session's own; nothing false is said, and it comes to its end."""
    server = ssh_server
    monkeypatch.setitem(node.environment, "HOME", str(server.home))
    (server.home / ".ssh").mkdir(exist_ok=True)
    shutil.copy(server.known_hosts, server.home / ".ssh" / "known_hosts")
    primary = node.base / "photos"
    primary.mkdir()
    copy = node.base / "copy"
    node.ok(
        "create", "photos", primary, f"{server.user}@127.0.0.1:{copy}", "--ssh-port", server.port, "--identity",
        server.identity, "--accept-new-host-key",
    )  # fmt: skip
    for directory in range(20):
        (primary / f"d{directory}").mkdir()
        for name in range(200):
            (primary / f"d{directory}" / f"f{name}").write_bytes(b"%d %d" % (directory, name) * 500)
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: same(primary, copy), "the copy", timeout=200)
    (copy / "d1" / "f1").write_bytes(b"foreign")
    process = subprocess.Popen(
        [sys.executable, "-m", "seamark", "verify", "photos", "--json"], stdout=subprocess.PIPE, text=True,
        env=node.environment, cwd="/",
    )  # fmt: skip
    time.sleep(1.5)
    os.kill(node.pids("photos")["worker data"], signal.SIGKILL)
    server.stop()
    time.sleep(3)
    server.start()
    said = [json.loads(line) for line in process.communicate(timeout=300)[0].splitlines()]
    assert process.returncode == 9, said[-5:]
    rows = {m["path"]: m["kind"] for m in said if m["message_type"] == "difference"}
    rows.pop("d1", None)
    assert rows == {"d1/f1": "SIZE"}
    assert said[-1]["names"] >= 4019
    assert node.stop() == 0
