"""Snapshots of a secondary on real btrfs and XFS: what they hold, how long they are kept, and what is left of one that was killed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from replication.errors import SeamarkError
from replication.remote.answers import SecondaryError
from replication.secondary.homes import Home
from replication.secondary.retention import Retention
from tests.conftest import need
from tests.judge import assert_same, differences
from tests.secondary.primary import Far, Primary
from tests.secondary.roots import KINDS, METHODS, root_of
from tests.system.trees import every_kind_of_thing

MARK = json.dumps({"stime_ns": 1_700_000_000_000_000_000, "front": 7, "epoch": 1, "written": 0})
HOUR = 3600 * 10**9


def until_done(client, op, **words):
    while True:
        answer = client.call(op, **words).header
        if answer["done"]:
            return answer


def take(client, keep="24h hourly", mark=MARK):
    return until_done(client, "snapshot", keep=keep, mark=mark)["snapshot"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def root(kind, tmp_path):
    with root_of(kind, tmp_path / "fs") as made:
        yield made


def path_of(root, snapshot):
    return root / ".seamark" / "snapshots" / snapshot["name"] / "root"


@pytest.mark.root
def test_a_snapshot_is_the_secondary_of_that_moment_and_complete_in_itself(kind, root):
    primary = root.parent / "primary"
    primary.mkdir()
    every_kind_of_thing(primary)
    (primary / "sparse").unlink()  # too large for one request
    side = Primary(primary)
    with Far(root) as client:
        side.crawl(client)
        assert_same(primary, root)
        before = os.stat(root)
        found = take(client)
        assert found["method"] == METHODS[kind]
        assert found["mark"] == {"stime_ns": 1_700_000_000_000_000_000, "front": 7, "epoch": 1}
        assert found["completed"] == {"restored": 0, "displaced": 0, "missing": 0, "wanted": 0, "torn": []}
        assert os.stat(root).st_mtime_ns == before.st_mtime_ns
        copy = path_of(root, found)
        assert_same(primary, copy)
        # What happens from now on does not reach it.
        (primary / "file").write_bytes(b"another content")
        (primary / "big").unlink()
        side.crawl(client, stamp=2)
        assert_same(primary, root)
        assert (copy / "file").read_bytes() == b"content"
        assert (copy / "big").stat().st_size == 9_000_000
        (kept,) = client.call("snapshots").header["items"]
        assert kept["name"] == found["name"]
        assert kept["until_ns"] == found["taken_ns"] + 24 * HOUR
        assert client.check() == []
        # Nor does what is done in a view of it.
        with Far(root, read_only=True, epoch=0) as other:
            view = until_done(other, "view", method="auto", snapshot=found["name"])
            assert (view["method"], view["frozen"]) == (METHODS[kind], True)
            path = Path(view["path"])
            assert (path / "file").read_bytes() == b"content"
            (path / "file").write_bytes(b"changed")
            with pytest.raises(SecondaryError):
                until_done(other, "view", method="auto", snapshot=found["name"])
        assert (copy / "file").read_bytes() == b"content"
        with pytest.raises(SecondaryError, match="no snapshot"):
            until_done(client, "view", method="auto", snapshot="../snapshots")
    if kind == "btrfs subvolume":
        with pytest.raises(OSError, match="Read-only"):
            (copy / "new").touch()


@pytest.mark.root
def test_the_index_of_a_snapshot_speaks_of_the_snapshot(kind, root):
    """A copy of it is a secondary with which the session goes on: nothing is sent again, index and tree agree."""
    primary = root.parent / "primary"
    primary.mkdir()
    every_kind_of_thing(primary)
    (primary / "sparse").unlink()  # too large for one request
    side = Primary(primary)
    with Far(root) as client:
        side.crawl(client)
        (primary / "dir" / "deep").rename(primary / "deep")
        answer = client.observe([side.look(b"dir", [b"deep"])], crawl=None, position=1, limbo_until=5)
        assert answer.need == []
        assert client.stat()["limbo"] == 1  # its new name was not looked at yet
        found = take(client)
        assert found["completed"]["restored"] == 1
        copy = path_of(root, found)
        assert (copy / "dir" / "deep" / "deeper").is_dir()
        assert client.stat()["limbo"] == 1
    writable = root.parent / "writable"
    if kind == "btrfs subvolume":
        subprocess.run(
            ["btrfs", "subvolume", "snapshot", copy, writable], check=True, stdout=subprocess.DEVNULL
        )
    else:
        copy.rename(writable)
    with Far(writable, epoch=2) as client:
        assert client.check() == []
        answer = client.observe(
            [side.look(b"", [b"deep"])], crawl=None, position=1, limbo_until=5,
        )  # fmt: skip
        assert answer.need == []
        side.crawl(client, stamp=6)
        assert client.check() == []
        assert_same(primary, writable)


@pytest.mark.root
def test_while_others_write_it_is_one_moment(kind, root):
    """Two files are always changed in one transaction: a snapshot never has one without the other."""
    primary = root.parent / "primary"
    for number in range(300):
        (primary / f"d{number}").mkdir(parents=True)
        (primary / f"d{number}" / "f").write_bytes(b"x" * 3000)
    (primary / "d0" / "pair").write_bytes(b"%06d" % 0)
    (primary / "d299" / "pair").write_bytes(b"%06d" % 0)
    side = Primary(primary)
    with Far(root) as client:
        side.crawl(client)
        stop = threading.Event()
        rounds = 0

        def write():
            nonlocal rounds
            with Far(root) as other:
                other.begin_crawl("w")
                while not stop.is_set():
                    rounds += 1
                    for name in ("d0", "d299"):
                        new = primary / name / "new"
                        new.write_bytes(b"%06d" % rounds)
                        new.rename(primary / name / "pair")
                    listings = [side.look(name, [b"pair"]) for name in (b"d0", b"d299")]
                    answer = other.observe(
                        listings, crawl="w", limbo_until=rounds, content=side.along(listings)
                    )
                    side.send(other, answer)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            copies = []
            while len(copies) < 3 or rounds < 6:
                time.sleep(0.3)
                copies.append(path_of(root, take(client, keep="1h all")))
        finally:
            stop.set()
            writer.join()
        for copy in copies:
            one, other = ((copy / name / "pair").read_bytes() for name in ("d0", "d299"))
            assert one == other
            assert len(list(copy.iterdir())) == 301  # and .seamark


@pytest.mark.root
@pytest.mark.parametrize("seed", [1, 2])
def test_the_second_pass_finds_whatever_the_first_one_missed(tmp_path, seed):
    """Everything is changed between the two passes, in every way."""
    from replication.secondary.mirror import Mirror

    draw = random.Random(seed)
    print("seed", seed)
    with root_of("xfs", tmp_path / "fs") as root:
        source, target, links = root / "source", root / "target", root / "links"
        for directory in (source, target, links):
            directory.mkdir()
        every_kind_of_thing(source)
        (source / "stays").mkdir()
        os.setxattr(source / "stays", "user.was", b"1")
        subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", source / "stays"], check=True)
        fds = [os.open(path, os.O_RDONLY) for path in (source, target, links)]
        mirror = Mirror(fds[2], os.fsencode(root / "table"), share=True)
        steps = mirror.run(*fds[:2], final=False)
        for _ in range(draw.randrange(60)):
            next(steps, None)
        (source / "dir").rename(source / "moved")
        (source / "file").write_bytes(b"longer than it was")
        os.link(source / "big", source / "one more")
        (source / "symlink").unlink()
        (source / "symlink").mkdir()
        (source / "empty dir").rmdir()
        os.symlink("x", source / "empty dir")
        (source / "fifo").rename(source / "was a fifo")
        os.removexattr(source / "moved", "user.dir")
        for _ in steps:
            pass
        for name in draw.sample(sorted(set(os.listdir(source)) - set(os.listdir(source / "moved"))), 5):
            if name != "moved":
                os.rename(source / name, source / "moved" / name)
        (source / "new").write_bytes(b"new")
        os.removexattr(source / "stays", "user.was")
        subprocess.run(["setfacl", "-k", source / "stays"], check=True)
        (source / "stays" / "new").write_bytes(b"new")
        os.chmod(source / "moved", 0o711)
        for _ in mirror.run(*fds[:2], final=True):
            pass
        mirror.close()
        for name in os.listdir(
            links
        ):  # of files with several names, which have one more until the copy is whole
            (links / name).unlink()
        assert differences(source, target) == []
        for fd in fds:
            os.close(fd)


@pytest.mark.root
def test_what_a_killed_one_leaves_is_swept(kind, root):
    primary = root.parent / "primary"
    for number in range(40):
        (primary / f"d{number}").mkdir(parents=True)
        for name in range(50):
            (primary / f"d{number}" / f"f{name}").write_bytes(b"x")
    far = Far(root)
    Primary(primary).crawl(far.client)
    took = take(far.client)
    for delay in (0.0, 0.05, 0.1, 0.2):
        future = far.client.submit("snapshot", keep="24h hourly", mark=MARK)
        time.sleep(delay)
        far.process.kill()
        with contextlib.suppress(SeamarkError):  # or it was done already
            future.result(10)
        far.close()
        far = Far(root, epoch=2)
        wait_for_sweep(root)
    names = {r["name"] for r in far.client.call("snapshots").header["items"]}
    assert took["name"] in names
    assert {p.name for p in (root / ".seamark" / "snapshots").iterdir()} == names
    for name in names:
        assert_same(primary, root / ".seamark" / "snapshots" / name / "root")
    far.close()


@contextlib.contextmanager
def slow(pid, call, ms):
    """Whenever this process makes this call it takes so long."""
    need("strace")
    words = ["-e", f"trace={call}", "-e", f"inject={call}:delay_enter={ms}ms", "-o", "/dev/null"]
    with subprocess.Popen(["strace", "-f", "-qq", *words, "-p", str(pid)]) as tracer:
        while "\nTracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
        try:
            yield
        finally:
            tracer.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(10)
            tracer.kill()


@pytest.mark.root
def test_whoever_asked_for_one_and_is_gone_holds_nobody_up(tmp_path):
    """A primary that dies while its snapshot is made, without its connection ending: others are served, and a promotion works."""
    with root_of("xfs", tmp_path / "fs") as root:
        primary = root.parent / "primary"
        for number in range(150):
            (primary / f"d{number}").mkdir(parents=True)
        with Far(root) as client:
            Primary(primary).crawl(client)
        far = Far(root, epoch=2)
        with slow(far.process.pid, "utimensat", ms=20), concurrent.futures.ThreadPoolExecutor() as pool:
            asked, held = 0, False
            while not held:
                assert not far.client.call("snapshot", keep="1h all", mark=MARK).header["done"]
                asked += 1
                held = is_locked(root)
            assert asked > 1
            # Nothing more is heard of it from now on.
            try:
                other = pool.submit(Far, root, epoch=3).result(60)
            finally:
                far.process.kill()
        far.close()
        with other as client:
            assert client.check() == []


def is_locked(root):
    with open(root / ".seamark" / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_for_sweep(root):
    until = time.monotonic() + 20
    while any(p.name.startswith(("new.", "gone.")) for p in (root / ".seamark" / "snapshots").iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.root
def test_without_root(kind, root):
    """Of a user's own: what its modes forbid it to read is copied all the same, and looks as before."""
    primary = root.parent / "primary"
    primary.mkdir()
    (primary / "open").write_text("open")
    os.link(primary / "open", primary / "another name")
    os.symlink("open", primary / "symlink")
    os.mkfifo(primary / "fifo")
    (primary / "closed").mkdir()
    (primary / "closed" / "file").write_text("inside")
    (primary / "locked").write_text("locked")
    os.link(primary / "locked", primary / "locked too")
    for path, mode in (("locked", 0), ("closed/file", 0o200), ("closed", 0)):
        (primary / path).chmod(mode)
    os.chown(root, 1234, 1234)
    for path in list(root.parents)[:-2]:
        path.chmod(path.stat().st_mode | 0o011)  # pytest keeps others out
    side = Primary(primary)
    with Far(root, user=1234) as client:
        side.crawl(client)
        found = take(client)
        copy = path_of(root, found)
        assert (copy / "closed" / "file").read_text() == "inside"
        assert_same(root, copy)
        (primary / "closed" / "file").write_text("another")
        side.crawl(client, stamp=2)
        second = take(client)
        assert_same(root, path_of(root, second))
        until_done(client, "snapshot_remove", name=found["name"], force=True)
        assert not (root / ".seamark" / "snapshots" / found["name"]).exists()


@pytest.mark.root
def test_how_long_they_are_kept_was_said_when_they_were_taken(tmp_path):
    with root_of("xfs", tmp_path / "fs") as root, Far(root) as client:
        first = take(client, keep="30d daily")
        second = take(client, keep="1m all")
        # Whoever says now that nothing is to be kept has no say in the first one.
        third = take(client, keep="1m all")
        directory = root / ".seamark" / "snapshots"
        for found in (first, second):  # an hour ago
            record = directory / found["name"] / "record"
            said = json.loads(record.read_text())
            said["taken_ns"] -= HOUR
            record.write_text(json.dumps(said))
        fourth = until_done(client, "snapshot", keep="1m all", mark=MARK)
        assert fourth["removed"] == [second["name"]]
        left = [r["name"] for r in client.call("snapshots").header["items"]]
        assert left == [first["name"], third["name"], fourth["snapshot"]["name"]]
        with pytest.raises(SecondaryError) as caught:
            until_done(client, "snapshot_remove", name=first["name"])
        assert caught.value.code == "kept"
        until_done(client, "snapshot_remove", name=first["name"], force=True)
        for name in ("../views", "nothing", first["name"], f"{third['name']}/root", "."):
            with pytest.raises(SecondaryError) as caught:
                until_done(client, "snapshot_remove", name=name, force=True)
            assert caught.value.code == "not-found"
        assert not (directory / first["name"]).exists()
        assert (directory / third["name"]).exists()


@pytest.mark.root
def test_a_file_system_without_them_says_so(tmp_path):
    with Far(tmp_path / "b") as client:
        if client.call("snapshots").header["method"]:
            pytest.skip("the temporary directory can have snapshots")
        with pytest.raises(SecondaryError) as caught:
            take(client)
        assert caught.value.code == "unsupported"
        assert "reflink" in str(caught.value)


def test_an_epoch_that_is_over_takes_none(tmp_path):
    with Far(tmp_path / "b", epoch=1) as old, Far(tmp_path / "b", epoch=2):
        with pytest.raises(SecondaryError) as caught:
            take(old)
        assert caught.value.code == "stale-epoch"


# ---- how long: rules


def hours(*numbers):
    return [n * HOUR for n in numbers]


def test_rules_keep_the_first_of_each_slot():
    rule = Retention.parse("2h hourly, 1d daily")
    until = rule.until(hours(0, 0.5, 1, 1.9, 24))
    assert until == {
        0: 24 * HOUR,
        HOUR // 2: None,
        HOUR: 3 * HOUR,
        int(1.9 * HOUR): None,
        24 * HOUR: 48 * HOUR,
    }
    assert Retention.parse("1h all").until(hours(0, 0.5)) == {0: HOUR, HOUR // 2: HOUR // 2 + HOUR}
    assert str(Retention.parse(" 24H  Hourly,7d daily")) == "24h hourly, 7d daily"
    assert Retention.parse("1d hourly") == Retention.parse("24h hourly")


def test_whoever_takes_many_pushes_none_out():
    rule = Retention.parse("24h hourly, 7d daily")
    draw = random.Random(5)
    series = sorted(draw.randrange(10 * 24 * HOUR) for _ in range(200))
    for at in range(0, 10 * 24 * HOUR, 5 * HOUR):
        seen = [taken for taken in series if taken <= at]
        flooded = rule.until(seen + [at + n for n in range(500)])
        assert all((flooded[taken] or 0) >= (until or 0) for taken, until in rule.until(seen).items())


@pytest.mark.parametrize(
    "text", ["", "24h", "hourly", "0h hourly", "24 hourly", "24h hourly daily", "9999999h all", "-1d daily"]
)
def test_what_is_no_rule(text):
    with pytest.raises(ValueError, match="will not do"):
        Retention.parse(text)


@pytest.mark.root
def test_one_that_somebody_reads_is_not_removed_meanwhile(kind, root):
    """A view of it is whole or is not made; who wants it removed is told, and thinning leaves it for the next time."""
    primary = root.parent / "primary"
    for number in range(100):
        (primary / f"d{number}").mkdir(parents=True)
        (primary / f"d{number}" / "f").write_bytes(b"x")
    with Far(root) as client:
        Primary(primary).crawl(client)
        found = take(client, keep="1m all")
        record = root / ".seamark" / "snapshots" / found["name"] / "record"
        said = json.loads(record.read_text())
        said["taken_ns"] -= HOUR
        record.write_text(json.dumps(said))
        method = "reflink" if kind == "xfs" else "copy"
        far = Far(root, read_only=True, epoch=0)
        with far as other, slow(far.process.pid, "utimensat", ms=20):
            making = other.submit("view", method=method, snapshot=found["name"])
            until = time.monotonic() + 20
            while not any(path.name == "root" for path in (root / ".seamark").glob("views/new.*/root")):
                assert time.monotonic() < until
            with pytest.raises(SecondaryError) as caught:
                until_done(client, "snapshot_remove", name=found["name"])
            assert caught.value.code == "busy"
            assert until_done(client, "snapshot", keep="1m all", mark=MARK)["removed"] == []
            view = making.result().header
            while not view["done"]:
                view = other.call("view", method=method, snapshot=found["name"]).header
            assert_same(primary, view["path"])
        assert found["name"] in until_done(client, "snapshot", keep="1m all", mark=MARK)["removed"]


def test_what_is_begun_may_be_swept_before_it_is_locked(tmp_path, monkeypatch):
    """By an agent that has just come up, and takes it for what a killed one has left."""
    swept = []

    def open_(path, *args, opened=os.open, **more):
        if isinstance(path, bytes) and path.startswith(b"new.") and not swept:
            swept.append(path)
            os.rmdir(path, dir_fd=more["dir_fd"])
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "open", open_)
    hidden_fd = os.open(tmp_path, os.O_RDONLY)
    home = Home(hidden_fd, b"views")
    assert swept != [home.name]
    assert os.listdir(tmp_path / "views") == [home.name.decode()]
    home.close()
    os.close(hidden_fd)
