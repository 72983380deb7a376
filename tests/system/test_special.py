"""Stops in the middle, brokers, Flower, dry runs, one huge directory, adoption, cascades."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from replication.errors import SeamarkError
from scheduler.server_check import check_broker
from tasks.ledger import connect
from tests.conftest import missing, need
from tests.filesystems import available, filesystem
from tests.judge import assert_same, rsync_differences
from tests.redis_server import _redis_of_session, redis_server  # noqa: F401
from tests.system.conftest import Place
from tests.system.harness import SeamarkRun
from tests.system.lines import ended, logged, said
from tests.system.test_bad_input import displaced, tree_of
from tests.system.test_faults import kill_worker_child
from tests.system.trees import every_kind_of_thing, many_small_files

# ---- stopping in the middle


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_stopped_in_mid_transfer_it_goes_on_where_it_was(place, number):
    """``stop`` fails when a process is left behind."""
    p = place.primary
    many_small_files(p, 4000, 40)
    (p / "large").write_bytes(os.urandom(150 << 20))
    with place.run() as run:
        run.wait_for(lambda: run.status.get("files_done", 0) > 0, "the first files")
        began = time.monotonic()
        assert run.stop(number) == 0
        assert time.monotonic() - began < 20
    said(run)
    with place.run() as again:
        time.sleep(0.3)
        assert again.stop(number) in (0, -number, 130)  # before anything has begun
    said(again)
    last = place.once()
    assert last.process.returncode == 0, last.report()
    assert_same(p, place.secondary)


def test_under_nohup_it_outlives_its_terminal(place):
    with place.run(prefix=["nohup"]) as run:
        run.wait_idle()
        os.kill(run.process.pid, signal.SIGHUP)
        (place.primary / "later").write_text("later")
        run.wait_same()
        time.sleep(0.5)
        assert run.status["phase"] in ("idle", "running")
        assert run.stop() == 0
    said(run)


def test_once_interrupted_says_so(place):
    many_small_files(place.primary, 3000, 30)
    with place.run("--once") as run:
        run.wait_for(lambda: run.status.get("phase") == "running", "work")
        assert run.stop(signal.SIGINT) == 130
    said(run)


def test_the_run_itself_killed_leaves_no_process(place):
    many_small_files(place.primary, 500, 5)
    with place.run() as run:
        run.wait_idle()
        below = run.children()
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(5)
        until = time.monotonic() + 15
        while left := [pid for pid in below if os.path.exists(f"/proc/{pid}") and not zombie(pid)]:
            assert time.monotonic() < until, [open(f"/proc/{pid}/cmdline").read() for pid in left]
            time.sleep(0.1)
    (place.primary / "later").write_text("later")
    again = place.once()
    assert again.process.returncode == 0, again.report()
    assert_same(place.primary, place.secondary)


def zombie(pid):
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    return True


# ---- broker, Flower


def test_with_a_broker_of_ones_own(place, redis_server):  # noqa: F811
    many_small_files(place.primary, 50, 5)
    with place.run("--broker", redis_server.url) as run:
        run.wait_idle()
        (place.primary / "later").write_text("later")
        run.wait_same()
        assert run.stop() == 0
    said(run)
    assert_same(place.primary, place.secondary)
    run = place.once("--broker", redis_server.url)
    assert run.process.returncode == 0, run.report()


@pytest.fixture
def shared_broker(tmp_path):
    """URL of a redis-server of this test alone, on a port of loopback, with a password."""
    need("redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = "\n".join(
        [
            f"port {port}",
            "bind 127.0.0.1",
            "requirepass s3cret",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
        ]
    )
    (tmp_path / "redis.conf").write_text(f"{config}\ndir {tmp_path}\n")
    server = subprocess.Popen(
        ["redis-server", tmp_path / "redis.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    url = f"redis://:s3cret@127.0.0.1:{port}/0"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(SeamarkError):
            check_broker(url)
            break
        time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(20)


def test_two_sessions_on_one_broker_share_nothing_else(place, shared_broker, tmp_path):
    """Of one name and on one host, in two state directories: the worst case for queues and keys."""
    (tmp_path / "two").mkdir()
    places = [place, Place(tmp_path / "two")]
    options = ("--name", "photos")
    environment = {"SEAMARK_BROKER": shared_broker}
    with contextlib.ExitStack() as stack:
        for number, one in enumerate(places):
            many_small_files(one.primary, 300, 6, seed=number)
        runs = [stack.enter_context(one.run(*options, env=environment)) for one in places]
        place.runs += places[1].runs
        for run in runs:
            run.wait_idle()
        for number, one in enumerate(places):
            many_small_files(one.primary / "more", 600, 6, seed=10 + number)
        kill_worker_child(runs[0], "worker data")
        os.kill(runs[0].pids("worker control"), signal.SIGKILL)
        for run in runs:
            run.wait_same()
        for number, one in enumerate(places):
            many_small_files(one.primary / "again", 600, 6, seed=20 + number)
        with connect(shared_broker) as client:
            fences = list(client.scan_iter(match="seamark:*:fence"))
            queues = {key.decode() for key in client.scan_iter(match="_kombu.binding.control.*")}
        assert len(fences) == len(queues) == 2, (fences, queues)
        with connect(shared_broker) as client:
            client.flushall()
        for run in runs:
            run.wait_same()
            run.wait_idle()
            assert run.status["failures"] == 0
        for run in runs:
            assert run.stop() == 0
            said(run)
            told = [m["message"] for m in run.of_type("log")]
            assert not any("unexpected" in line or "no session" in line for line in told), told
    for one in places:
        assert_same(one.primary, one.secondary)


def test_a_broker_that_is_away_is_temporary(place):
    ended(place.once("--broker", "redis://127.0.0.1:1/0"), 5, "127.0.0.1")


def test_flower_asks_for_a_password(place):
    many_small_files(place.primary, 20, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with place.run("--flower", str(port)) as run:
        run.wait_idle()
        run.wait_for(lambda: flower_says(port) == 401, "Flower", 40)
        password = (place.state / "flower" / "password").read_text().strip()
        assert flower_says(port, password) == 200
        assert run.stop() == 0
    assert flower_says(port) is None
    said(run)


def flower_says(port, password=None):
    """The status of its answer; None while there is none."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/sessions")
    if password is not None:
        asked.add_header(
            "Authorization", "Basic " + base64.b64encode(f"seamark:{password}".encode()).decode()
        )
    try:
        with urllib.request.urlopen(asked, timeout=20) as page:
            return page.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


# ---- dry runs


def test_a_dry_run_of_what_is_not_there_yet_touches_nothing(place):
    every_kind_of_thing(place.primary)
    before = tree_of(place.primary)
    run = dry(place)
    assert run.process.returncode == 0, run.report()
    assert any("would be created" in m["message"] for m in run.of_type("log"))
    assert tree_of(place.primary) == before
    assert not place.secondary.exists()
    assert not place.state.exists()


def dry(place, *options):
    with place.run("--dry-run", *options) as run:
        run.wait(60)
    said(run)
    return run


def test_a_dry_run_says_what_differs_and_touches_nothing(place):
    many_small_files(place.primary, 60, 4)
    assert place.once().process.returncode == 0
    (place.primary / "d1" / "f1").write_text("changed")
    (place.primary / "d2" / "new").mkdir()
    (place.primary / "d3" / "f3").unlink()
    before = [tree_of(place.primary), tree_of(place.secondary), tree_of(place.state)]
    assert told_dry(place) == {"/", "d1", "d2", "d2/new", "d3"}
    assert [tree_of(place.primary), tree_of(place.secondary), tree_of(place.state)] == before


def told_dry(place):
    """What a dry run says that differs."""
    run = dry(place)
    assert run.process.returncode == 0, run.report()
    lines = [m["message"] for m in run.of_type("log")]
    return {line.removeprefix("differs: ") for line in lines if line.startswith("differs: ")}


def test_a_dry_run_looks_past_what_a_killed_run_left(place):
    """The log of its index is read as it stands, and neither emptied nor removed."""
    many_small_files(place.primary, 60, 4)
    with place.run() as run:
        run.wait_idle()
        run.kill()
    assert (place.secondary / ".seamark" / "index.sqlite-wal").stat().st_size > 0
    (place.primary / "d1" / "f1").write_text("changed")
    before = {**tree_of(place.secondary), **tree_of(place.state)}
    assert told_dry(place) == {"d1"}
    after = {**tree_of(place.secondary), **tree_of(place.state)}
    assert [path for path in {**before, **after} if before.get(path) != after.get(path)] == []


def test_a_dry_run_beside_a_run_that_is_live_disturbs_nothing(place):
    many_small_files(place.primary, 60, 4)
    with place.run() as run:
        run.wait_idle()
        assert told_dry(place) == set()
        (place.primary / "d1" / "f1").write_text("changed")
        run.wait_same()
        assert run.stop() == 0


@pytest.mark.root
def test_a_dry_run_works_on_a_secondary_that_is_mounted_read_only(place):
    if reason := available("ext4"):
        missing(reason)
    many_small_files(place.primary, 60, 4)
    with filesystem("ext4", place.base / "fs", mib=24) as root:
        place.secondary = root / "copy"
        assert place.once().process.returncode == 0
        (place.primary / "d1" / "f1").write_text("changed")
        subprocess.run(["mount", "-o", "remount,ro", root], check=True)
        assert told_dry(place) == {"d1"}


def test_a_dry_run_says_that_the_index_is_lost(place):
    many_small_files(place.primary, 20, 2)
    assert place.once().process.returncode == 0
    for path in (place.secondary / ".seamark").glob("index*"):
        path.unlink()
    before = tree_of(place.secondary)
    run = dry(place)
    assert run.process.returncode == 0, run.report()
    assert logged(run, "has lost its index")
    assert tree_of(place.secondary) == before


def test_a_dry_run_of_a_directory_that_is_not_ours_is_refused(place):
    place.secondary.mkdir()
    (place.secondary / "precious").write_text("mine")
    before = tree_of(place.base)
    ended(dry_unchecked(place), 2, "not empty", "--adopt")
    assert tree_of(place.secondary) == {
        p: v for p, v in before.items() if p.startswith(f"{place.secondary}/")
    }


def dry_unchecked(place):
    with place.run("--dry-run") as run:
        run.wait(60)
    return run


# ---- one huge directory


@pytest.mark.slow
def test_a_hundred_thousand_names_in_one_directory_come_and_go(place):
    huge = place.primary / "huge"
    with place.run() as run:
        run.wait_idle()
        huge.mkdir()
        for number in range(100_000):
            os.mknod(huge / f"name {number}")
        run.wait_same(120, rsync_differences)  # mtree takes minutes for so many in one
        shutil.rmtree(huge)
        run.wait_same(120)
        run.wait_idle(60)
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


@pytest.mark.slow
def test_a_hundred_thousand_names_that_were_there_already(place):
    huge = place.primary / "huge"
    huge.mkdir()
    for number in range(100_000):
        os.mknod(huge / f"name {number}")
    assert place.once(timeout=100).process.returncode == 0
    assert not rsync_differences(place.primary, place.secondary)


# ---- .seamark, our own attributes, cascades


def test_what_is_ours_on_a_primary_is_not_replicated(place):
    """A cascade: the secondary of one session is the primary of the next."""
    first, middle, last = place.primary, place.secondary, place.base / "last"
    many_small_files(first, 40, 4)
    os.setxattr(first / "d0", "user.seamark.something", b"ours")
    os.setxattr(first / "d0" / "f0", "user.seamark.something", b"ours")
    os.setxattr(first / "d0" / "f0", "user.other", b"theirs")
    (first / "d1" / ".seamark").mkdir()
    (first / "d1" / ".seamark" / "file").write_text("only at the root it is ours")
    assert place.once().process.returncode == 0
    assert os.listxattr(middle / "d0") == []
    assert os.listxattr(middle / "d0" / "f0") == ["user.other"]
    assert (middle / "d1" / ".seamark" / "file").is_file()
    with place.run() as one, SeamarkRun(middle, last, place.base / "state2") as two:
        place.runs.append(two)
        two.wait_idle()
        (first / "later").write_text("later")
        two.wait_for(lambda: (last / "later").exists(), "what came later")
        assert one.stop() == 0
        two.wait_idle()
        assert two.stop() == 0
    assert (last / ".seamark" / "owner").read_bytes() != (middle / ".seamark" / "owner").read_bytes()
    assert displaced(last) == []
    for name in ("d0/f0", "d1/.seamark/file", "later"):
        assert (last / name).read_bytes() == (first / name).read_bytes()


def test_what_others_did_on_the_secondary_is_displaced_never_deleted(place):
    many_small_files(place.primary, 40, 4)
    assert place.once().process.returncode == 0
    (place.secondary / "d0" / "foreign").write_text("mine")
    (place.secondary / "taken").write_text("mine too")
    (place.primary / "taken").write_text("ours")
    shutil.rmtree(place.primary / "d0")
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert_same(place.primary, place.secondary)
    with place.run() as run:  # what was in a removed directory is found when limbo is emptied
        run.wait_idle()
        run.wait_for(lambda: kept(place.secondary) == ["mine", "mine too"], "what is not ours", 30)
        assert run.stop() == 0


def kept(secondary):
    return sorted(p.read_text() for p in (secondary / ".seamark" / "displaced").rglob("*") if p.is_file())


def test_a_primary_on_which_nothing_may_be_written_is_replicated(place):
    """The mark cannot be kept on its root then; everything else is as ever."""
    many_small_files(place.primary, 20, 2)
    subprocess.run(["mount", "--bind", place.primary, place.primary], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place.primary], check=True)
        run = place.once()
        assert run.process.returncode == 0, run.report()
        said(run)
        assert_same(place.primary, place.secondary)
    finally:
        subprocess.run(["umount", place.primary], check=True)


def test_what_is_deeper_than_a_path_can_be_long_is_a_failure_and_disturbs_nothing(place):
    """Such a tree is made by descriptors, which anybody can. No judge can look there."""
    name = "n" * 200
    with place.run() as run, contextlib.ExitStack() as stack:
        run.wait_idle()
        agent, at = run.pids("agent"), os.open(place.primary, os.O_RDONLY)
        stack.callback(os.close, at)
        for _ in range(30):
            os.mkdir(name, dir_fd=at)
            at = os.open(name, os.O_RDONLY, dir_fd=at)
            stack.callback(os.close, at)
        run.wait_for(lambda: run.status["failures"] > 0, "a failure")
        for number in range(5):
            os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=at))
            (place.primary / f"elsewhere{number}").touch()
            run.wait_for((place.secondary / f"elsewhere{number}").exists, "what is elsewhere")
        assert run.status["failures"] > 0
        assert run.pids("agent") == agent
        assert run.stop() == 0
