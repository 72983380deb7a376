"""The agent through its client: who may come in, what it refuses, what must survive, what is not ours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replication.observation import Change, Entry, Inode, Listing
from replication.remote.answers import SecondaryError
from replication.remote.errors import LinkLost
from replication.transfer.stream import StreamSender
from replication.volume.directory import DirectoryVolume
from replication.volume.identity import ROOT_GFID
from scheduler.retry import wanted_at
from tests.secondary.primary import REPOSITORY, Far, Primary, differences


@pytest.fixture
def trees(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    return a, b


@pytest.fixture
def open_path():
    """A directory that other users can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="seamark-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def refused(code, root, **hello):
    with pytest.raises(SecondaryError) as caught:
        Far(root, **hello)
    assert caught.value.code == code, caught.value


def fill(a):
    (a / "dir" / "sub").mkdir(parents=True)
    (a / "file").write_bytes(b"content")
    (a / "dir" / "sub" / "other").write_bytes(b"x" * 10_000)
    os.link(a / "file", a / "dir" / "link")
    os.symlink("nowhere", a / "symlink")


# ---- hello


def test_a_directory_with_other_things_is_refused_unless_adopted(trees):
    _, b = trees
    (b / "mine").write_text("precious")
    refused("not-empty", b)
    assert not (b / ".seamark").exists()
    far = Far(b, adopt=True)
    assert far.hello["index"] == "rebuilding"
    far.close()


def test_another_session_is_refused(trees):
    _, b = trees
    Far(b).close()
    owner = json.loads((b / ".seamark" / "owner").read_text())
    assert owner["session"] == "s"
    (b / ".seamark" / "owner").write_text(json.dumps(dict(owner, session="other")))
    refused("owned", b)


def test_a_root_inside_a_secondarys_own_directory_is_refused(trees):
    _, b = trees
    Far(b).close()
    refused("inside", b / ".seamark" / "limbo")


def test_only_the_last_component_of_the_root_is_created(trees):
    _, b = trees
    Far(b / "new").close()
    assert (b / "new" / ".seamark").is_dir()
    refused("not-found", b / "no" / "way")


def test_an_older_epoch_is_refused_at_hello_and_while_it_works(trees):
    _, b = trees
    old = Far(b, epoch=3)
    old.client.begin_crawl("c")
    new = Far(b, epoch=4)
    with pytest.raises(SecondaryError) as caught:
        old.client.observe([Listing(ROOT_GFID)], crawl="c", limbo_until=1)
    assert caught.value.code == "stale-epoch"
    refused("stale-epoch", b, epoch=3)
    old.close()
    new.close()


def test_an_epoch_of_another_holder_is_taken_over_only_by_who_saw_it(trees):
    _, b = trees
    a = Far(b, epoch=3, holder="a")
    Far(b, epoch=3, holder="a").close()
    refused("stale-epoch", b, epoch=3, holder="b")  # the same number is not the same holder
    refused("stale-epoch", b, epoch=4, holder="b")
    refused("stale-epoch", b, epoch=4)
    refused("stale-epoch", b, epoch=3, holder="b", takes=3)
    refused("stale-epoch", b, epoch=9, holder="b", takes=2)
    onlooker = Far(b, epoch=0, read_only=True)
    assert onlooker.hello["holder"] == "a"
    a.client.call("mark", text="what a says")
    new = Far(b, epoch=4, holder="b", takes=3)
    assert new.hello["mark"] == "what a says"
    with pytest.raises(SecondaryError) as caught:
        a.client.call("mark", text="too late")
    assert caught.value.code == "stale-epoch"
    refused("stale-epoch", b, epoch=5, holder="a")  # it slept, and begins a new epoch by itself
    shutil.rmtree(b / ".seamark" / "staging")
    for path in (b / ".seamark").glob("index.sqlite*"):
        path.unlink()
    refused("stale-epoch", b, epoch=5, holder="a")  # known without the index as well
    again = Far(b, epoch=5, holder="b")
    assert (again.hello["epoch"], again.hello["holder"], again.hello["mark"]) == (5, "b", None)
    for far in (a, onlooker, new, again):
        far.close()


def test_from_a_complete_crawl_on_there_is_a_mark(trees):
    """So that who takes over knows whether changelogs may have been applied, even if the mark was never told."""
    _, b = trees
    with Far(b) as client:
        client.begin_crawl("c")
        client.end_crawl("c", rebuilt=True)
    far = Far(b, epoch=0, read_only=True)
    assert far.hello["mark"] == "{}"
    far.close()


def holds_the_lock(pid, root):
    """Whether a process is within a transaction. Source: proc(5), /proc/locks."""
    inode = (root / ".seamark" / "lock").stat().st_ino
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line)
    return any(
        words[1] == "FLOCK" and words[4] == str(pid) and words[5].endswith(f":{inode}") for words in held
    )


def test_an_agent_that_froze_in_a_transaction_is_ended_by_the_next(trees):
    a, b = trees
    for number in range(1500):
        (a / f"f{number}").write_bytes(b"x")
    old = Far(b)
    primary = Primary(a)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(primary.crawl, old.client)
        while not holds_the_lock(old.process.pid, b):
            old.process.send_signal(signal.SIGCONT)
            assert not sent.done()
            time.sleep(0.003)
            old.process.send_signal(signal.SIGSTOP)
            time.sleep(0.001)
        new = Far(b, epoch=2)
        with pytest.raises(LinkLost):
            sent.result()
    assert old.process.wait(10) == -signal.SIGKILL
    primary.crawl(new.client)
    old.close()
    new.close()
    assert differences(a, b) == ""


def test_positions_come_in_order(trees):
    _, b = trees
    with Far(b) as client:
        client.observe([Listing(ROOT_GFID)], position=7, limbo_until=1)
        client.observe([Listing(ROOT_GFID)], position=7, limbo_until=1)
        client.observe([Listing(ROOT_GFID)], position=8, limbo_until=1)
        for position in (7, 10):
            with pytest.raises(SecondaryError) as caught:
                client.observe([Listing(ROOT_GFID)], position=position, limbo_until=1)
            assert caught.value.code == "out-of-order"
        with pytest.raises(SecondaryError) as caught:
            client.observe([Listing(ROOT_GFID)], crawl="never opened", limbo_until=1)
        assert caught.value.code == "crawl-closed"


def test_a_dry_run_touches_nothing(trees):
    _, b = trees
    far = Far(b, read_only=True)
    assert far.hello["index"] == "new"
    far.close()
    assert os.listdir(b) == []


# ---- what it refuses


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"../x", b"/etc", b"nul\0", b".seamark"])
def test_names_that_are_no_names_are_refused(trees, name):
    _, b = trees
    inode = Inode(bytes(15) + b"\x09", stat.S_IFIFO | 0o600, 0, 0, 1, 5, 0, 0, 1, 1, 1)
    with Far(b) as client:
        client.begin_crawl("c")
        with pytest.raises(SecondaryError) as caught:
            client.observe([Listing(ROOT_GFID, [Entry(name, inode)])], crawl="c", limbo_until=1)
        assert caught.value.code == "protocol"
    assert os.listdir(b) == [".seamark"]


def test_what_is_no_frame_ends_the_connection(trees):
    _, b = trees
    process = subprocess.run(
        [sys.executable, "-m", "replication.secondary", "serve", str(b)],
        input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
    )  # fmt: skip
    assert process.returncode == 1
    size = struct.unpack(">I", process.stdout[:4])[0]
    assert json.loads(process.stdout[8 : 8 + size])["error"] == "protocol"


@pytest.mark.parametrize(
    "request_", [{"op": "observe"}, {"op": "data", "items": [[1]]}, {"op": "nonsense"}, {}]
)
def test_malformed_requests_are_answered(trees, request_):
    _, b = trees
    with Far(b) as client:
        op = request_.get("op", "")
        with pytest.raises(SecondaryError) as caught:
            client.call(op, **{k: v for k, v in request_.items() if k != "op"})
        assert caught.value.code == "protocol"
        assert client.ping() > 0


def test_a_symlink_planted_on_the_secondary_leads_nowhere(trees, tmp_path):
    a, b = trees
    fill(a)
    outside = tmp_path / "outside"
    outside.mkdir()
    far = Far(b)
    primary = Primary(a)
    primary.crawl(far.client)
    far.close()
    shutil.rmtree(b / "dir")
    os.symlink(outside, b / "dir")
    (a / "dir" / "new").write_text("new")
    with Far(b) as client:
        for crawl in ("x", "y"):  # the second lists what was made again by the first
            primary.crawl(client, crawl)
        assert os.listdir(outside) == []
        assert differences(a, b) == ""
        assert client.check() == []
        assert client.stat()["displaced"] == 1


def test_a_symlink_with_the_inode_number_of_what_stood_there_is_not_ours(trees, tmp_path):
    """File systems use numbers again, often at once."""
    a, b = trees
    fill(a)
    outside = tmp_path / "outside"
    outside.mkdir()
    far = Far(b)
    primary = Primary(a)
    primary.crawl(far.client)
    far.close()
    number = os.lstat(b / "dir").st_ino
    shutil.rmtree(b / "dir")
    planted = (outside.parent / f"planted{n}" for n in range(2000))
    for link in planted:
        os.symlink(outside, link)
        if os.lstat(link).st_ino == number:
            os.rename(link, b / "dir")
            break
    else:
        pytest.skip("this file system gives each number once")
    (a / "dir" / "new").write_text("new")
    with Far(b) as client:
        for crawl in ("x", "y"):
            primary.crawl(client, crawl)
        assert os.listdir(outside) == []
        assert differences(a, b) == ""
        assert client.stat()["displaced"] == 1


# ---- what must survive


def test_everything_survives(trees):
    a, b = trees
    fill(a)
    os.mkfifo(a / "fifo")
    os.mknod(a / "socket", stat.S_IFSOCK | 0o600)
    for name in (b"\xff\xfe\n", b"-rf", b" ", b"\\", "ünï".encode(), b"f" * 255):
        (a / os.fsdecode(name)).write_bytes(name)
    os.setxattr(a / "file", "user.color", b"blue\0")
    os.chmod(a / "dir" / "sub" / "other", 0o6755)
    os.chmod(a / "dir", 0o3775)
    os.utime(a / "symlink", ns=(1_234_567_891, 999_999_999_123), follow_symlinks=False)
    if os.geteuid() == 0:
        os.mknod(a / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(a / "file", 1234, 4321)
        os.chown(a / "symlink", 99, 98, follow_symlinks=False)
        os.setxattr(a / "symlink", "trusted.t", b"1", follow_symlinks=False)
        os.setxattr(
            a / "file", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
        )
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", "u:1000:rwx,g:7:r", a / "dir", a / "file"], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", a / "dir"], check=True)
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        assert differences(a, b) == ""
        if shutil.which("setfacl"):
            subprocess.run(["setfacl", "-b", a / "dir", a / "file"], check=True)
        os.removexattr(a / "file", "user.color")
        primary.crawl(client, "2")
        assert differences(a, b) == ""
        assert client.check() == []
        assert (b / "symlink").lstat().st_mtime_ns == 999_999_999_123


@pytest.mark.parametrize("later", [True, False])
def test_a_change_of_content_is_not_forgotten_for_a_look_that_knows_nothing_of_it(trees, later):
    """By a listing of its directory, or by another name: what shows no other ctime would never be compared."""
    far, gfid = Far(trees[1]), os.urandom(16)
    inode = Inode(gfid, 0o100644, os.getuid(), os.getgid(), 2, 7, 0, 1, 5, 5, 5)

    def look(position, *changes):
        listings = [
            Listing(ROOT_GFID, [Entry(name, inode, None, change)])
            for name, change in zip((b"name", b"link"), changes, strict=True)
        ]
        return far.client.observe(listings, position=position, limbo_until=1).need

    assert [each[0] for each in look(1, Change.NONE, Change.NONE)] == [gfid.hex()]
    assert (
        far.client.data([[gfid.hex(), 1, 0o100644, os.getuid(), os.getgid(), 5, 5, 5, 7, {}]], [b"x"]) == []
    )
    assert look(2, Change.UNKNOWN, Change.UNKNOWN) == []
    changes = (Change.DATA, Change.UNKNOWN) if later else (Change.UNKNOWN, Change.DATA)
    assert [each[0] for each in look(3, *changes)] == [gfid.hex()]
    far.close()


def test_a_directory_of_thousands_renamed_moves_no_data(trees):
    a, b = trees
    (a / "old").mkdir()
    for i in range(3000):
        (a / "old" / f"f{i}").write_bytes(b"%d" % i)
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        inodes = {n: (b / "old" / n).stat().st_ino for n in os.listdir(b / "old")}
        os.rename(a / "old", a / "new")
        client.begin_crawl("r")
        answer = client.observe([primary.look(b"", [b"new", b"old"])], crawl="r", limbo_until=1)
        assert answer.need == []
        assert answer.list == []
        assert answer.counts["renamed"] == 1
        assert {n: (b / "new" / n).stat().st_ino for n in os.listdir(b / "new")} == inodes
        assert client.check() == []


def test_a_listing_in_parts_removes_what_no_part_had_and_an_incomplete_one_nothing(trees):
    a, b = trees
    for i in range(300):
        (a / f"f{i}").write_bytes(b"x")
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        for i in range(0, 300, 3):
            (a / f"f{i}").unlink()
        whole = primary.listing(b"").entries
        client.begin_crawl("p")
        for complete in (False, True):
            for part, start in enumerate(range(0, len(whole), 50)):
                last = start + 50 >= len(whole)
                listing = Listing(ROOT_GFID, whole[start : start + 50], complete, part, last)
                client.observe([listing], crawl="p", limbo_until=1)
            assert len(os.listdir(b)) - 1 == (200 if complete else 300)
        assert client.check() == []


# ---- content


def test_large_files_resume_and_stay_sparse(trees):
    a, b = trees
    with open(a / "big", "wb") as f:
        f.write(b"A" * 100_000)
        f.seek(5 << 20)
        f.write(b"B" * 100_000)
        f.truncate(8 << 20)
    primary = Primary(a)
    gfid = primary.gfid(b"big")
    far = Far(b)
    far.client.begin_crawl("c")
    assert far.client.observe([primary.listing(b"")], crawl="c", limbo_until=1).need == [(gfid.hex(), "new")]
    begin = {"gfid": gfid.hex(), "size": 8 << 20, "version": "v1-1"}
    assert far.client.call("file_begin", **begin).header["offset"] == 0
    far.client.call("file_data", b"A" * 100_000, gfid=gfid.hex(), offset=0)
    far.close()
    far = Far(b)
    assert far.client.call("file_begin", **begin).header["offset"] == 100_000
    far.client.call("file_data", b"B" * 100_000, gfid=gfid.hex(), offset=5 << 20)
    assert not (b / "big").exists()
    item = primary.item(gfid, b"big")
    assert far.client.call("file_end", gfid=gfid.hex(), item=item, digest=None).header["errors"] == []
    primary.send_metadata(far.client, [ROOT_GFID.hex()], {ROOT_GFID: b""})
    assert differences(a, b) == ""
    assert (b / "big").stat().st_blocks * 512 < 1 << 20
    far.close()


@pytest.mark.parametrize("names", [("d/f",), ("d/f", "e/g")])
@pytest.mark.parametrize("how", ["pieces", "unit"])
def test_what_came_stays_when_its_directory_was_taken_away(trees, how, names):
    """It goes to the names that it has still, or to those that it has when the directory was listed again."""
    a, b = trees
    for folder in ("d", "e"):
        (a / folder).mkdir()
    (a / "d/f").write_bytes(b"content")
    for name in names[1:]:
        os.link(a / "d/f", a / name)
    primary = Primary(a)
    gfid = primary.gfid(b"d/f")
    item = primary.item(gfid, b"d/f")
    with Far(b) as client:
        client.begin_crawl("c")
        for folder in (b"", b"d", b"e"):
            client.observe([primary.listing(folder)], crawl="c", limbo_until=1)

        def begin():
            return client.call("file_begin", gfid=gfid.hex(), size=7, version="v1").header["offset"]

        if how == "pieces":
            assert begin() == 0
            client.call("file_data", b"content", gfid=gfid.hex(), offset=0)
        else:
            (b / client.stage("u-1", [gfid])["path"] / gfid.hex()).write_bytes(b"content")
        shutil.rmtree(b / "d")
        if how == "pieces":
            errors = client.call("file_end", gfid=gfid.hex(), item=item, digest=None).header["errors"]
        else:
            errors = client.commit("u-1", [item])
        assert [code for _, code, _ in errors] == ["not-found"] * (len(names) == 1)
        if len(names) > 1:
            assert (b / "e/g").read_bytes() == b"content"
        elif how == "pieces":
            client.observe([primary.listing(b"d")], crawl="c", limbo_until=1)
            assert begin() == 7
            assert client.call("file_end", gfid=gfid.hex(), item=item, digest=None).header["errors"] == []
        for crawl in "xy":
            primary.crawl(client, crawl)
        assert client.check() == []
        assert os.listdir(b / ".seamark/staging") == [
            n for n in os.listdir(b / ".seamark/staging") if n.startswith("agent.")
        ]
    assert differences(a, b) == ""


def test_a_newer_version_waits_for_the_one_that_is_on_its_way(trees):
    """Of a file that changes faster than it is sent, one version after the other would else be thrown away."""
    a, b = trees
    (a / "f").write_bytes(b"older")
    primary = Primary(a)
    gfid = primary.gfid(b"f")
    begin = {"gfid": gfid.hex(), "size": 5}
    with Far(b) as one, Far(b, epoch=1) as other:
        one.begin_crawl("c")
        one.observe([primary.listing(b"")], crawl="c", limbo_until=1)
        one.call("file_begin", **begin, version="v1")
        one.call("file_data", b"older", gfid=gfid.hex(), offset=0)
        with pytest.raises(SecondaryError, match="another connection"):
            other.call("file_begin", **begin, version="v2")
        item = primary.item(gfid, b"f")
        assert one.call("file_end", gfid=gfid.hex(), item=item, digest=None).header["errors"] == []
        assert other.call("file_begin", **begin, version="v2").header["offset"] == 0
    assert (b / "f").read_bytes() == b"older"


@pytest.mark.parametrize("now", ["gone", "another"])
def test_a_name_whose_inode_the_index_has_lost(trees, now):
    """It must not end every look at its directory. What stands there may be anybody's."""
    a, b = trees
    primary = Primary(a)
    for name in ("f", "g"):
        (a / name).write_text("1")
    with Far(b) as client:
        primary.crawl(client)
    with sqlite3.connect(b / ".seamark" / "index.sqlite") as db:
        db.execute("DELETE FROM inode WHERE id = (SELECT inode FROM entry WHERE name = CAST('f' AS BLOB))")
    (a / "f").unlink()
    if now == "another":
        (a / "f").write_text("2")
    with Far(b) as client:
        primary.crawl(client, "2")
    assert differences(a, b) == ""
    (aside,) = (b / ".seamark" / "displaced").glob("*/f")
    assert aside.read_text() == "1"


def test_a_wrong_digest_is_not_placed(trees):
    a, b = trees
    (a / "f").write_bytes(b"right")
    primary = Primary(a)
    gfid = primary.gfid(b"f")
    with Far(b) as client:
        client.begin_crawl("c")
        client.observe([primary.listing(b"")], crawl="c", limbo_until=1)
        client.call("file_begin", gfid=gfid.hex(), size=5, version="v")
        client.call("file_data", b"wrong", gfid=gfid.hex(), offset=0)
        header = client.call(
            "file_end", gfid=gfid.hex(), item=primary.item(gfid, b"f"), digest="00" * 32
        ).header
        assert header["errors"][0][1] == "io"
        assert not (b / "f").exists()
        assert client.dirty() == ([(gfid, b"f")], None)


@pytest.mark.parametrize("in_place", [None, True, False])
def test_a_unit_of_another_engine(trees, in_place):
    a, b = trees
    fill(a)
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        with open(a / "dir" / "sub" / "other", "r+b") as f:
            f.write(b"changed")
        (a / "file").write_bytes(b"through two names")
        paths = primary.paths()
        client.begin_crawl("u")
        listings = [primary.look(b"", [b"file"]), primary.look(b"dir/sub", [b"other"])]
        answer = client.observe(listings, crawl="u", limbo_until=1)
        gfids = [bytes.fromhex(g) for g, _ in answer.need]
        assert len(gfids) == 2
        unit = client.stage("u-1", gfids, in_place=in_place)
        for gfid in gfids:
            new = b / unit["path"] / gfid.hex()
            content = (a / os.fsdecode(paths[gfid])).read_bytes()
            assert new.exists() == (gfid.hex() in unit["in_place"])
            assert new.exists() != (b / unit["basis"] / gfid.hex()).exists()
            new.write_bytes(content)
        assert client.commit("u-1", [primary.item(g, paths[g]) for g in gfids]) == []
        primary.crawl(client, "v")
        assert differences(a, b) == ""
        assert client.check() == []
        assert [n for n in os.listdir(b / ".seamark" / "staging") if n.startswith("unit")] == []


def test_digests_agree_when_all_is_here(trees):
    from hashlib import blake2b

    a, b = trees
    fill(a)
    primary = Primary(a)
    import time

    time.sleep(0.1)  # a state that has settled

    def digest():
        entries = sorted(primary.listing(b"").entries, key=lambda e: e.name)
        parts = [e.name + b"\0" + struct.pack("<QQ", e.inode.ino, e.inode.ctime_ns) for e in entries]
        return blake2b(b"".join(parts), digest_size=16).digest()

    with Far(b) as client:
        assert client.digests([(ROOT_GFID, digest())]) == [0]
        primary.crawl(client)
        primary.crawl(client, "again")
        assert client.digests([(ROOT_GFID, digest()), (b"\x07" * 16, bytes(16))]) == [1]
        (a / "file").write_bytes(b"changed")
        os.utime(a / "file", ns=(1, 1))
        time.sleep(0.1)
        assert client.digests([(ROOT_GFID, digest())]) == [0]
        client.unlist([ROOT_GFID])
        primary.crawl(client, "third")
        assert client.digests([(ROOT_GFID, digest())]) == []


# ---- what is not ours


def test_foreign_objects_in_the_way_are_displaced_never_deleted(trees):
    a, b = trees
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        (b / "file").write_text("foreign file")
        (b / "dir").write_text("foreign, where a directory comes")
        (b / "symlink").mkdir()
        (b / "symlink" / "inside").write_text("foreign tree")
        fill(a)
        primary.crawl(client, "2")
        assert differences(a, b) == ""
        kept = {p.read_text() for p in (b / ".seamark" / "displaced").rglob("*") if p.is_file()}
        assert kept == {"foreign file", "foreign, where a directory comes", "foreign tree"}
        assert client.stat()["displaced"] == 3


def test_a_foreign_file_inside_a_purged_directory_is_displaced(trees):
    a, b = trees
    fill(a)
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        (b / "dir" / "sub" / "foreign").write_text("kept")
        shutil.rmtree(a / "dir")
        primary.crawl(client, "2", stamp=5)
        assert differences(a, b) == ""
        assert [p.read_text() for p in (b / ".seamark" / "displaced").rglob("foreign")] == ["kept"]
        assert client.stat()["limbo"] == 0
        assert os.listdir(b / ".seamark" / "limbo") == []


def test_foreign_deletes_and_writes_are_healed_by_the_next_look(trees):
    a, b = trees
    fill(a)
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        shutil.rmtree(b / "dir")
        (a / "dir" / "sub" / "other").write_bytes(b"changed")
        (a / "dir" / "new").write_bytes(b"new")
        for crawl in "xyz":
            primary.crawl(client, crawl)
        assert differences(a, b) == ""
        assert client.check() == []


@pytest.mark.parametrize("passage", range(2, 11, 2))
def test_killed_while_it_purges_a_tree(trees, passage):
    a, b = trees
    for d in ("t/x/y", "t/z"):
        (a / d).mkdir(parents=True)
        for i in range(3):
            (a / d / f"f{i}").write_bytes(b"x")
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        shutil.rmtree(a / "t")
        primary.crawl(client, "2", purge=False)
    far = Far(b, fault=f"purge:{passage}")
    with pytest.raises(LinkLost):
        far.client.purge(1)
    far.close()
    with Far(b) as client:
        client.purge(1)
        assert client.check() == []
        assert client.stat()["inodes"] == 1
        assert os.listdir(b / ".seamark" / "limbo") == []
        assert client.stat()["displaced"] == 0


# ---- adopting, rebuilding


def lose_index(root, how):
    """``begun``: whoever was making it anew was killed before anything was in it."""
    for path in (root / ".seamark").glob("index.sqlite*"):
        if how in ("lost", "begun"):
            path.unlink()
        else:
            path.write_bytes(b"not a database" * 1000 if how == "damaged" else b"")
    if how == "begun":
        with contextlib.closing(sqlite3.connect(root / ".seamark" / "index.sqlite")) as index:
            index.execute("PRAGMA journal_mode=WAL")


@pytest.mark.parametrize("how", ["adopt", "lost", "damaged", "empty", "begun"])
def test_an_index_is_made_anew_from_what_stands_there(trees, how):
    a, b = trees
    fill(a)
    (a / "type").mkdir()
    primary = Primary(a)
    if how == "adopt":
        subprocess.run(["cp", "-a", f"{a}/.", str(b)], check=True)
    else:
        if how != "begun":
            (a / "gone").write_text("in limbo")
        with Far(b) as client:
            primary.crawl(client)
            if how != "begun":
                (a / "gone").unlink()
                primary.crawl(client, "d", purge=False)
        lose_index(b, how)
    (b / "extra").mkdir()
    (b / "extra" / "deep").write_text("not the primary's")
    os.rmdir(b / "type")
    (b / "type").write_text("another type")
    inodes = {p: (b / p).stat().st_ino for p in ("file", "dir", "dir/sub/other")}
    far = Far(b, adopt=how == "adopt")
    assert far.hello["index"] == "rebuilding"
    client = far.client
    sent = []
    data = client.submit_data
    client.submit_data = lambda items, blobs, **k: sent.extend(items) or data(items, blobs, **k)
    primary.crawl(client, rebuilt=True)
    assert sent == []  # what is right already is not sent
    assert differences(a, b) == ""
    assert client.check() == []
    assert {p: (b / p).stat().st_ino for p in inodes} == inodes
    kept = {p.read_text() for p in (b / ".seamark" / "displaced").rglob("*") if p.is_file()}
    in_limbo = {"in limbo"} if how in ("lost", "damaged", "empty") else set()
    assert kept == {"not the primary's", "another type"} | in_limbo
    assert os.listdir(b / ".seamark" / "limbo") == []
    far.close()
    far = Far(b)
    assert far.hello["index"] == "ok"
    far.close()


# ---- trouble


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
@pytest.mark.root
def test_a_full_secondary_is_a_clean_error_and_recovers(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", b], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        primary = Primary(a)
        (a / "dir").mkdir()
        (a / "dir" / "big").write_bytes(os.urandom(12 << 20))
        for i in range(50):
            (a / "dir" / f"small{i}").write_bytes(b"x" * 5000)
        far = Far(b)
        client = far.client
        client.begin_crawl("c")
        answers = [client.observe([primary.listing(d)], crawl="c", limbo_until=1) for d in (b"", b"dir")]
        paths = primary.paths()
        codes = set()
        for answer in answers:
            for g, _ in answer.need:
                path = paths[bytes.fromhex(g)]
                content = (a / os.fsdecode(path)).read_bytes()
                codes |= {e[1] for e in client.data([primary.item(bytes.fromhex(g), path)], [content])}
        assert codes == {"no-space"}
        assert client.check() == []
        assert client.stat()["dirty"] == 1
        subprocess.run(["mount", "-o", "remount,size=64m", b], check=True)
        primary.crawl(client, "again")
        assert differences(a, b) == ""
        far.close()
    finally:
        subprocess.run(["umount", b], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.root
def test_without_privileges_what_can_be_kept_is_kept(open_path):
    a, b = open_path / "a", open_path / "b"
    a.mkdir()
    b.mkdir()
    os.chown(b, 65534, 65534)
    fill(a)
    os.mknod(a / "dir" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for path in (a / "dir" / "sub", a / "dir"):
        os.chmod(path, 0o555)
    for path in [a, *a.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    primary = Primary(a)
    far = Far(b, user=65534)
    client = far.client
    assert far.hello["fs"]["chown"] is False
    assert far.hello["fs"]["mknod"] is False
    client.begin_crawl("c")
    errors = []
    paths = primary.paths()
    for directory in (b"", b"dir", b"dir/sub"):
        answer = client.observe([primary.listing(directory)], crawl="c", limbo_until=1)
        errors += answer.errors
        primary.send(client, answer, paths)
    primary.send_metadata(client, [ROOT_GFID.hex()], paths)
    assert [e[1] for e in errors] == ["permission"]  # the device
    os.unlink(a / "dir" / "null")
    (a / "dir" / "more").write_text("into a directory that is read-only")
    os.chown(a / "dir" / "more", 65534, 65534)
    primary.crawl(client, "2")
    assert differences(a, b) == ""
    assert stat.S_IMODE((b / "dir").stat().st_mode) == 0o555
    os.rename(a / "dir" / "sub", a / "moved")
    primary.crawl(client, "3")
    shutil.rmtree(a / "dir")
    primary.crawl(client, "4")
    assert differences(a, b) == ""
    assert client.check() == []
    far.close()


def test_several_agents_serve_one_root(trees):
    a, b = trees
    primary = Primary(a)
    for d in range(4):
        (a / f"d{d}").mkdir()
        for i in range(150):
            (a / f"d{d}" / f"f{i}").write_bytes(b"%d" % i * 50)
    fars = [Far(b) for _ in range(4)]
    primary.crawl(fars[0].client)
    for d in range(4):
        for i in range(0, 150, 2):
            (a / f"d{d}" / f"f{i}").write_bytes(b"again %d" % i)
        os.rename(a / f"d{d}" / "f1", a / f"d{(d + 1) % 4}" / "moved")
    fars[0].client.begin_crawl("many")
    paths = primary.paths()
    with ThreadPoolExecutor(4) as pool:

        def one(d):
            client = fars[d].client
            for _ in range(3):
                answer = client.observe([primary.listing(b"d%d" % d)], crawl="many", limbo_until=1)
                primary.send(client, answer, paths)
                client.sync()

        list(pool.map(one, range(4)))
    primary.crawl(fars[1].client, "last")
    assert differences(a, b) == ""
    assert fars[2].client.check() == []
    for far in fars:
        far.close()
    assert os.listdir(b / ".seamark" / "staging") == []


def test_a_power_cut_makes_what_was_not_synced_wanted_again(trees):
    a, b = trees
    (a / "before").write_bytes(b"synced")
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        client.sync()
        (a / "after").write_bytes(b"not synced")
        primary.crawl(client, "2")
    db = sqlite3.connect(b / ".seamark" / "index.sqlite")
    with db:
        db.execute("UPDATE meta SET value = 'another' WHERE key = 'boot'")
    db.close()
    (b / "after").write_bytes(b"")  # what file systems do
    half = b / ".seamark" / "staging" / ("0" * 32 + ".1-2-3")
    half.write_bytes(bytes(1000))  # of a transfer: its length says nothing of its pages now
    with Far(b) as client:
        assert not half.exists()
        assert [path for _, path in client.dirty()[0]] == [b"after"]
        primary.crawl(client, "3")
        assert differences(a, b) == ""


def test_a_directory_that_was_made_empty_is_not_to_be_listed_unless_it_was_known(trees):
    a, b = trees
    (a / "d").mkdir()
    (a / "e").mkdir()
    primary = Primary(a)
    with Far(b) as client:
        client.begin_crawl("c")
        client.observe([primary.listing(b"")], crawl="c", limbo_until=1)
        client.unlist([primary.gfid(b"d")])
        (a / "new").mkdir()
        entries = primary.listing(b"").entries
        born = [e._replace(change=Change.EMPTY) for e in entries if e.name in (b"d", b"new")]
        answer = client.observe([Listing(ROOT_GFID, born)], position=1, limbo_until=1)
        assert answer.list == [primary.gfid(b"d").hex()]
        assert (b / "new").is_dir()
        (a / "newer").mkdir()
        found = [e for e in primary.listing(b"").entries if e.name == b"newer"]
        answer = client.observe([Listing(ROOT_GFID, found)], position=2, after=1, limbo_until=1)
        assert answer.list == [primary.gfid(b"newer").hex()]


def test_a_directory_that_a_crawl_missed_is_unlisted_with_all_below_it(trees):
    """And where records were lost, nothing of what was seen in it is believed: content may have changed and kept its version."""
    a, b = trees
    (a / "d" / "below").mkdir(parents=True)
    (a / "d" / "below" / "file").write_bytes(b"content")
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        assert client.unlisted() == ([], None)
        client.unlist([primary.gfid(b"d")])
        assert sorted(path for _, path in client.unlisted()[0]) == [b"d", b"d/below"]
        assert [path for _, path in client.unlisted(tops=True)[0]] == [b"d"]
        first, after = client.unlisted(limit=1)
        assert [path for _, path in first + client.unlisted(after)[0]] == [b"d", b"d/below"]
        assert client.dirty()[0] == []
        assert client.observe([primary.listing(b"d/below")], position=1, limbo_until=1).need == []
        client.unlist([primary.gfid(b"d")], doubt=True)
        assert client.dirty()[0] == []  # nobody knows where it is
        ((file, how),) = client.observe(
            [primary.listing(b"d/below")], position=2, after=1, limbo_until=1
        ).need
        assert (bytes.fromhex(file), how) == (primary.gfid(b"d/below/file"), "compare")


def test_a_file_is_doubted_wherever_it_is(trees):
    """Also below a directory that waits in limbo, and whose path leads nowhere."""
    a, b = trees
    (a / "d").mkdir()
    (a / "d" / "file").write_bytes(b"content")
    primary = Primary(a)
    with Far(b) as client:
        primary.crawl(client)
        file, directory = primary.gfid(b"d/file"), primary.gfid(b"d")
        os.rename(a / "d", a / "x")
        client.observe([Listing(ROOT_GFID, [Entry(b"d", None)])], position=1, limbo_until=1)
        assert client.whereabouts([directory, bytes(15) + b"\x99"]) == {directory: (True, None)}
        client.unlist([file], doubt=True)
        assert client.wanted([file])[0] > 0
        client.unlist([directory])
        assert client.unlisted() == ([(directory, None)], None)


@pytest.mark.parametrize("how", ["data", "compare"])
def test_content_of_what_is_doubted_is_taken_though_no_look_asked_for_it(trees, how):
    """It is read after whatever is here: who asks what is wanted is told a number that says so."""
    a, b = trees
    (a / "file").write_bytes(b"content")
    primary = Primary(a)
    volume = DirectoryVolume(os.fsencode(a))
    with Far(b) as client:
        sender = StreamSender(volume, client, compress=False)
        file = primary.gfid(b"file")

        def send(ticket):
            item = wanted_at(volume, file, b"file", how)
            assert [result.status for result in sender.send([item._replace(ticket=ticket)])] == ["ok"]
            assert client.wanted([file]) == [0]
            assert (b / "file").read_bytes() == (a / "file").read_bytes()

        client.begin_crawl("c")
        send(client.observe([primary.listing(b"")], crawl="c", limbo_until=1).ticket)
        client.unlist([file], doubt=True)
        if how == "data":
            (a / "file").write_bytes(b"changed")
        (ticket,) = client.wanted([file])
        send(ticket)


def test_content_for_what_is_gone_is_harmless(trees):
    a, b = trees
    (a / "f").write_bytes(b"x")
    primary = Primary(a)
    with Far(b) as client:
        errors = client.data([primary.item(primary.gfid(b"f"), b"f")], [b"x"])
        assert [e[1] for e in errors] == ["not-found"]


def test_change_says_what_kind_of_look_it_was():
    assert [int(c) for c in Change] == [0, 1, 2, 3]


def test_what_an_earlier_look_had_read_never_replaces_what_a_later_one_brought(trees):
    """Two data tasks of one file end in the wrong order, while a third look wants it once more."""
    a, b = trees
    primary = Primary(a)
    with Far(b) as client:
        client.begin_crawl("c")
        tickets, rows = [], []
        for content in (b"one", b"second", b"the third"):
            (a / "f").write_bytes(content)
            tickets.append(client.observe([primary.listing(b"")], crawl="c", limbo_until=1).ticket)
            rows.append([*primary.item(primary.gfid(b"f"), b"f")[:10], None, tickets[-1]])
        assert tickets == sorted(set(tickets))
        assert client.data([rows[1]], [b"second"]) == []
        assert client.data([rows[0]], [b"one"]) == []
        assert (b / "f").read_bytes() == b"second"
        assert client.wanted([primary.gfid(b"f")]) == [tickets[2]]
        assert client.data([rows[2]], [b"the third"]) == []
        assert (b / "f").read_bytes() == b"the third"
        assert client.wanted([primary.gfid(b"f")]) == [0]


@pytest.mark.root
def test_a_file_that_does_not_fit_leaves_room_for_what_removes_it(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", b], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        primary = Primary(a)
        far = Far(b)
        primary.crawl(far.client, "c")
        (a / "large").write_bytes(os.urandom(8 << 20))
        far.client.begin_crawl("d")
        (need,) = far.client.observe([primary.listing(b"")], crawl="d", limbo_until=1).need
        item = primary.item(bytes.fromhex(need[0]), b"large")
        far.client.call("file_begin", gfid=need[0], size=item[1], version="v")
        piece = 1 << 17
        with pytest.raises(SecondaryError) as caught:
            for n in range(64):
                far.client.call("file_data", os.urandom(piece), gfid=need[0], offset=n * piece)
        assert caught.value.code == "no-space"
        begun = far.client.call("file_begin", gfid=need[0], size=item[1], version="v").header
        assert begun["offset"] > 2 << 20  # kept, and not sent again
        found = os.statvfs(b)
        assert found.f_bavail * found.f_frsize >= 4 << 16
        (a / "large").unlink()
        for number in range(20):
            (a / f"small{number}").write_bytes(b"x" * 1000)
        primary.crawl(far.client, "e")
        assert differences(a, b) == ""
        far.close()
    finally:
        subprocess.run(["umount", b], check=True)
