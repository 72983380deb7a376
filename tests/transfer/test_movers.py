"""rsync and tar, the real ones, over a real sshd and locally, into staging directories."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replication.remote.errors import HostKeyUnknown, NoRsync, NoTar, Unreachable
from replication.remote.target import Target
from replication.transfer.rsync import RsyncSender, sync_by_rsync
from replication.transfer.tar import sync_by_tar
from tests.conftest import need

MIB = 1 << 20
MOVERS = {"rsync": sync_by_rsync, "tar": sync_by_tar}


@pytest.fixture(params=["rsync", "tar"])
def move(request):
    need(request.param)
    return MOVERS[request.param]


@pytest.fixture(params=["local", "ssh"])
def way(request, secondary):
    """(target, options) of the stand-in's root."""
    if request.param == "local":
        return Target(os.fsencode(secondary.root)), None
    server = request.getfixturevalue("shared_ssh_server")
    return server.target(secondary.root), server.options()


def content(secondary, item):
    return (secondary.root / secondary.names[item.gfid][0]).read_bytes()


def blocks(path):
    return os.stat(path).st_blocks * 512


def test_files_of_every_kind_arrive(move, way, primary, secondary):
    items = [
        primary.write("plain", b"hello"),
        primary.write("empty", b""),
        primary.write(b"d/\xff\nnew line ' \" $HOME", b"odd name"),
        primary.write("d/-option", os.urandom(300_000)),
    ]
    os.chmod(primary.root / "plain", 0o4751)
    os.utime(primary.root / "plain", ns=(1_000_000_001, 2_000_000_002))
    results = move(items, primary.volume, secondary, *way)
    assert [(r.gfid, r.status, r.message) for r in results] == [(i.gfid, "ok", "") for i in items]
    for item in items:
        assert content(secondary, item) == (primary.root / os.fsdecode(item.path)).read_bytes()
    seen = (secondary.root / secondary.names[items[0].gfid][0]).stat()
    assert (seen.st_mode & 0o7777, seen.st_mtime_ns) == (0o4751, 2_000_000_002)
    assert not list((secondary.root / ".seamark" / "staging").iterdir())
    size, ctime, ino, xattrs, *_ = secondary.committed[items[0].gfid]
    assert (size, ino, xattrs) == (5, items[0].ino, {})
    assert ctime in {0, os.stat(primary.root / "plain").st_ctime_ns}


def test_sparse_stays_sparse(move, way, primary, secondary):
    path = primary.root / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for at in (0, 20 * MIB, 63 * MIB):
            file.seek(at)
            file.write(os.urandom(4096))
    item = primary.item("sparse")
    (result,) = move([item], primary.volume, secondary, *way)
    assert result.status == "ok"
    copy = secondary.root / secondary.names[item.gfid][0]
    assert copy.read_bytes() == path.read_bytes()
    assert blocks(copy) <= blocks(path) + 64 * 1024


def test_changed_content_with_equal_size_and_mtime_is_sent(move, way, primary, secondary):
    item = primary.write("f", b"x" * 100_000, how="data")
    (secondary.root / "there").write_bytes(b"y" * 100_000)
    os.utime(primary.root / "f", ns=(10**18, 10**18))
    os.utime(secondary.root / "there", ns=(10**18, 10**18))
    secondary.names[item.gfid] = ["there"]
    (result,) = move([item], primary.volume, secondary, *way)
    assert result.status == "ok"
    assert content(secondary, item) == b"x" * 100_000


@pytest.mark.parametrize("shorter", [False, True])
def test_in_place_writes_through_all_links(move, way, primary, secondary, shorter):
    item = primary.write("f", os.urandom(50_000 if shorter else 300_000), how="data")
    (secondary.root / "one").write_bytes(os.urandom(200_000))
    os.link(secondary.root / "one", secondary.root / "two")
    inode = (secondary.root / "one").stat().st_ino
    secondary.names[item.gfid] = ["one", "two"]
    secondary.in_place = {item.gfid}
    (result,) = move([item], primary.volume, secondary, *way)
    assert result.status == "ok"
    assert (secondary.root / "two").read_bytes() == (primary.root / "f").read_bytes()
    assert (secondary.root / "two").stat().st_ino == inode


def test_one_bad_file_does_not_stop_the_rest(move, way, primary, secondary):
    good, gone = primary.write("good", b"good"), primary.write("gone", b"gone")
    moved, replaced = primary.write("moved", b"m"), primary.write("replaced", b"old")
    refused = primary.write("refused", b"r")
    (primary.root / "gone").unlink()
    (primary.root / "moved").rename(primary.root / "elsewhere")
    primary.write("new", b"another file")
    (primary.root / "new").rename(primary.root / "replaced")
    secondary.refuse[refused.gfid.hex()] = ("no-space", "no room for it")
    results = {
        r.gfid: r for r in move([gone, good, moved, replaced, refused], primary.volume, secondary, *way)
    }
    assert len(results) == 5
    assert {results[i.gfid].status for i in (gone, moved, replaced)} == {"vanished"}
    assert results[good.gfid].status == "ok"
    assert results[refused.gfid][1:4] == ("error", "no-space", "no room for it")


def test_nothing_but_vanished_files_starts_nothing(move, primary, secondary):
    item = primary.write("f", b"x")
    (primary.root / "f").unlink()
    (result,) = move([item], primary.volume, secondary, Target(b"/does/not/exist"), None)
    assert result.status == "vanished"


def test_what_was_opened_is_what_is_read_whatever_happens_to_its_path(
    move, way, primary, secondary, monkeypatch, tmp_path
):
    """Somebody who may rename directories swaps one for a link to elsewhere, after we have looked."""
    swapped, renamed = primary.write("d/f", b"ours"), primary.write("renamed", b"renamed")
    gone, replaced = primary.write("gone", b"gone"), primary.write("replaced", b"old")
    items = [swapped, renamed, gone, replaced]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_bytes(b"not of this volume")
    stage = secondary.op_stage

    def stage_and_meddle(**arguments):
        (primary.root / "d").rename(primary.root / "e")
        (primary.root / "d").symlink_to(tmp_path / "outside")
        (primary.root / "renamed").rename(primary.root / "elsewhere")
        (primary.root / "gone").unlink()
        primary.write("new", b"another file")
        (primary.root / "new").rename(primary.root / "replaced")
        return stage(**arguments)

    monkeypatch.setattr(secondary, "op_stage", stage_and_meddle)
    results = {r.gfid: r.status for r in move(items, primary.volume, secondary, *way)}
    assert {results[item.gfid] for item in (gone, renamed, replaced)} <= {"ok", "changed"}
    assert results[swapped.gfid] == "ok"
    assert [content(secondary, item) for item in items] == [b"ours", b"renamed", b"gone", b"old"]


def test_more_files_than_may_be_open_go_in_several_runs(move, primary, secondary, monkeypatch):
    monkeypatch.setattr("replication.transfer.staged._files_at_once", lambda: 3)
    items = [primary.write(f"f{number}", b"%d" % number) for number in range(8)]
    before = os.listdir("/proc/self/fd")
    results = move(items, primary.volume, secondary, Target(os.fsencode(secondary.root)), None)
    assert [(r.gfid, r.status) for r in results] == [(item.gfid, "ok") for item in items]
    assert [content(secondary, item) for item in items] == [b"%d" % number for number in range(8)]
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.root
def test_a_file_that_cannot_be_read_is_reported_alone(move, primary, secondary):
    """Root reads everything: a child process of another user does the sending."""
    good, bad = primary.write("good", b"good"), primary.write("bad", b"secret")
    os.chmod(primary.root / "bad", 0)
    for path in (primary.root, secondary.root, *primary.root.parents, *secondary.root.parents):
        if "pytest" in str(path):
            os.chmod(path, 0o777 if path == secondary.root else 0o755)
    os.chown(secondary.root, 65534, 65534)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.environ["TMPDIR"] = "/tmp"
            if not os.access(sys.executable, os.X_OK):  # a Python of root's own
                sys.executable = shutil.which("python3", path="/usr/bin:/usr/local/bin")
            results = move([good, bad], primary.volume, secondary, Target(os.fsencode(secondary.root)), None)
            said = {r.gfid: (r.status, r.code, r.message) for r in results}
            expected = ("error", "permission", "cannot read bad: Permission denied")
            os.write(write, repr((said[good.gfid][0], said[bad.gfid], said[bad.gfid] == expected)).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 4096).decode() == repr(
        ("ok", ("error", "permission", "cannot read bad: Permission denied"), True)
    )
    os.close(read)
    os.close(write)


def test_a_file_that_changes_while_it_is_sent_is_not_taken_for_final(
    move, way, primary, secondary, monkeypatch
):
    item = primary.write("f", b"before")
    time.sleep(0.05)
    stage = secondary.op_stage

    def stage_and_write(**arguments):
        (primary.root / "f").write_bytes(b"after!")
        return stage(**arguments)

    monkeypatch.setattr(secondary, "op_stage", stage_and_write)
    (result,) = move([item], primary.volume, secondary, *way)
    assert result.status == "changed"
    assert secondary.committed[item.gfid][1] == 0, "its ctime may not stand for this version"


def test_a_changed_file_of_another_size_is_no_error(move, way, primary, secondary, monkeypatch):
    item = primary.write("f", b"before")
    time.sleep(0.05)
    monkeypatch.setattr(secondary, "refuse", {item.gfid.hex(): ("io", "6 bytes came, not 12")})
    stage = secondary.op_stage

    def stage_and_write(**arguments):
        (primary.root / "f").write_bytes(b"after, longer")
        return stage(**arguments)

    monkeypatch.setattr(secondary, "op_stage", stage_and_write)
    (result,) = move([item], primary.volume, secondary, *way)
    assert result.status == "changed"


def test_a_missing_staging_directory_is_an_error_of_each_file(move, way, primary, secondary, monkeypatch):
    items = [primary.write("a", b"a"), primary.write("b", b"b")]
    monkeypatch.setattr(
        secondary,
        "op_stage",
        lambda unit, **_: {"path": ".seamark/no/such", "basis": ".seamark/no/basis", "in_place": []},
    )
    results = move(items, primary.volume, secondary, *way)
    assert [r.status for r in results] == ["error", "error"]
    assert all("No such file or directory" in r.message for r in results), results
    assert secondary.committed == {}


@pytest.mark.root
def test_a_full_secondary_says_so(move, primary, tmp_path):
    from tests.transfer.conftest import StandIn

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        secondary = StandIn(small / "root")
        item = primary.write("big", os.urandom(8 * MIB))
        (result,) = move([item], primary.volume, secondary, Target(os.fsencode(secondary.root)), None)
        assert (result.status, result.code) == ("error", "no-space")
        assert "No space left on device" in result.message or "Wrote only" in result.message
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_progress_counts_files_and_bytes(move, way, primary, secondary):
    seen = []
    items = [primary.write("a", os.urandom(3 * MIB)), primary.write("b", b"b")]
    alive = []
    move(
        items, primary.volume, secondary, *way,
        progress=lambda files, size: seen.append((files, size)), alive=lambda: alive.append(1),
    )  # fmt: skip
    assert sum(files for files, _ in seen) == 2
    assert sum(size for _, size in seen) == 3 * MIB + 1
    assert alive


def test_compressed(move, way, primary, secondary):
    item = primary.write("text", b"the same words again and again\n" * 100_000)
    (result,) = move([item], primary.volume, secondary, *way, compress=True)
    assert result.status == "ok"
    assert content(secondary, item) == (primary.root / "text").read_bytes()


def test_shared_connection_is_used_and_closed(move, shared_ssh_server, primary, secondary, tmp_path):
    from replication.remote.command import close_shared_connection, control_path

    target = shared_ssh_server.target(secondary.root)
    options = shared_ssh_server.options(run_dir=tmp_path / ("long" * 40) / "ssh")
    before = shared_ssh_server.log().count("Accepted publickey")
    for name in ("a", "b"):
        (result,) = move([primary.write(name, b"x")], primary.volume, secondary, target, options)
        assert result.status == "ok"
    assert shared_ssh_server.log().count("Accepted publickey") == before + 1
    path = control_path(target, options)
    assert path.exists()
    close_shared_connection(target, options)
    assert not path.exists()


def test_unknown_host_key_stops_ssh_too(move, shared_ssh_server, primary, secondary):
    options = shared_ssh_server.options(known_hosts_file=shared_ssh_server.pinned)
    with pytest.raises(Unreachable, match="Host key verification failed"):
        move(
            [primary.write("f", b"x")],
            primary.volume,
            secondary,
            shared_ssh_server.target(secondary.root),
            options,
        )
    assert HostKeyUnknown.exit_code == 1


def test_refused_connection(move, ssh_server, primary, secondary):
    ssh_server.stop()
    with pytest.raises(Unreachable, match="Connection refused"):
        move(
            [primary.write("f", b"x")],
            primary.volume,
            secondary,
            ssh_server.target(secondary.root),
            ssh_server.options(),
        )


@pytest.mark.parametrize(("move_name", "error"), [("rsync", NoRsync), ("tar", NoTar)])
def test_program_is_missing_there(ssh_server, primary, secondary, move_name, error, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    ssh_server.settings["ForceCommand"] = f'PATH={bare}; eval "$SSH_ORIGINAL_COMMAND"'
    ssh_server.restart()
    target = ssh_server.target(secondary.root)
    with pytest.raises(error, match="on 127.0.0.1"):
        MOVERS[move_name]([primary.write("f", b"x")], primary.volume, secondary, target, ssh_server.options())


@pytest.mark.parametrize(("move_name", "error"), [("rsync", NoRsync), ("tar", NoTar)])
def test_program_is_missing_here(primary, secondary, move_name, error, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error, match="not installed here"):
        MOVERS[move_name](
            [primary.write("f", b"x")], primary.volume, secondary, Target(os.fsencode(secondary.root))
        )


# ---- rsync alone


@pytest.mark.parametrize("in_place", [False, True])
def test_delta_sends_only_what_changed(shared_ssh_server, primary, secondary, in_place):
    need("rsync")
    old = bytearray(os.urandom(64 * MIB))
    (secondary.root / "big").write_bytes(old)
    old[20 * MIB : 21 * MIB] = os.urandom(MIB)
    item = primary.write("big", bytes(old), how="data")
    secondary.names[item.gfid] = ["big"]
    secondary.in_place = {item.gfid} if in_place else set()
    target = shared_ssh_server.target(secondary.root)
    sender = RsyncSender(primary.volume, secondary, target, shared_ssh_server.options())
    (result,) = sender.send([item])
    assert result.status == "ok"
    assert content(secondary, item) == bytes(old)
    assert MIB <= sender.bytes_on_wire < MIB + 200_000
    assert MIB <= result.bytes_sent < MIB + 200_000


def test_resumes_after_a_kill_in_the_middle(shared_ssh_server, primary, secondary):
    need("rsync")
    data = os.urandom(24 * MIB)
    item = primary.write("big", data)
    target = shared_ssh_server.target(secondary.root)

    class Enough(Exception):
        pass

    def interrupt(_files, size):
        moved[0] += size
        if moved[0] > 6 * MIB:
            raise Enough

    moved = [0]
    # Slow enough to be interrupted in the middle: it reports once a second.
    slow = RsyncSender(
        primary.volume, secondary, target, shared_ssh_server.options(), bwlimit=5000, progress=interrupt
    )
    with pytest.raises(Enough):
        slow.send([item])
    assert secondary.committed == {}
    again = RsyncSender(primary.volume, secondary, target, shared_ssh_server.options())
    (result,) = again.send([item])
    assert result.status == "ok"
    assert content(secondary, item) == data
    assert again.bytes_on_wire < 20 * MIB, "what had arrived was sent again"


def test_frozen_far_side_ends_rsync(ssh_server, primary, secondary):
    need("rsync")
    item = primary.write("big", os.urandom(32 * MIB))
    options = ssh_server.options(answer_timeout_s=1.0)
    sender = RsyncSender(primary.volume, secondary, ssh_server.target(secondary.root), options, bwlimit=5000)

    def freeze():
        time.sleep(1.2)
        subprocess.run(["kill", "-STOP", *map(str, ssh_server.pids()[1:])], check=True)

    thread = threading.Thread(target=freeze)
    thread.start()
    started = time.monotonic()
    from replication.remote.errors import LinkLost

    with pytest.raises(LinkLost, match="127.0.0.1"):
        sender.send([item])
    assert time.monotonic() - started < 15
    thread.join()


def test_no_process_is_left_behind(move, primary, secondary):
    item = primary.write("big", os.urandom(48 * MIB))

    def boom():
        raise KeyboardInterrupt

    before = _children()
    with pytest.raises(KeyboardInterrupt):
        move([item], primary.volume, secondary, Target(os.fsencode(secondary.root)), None, alive=boom)
    assert _children() <= before


def test_rsync_does_not_outlive_a_killed_worker(shared_ssh_server, primary, secondary):
    need("rsync")
    item = primary.write("big", os.urandom(48 * MIB))
    ours, theirs = os.pipe()
    worker = os.fork()
    if not worker:
        try:
            sender = RsyncSender(
                primary.volume, secondary, shared_ssh_server.target(secondary.root), shared_ssh_server.options(),
                bwlimit=2000, progress=lambda _files, _bytes: os.write(theirs, b"."),
            )  # fmt: skip
            sender.send([item])
        finally:
            os._exit(0)
    os.read(ours, 1)
    programs = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    assert len(programs) == 1
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    deadline = time.monotonic() + 5
    while _runs(programs[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(programs[0])
    os.close(ours)
    os.close(theirs)


def _runs(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def _children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
