"""Views of a secondary: writable, complete, of no consequence for it, and gone afterwards, also after kill -9."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from replication.errors import SeamarkError
from replication.remote.answers import SecondaryError
from replication.secondary.clones import copy_content
from tests.conftest import missing
from tests.filesystems import available, filesystem
from tests.judge import assert_same
from tests.secondary.primary import Far, Primary
from tests.secondary.roots import METHODS, root_of
from tests.system.trees import every_kind_of_thing

pytestmark = pytest.mark.root
WAYS = {**METHODS, "ext4": "overlay", "ext4 copy": "copy"}


@contextmanager
def place(kind, directory):
    if not kind.startswith("ext4"):
        with root_of(kind, directory) as root:
            yield root
        return
    if why := available("ext4"):
        missing(why)
    with filesystem("ext4", directory, mib=128) as mounted:
        (mounted / "root").mkdir()
        yield mounted / "root"


@pytest.fixture(params=WAYS)
def kind(request):
    return request.param


@pytest.fixture
def root(kind, tmp_path):
    with place(kind, tmp_path / "fs") as made:
        yield made


@pytest.fixture
def primary(root):
    made = root.parent / "primary"
    made.mkdir()
    every_kind_of_thing(made)
    (made / "sparse").unlink()  # too large for one request
    return made


def make(client, kind, **more):
    return client.finish("view", method=WAYS[kind] if kind == "ext4 copy" else "auto", **more)


def check(client, command, timeout_s=60):
    client.call("view_check", command=command, timeout_s=timeout_s, mark="1")
    while (state := client.call("view_state").header)["running"]:
        pass
    return state


def left(root):
    """What of views is there: homes, layers beside the root, mounts."""
    views = root / ".seamark" / "views"
    found = [str(p) for p in views.iterdir()] if views.exists() else []
    found += [str(p) for p in root.parent.glob(".seamark-view.*")]
    return found + mounts(root)


def mounts(root):
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in lines if str(root.parent) in line and "overlay" in line]


def test_a_view_is_complete_and_what_is_done_in_it_stays_in_it(kind, root, primary):
    with Far(root) as client:
        side = Primary(primary)
        side.crawl(client)
        before = sorted(os.listdir(root))
        with Far(root, read_only=True, epoch=0) as other:
            made = make(other, kind)
            assert made["method"] == WAYS[kind]
            assert mounts(root) == []  # only the check sees one
            assert made["frozen"] == (kind != "ext4")
            assert made["completed"] == {"restored": 0, "displaced": 0, "missing": 0, "wanted": 0, "torn": []}
            words = (
                'test "$PWD" = "$SEAMARK_DRILL_PATH" && rsync -naHAXSi --delete --checksum --numeric-ids --exclude=/.seamark '
                f"{primary}/ ./ && umask && echo changed > file && rm -r dir/deep && mv big renamed && mkdir -p new/below && "
                "ls -di dir/hard\\ link"
            )
            state = check(other, words)
            assert state["code"] == 0, state
            lines = state["output"].splitlines()
            assert lines[0] == "0022", lines  # the judge had nothing to say
            # The secondary is what it was, and goes on meanwhile.
            assert_same(primary, root)
            assert client.check() == []
            (primary / "later").write_text("later")
            side.crawl(client, stamp=2)
            assert_same(primary, root)
            other.finish("view_drop")
            with pytest.raises(SecondaryError):
                other.call("view_state")
        assert left(root) == []
        assert sorted(os.listdir(root)) == sorted([*before, "later"])
        side.crawl(client, stamp=3)
        assert_same(primary, root)
        assert client.check() == []


def test_what_waits_in_limbo_is_where_it_was(kind, root, primary):
    with Far(root) as client:
        side = Primary(primary)
        side.crawl(client)
        (primary / "dir" / "deep").rename(primary / "deep")
        client.observe([side.look(b"dir", [b"deep"])], position=1, limbo_until=5)
        assert client.stat()["limbo"] == 1
        assert not (root / "dir" / "deep").exists()
        with Far(root, read_only=True, epoch=0) as other:
            made = make(other, kind)
            assert made["completed"]["restored"] == 1
            state = check(other, "test -d dir/deep/deeper && test $(stat -c %h file) = 3")
            assert state["code"] == 0, state
        assert client.stat()["limbo"] == 1
        assert client.observe([side.look(b"", [b"deep"])], position=2, limbo_until=6).need == []
        side.crawl(client, stamp=7)
        assert_same(primary, root)


def test_of_one_whose_process_was_killed_nothing_is_left(kind, root, primary):
    with Far(root) as client:
        Primary(primary).crawl(client)
    for stage in ("making", "made", "checking"):
        far = Far(root, read_only=True, epoch=0)
        if stage == "making":
            future = far.client.submit("view", method=WAYS[kind] if kind == "ext4 copy" else "auto")
            time.sleep(0.05)
        else:
            make(far.client, kind)
        if stage == "checking":
            far.client.call("view_check", command="exec sleep 1000", timeout_s=1000)
            (sleeper,) = Path(f"/proc/{far.process.pid}/task/{far.process.pid}/children").read_text().split()
        far.process.kill()
        far.process.wait()
        if stage == "making":
            with contextlib.suppress(SeamarkError):  # or it was done already
                future.result(10)
        far.close()
        if stage == "checking":
            until = time.monotonic() + 10
            while os.path.exists(f"/proc/{sleeper}") and time.monotonic() < until:
                time.sleep(0.05)
            assert not os.path.exists(f"/proc/{sleeper}")
        with Far(root, epoch=2):
            until = time.monotonic() + 20
            while left(root) and time.monotonic() < until:
                time.sleep(0.05)
        assert left(root) == [], stage
    assert_same(primary, root)


def test_one_that_is_kept_stays_until_it_is_discarded(kind, root, primary):
    with Far(root) as client:
        Primary(primary).crawl(client)
    with Far(root, read_only=True, epoch=0) as other:
        make(other, kind, stays=True)
        kept = other.call("view_keep", why="to look at").header
    with Far(root, epoch=2) as client:
        path = Path(kept["path"])
        assert_same(primary, path)
        (path / "file").write_text("changed")
        assert_same(primary, root)
        assert [r["name"] for r in client.call("views").header["kept"]] == [kept["name"]]
        # A second one is thrown away without it.
        with Far(root, read_only=True, epoch=0) as other:
            make(other, kind)
        assert (path / "file").read_text() == "changed"
        assert client.finish("views_discard")["discarded"] == [kept["name"]]
        assert left(root) == []
        assert_same(primary, root)


def test_checks(tmp_path):
    with Far(tmp_path / "b") as client:
        client.finish("view", method="copy")
        assert check(client, "echo $SEAMARK_DRILL_MARK; exit 3")["code"] == 3
    with Far(tmp_path / "b") as client:
        client.finish("view", method="copy")
        state = check(client, "yes | head -c 300000; sleep 100 & sleep 100", timeout_s=2)
        assert (state["code"], state["late"], len(state["output"])) == (-signal.SIGKILL, True, 65536)
        with pytest.raises(SecondaryError, match="runs already"):
            client.call("view_check", command="true", timeout_s=1)
        with pytest.raises(SecondaryError, match="there is a view already"):
            client.finish("view", method="copy")
    with Far(tmp_path / "b") as client:
        for method, code in (("nothing", "unsupported"), ("btrfs", "unsupported")):
            with pytest.raises(SecondaryError) as caught:
                client.finish("view", method=method)
            assert caught.value.code == code
        with pytest.raises(SecondaryError, match="no view"):
            client.call("view_check", command="true", timeout_s=1)


def test_a_copy_needs_room(tmp_path):
    if why := available("ext4"):
        missing(why)
    with filesystem("ext4", tmp_path, mib=64) as there:
        (there / "primary").mkdir()
        (there / "primary" / "f").write_bytes(os.urandom(25 << 20))
        with Far(there / "root") as client:
            Primary(there / "primary").crawl(client)
            with pytest.raises(SecondaryError) as caught:
                client.finish("view", method="copy")
            assert caught.value.code == "no-space"
        assert left(there / "root") == []


def test_a_large_file_is_copied_a_part_at_a_time(tmp_path):
    """Between two parts it can be said that we live: a file of some hundred GB takes longer than an answer may."""
    one, other = tmp_path / "one", tmp_path / "other"
    with open(one, "wb") as file:
        file.write(os.urandom(20 << 20))
        file.seek(100 << 20)
        file.write(b"behind a hole")
        file.truncate(200 << 20)
    with open(one, "rb") as source, open(other, "wb") as target:
        assert len(list(copy_content(source.fileno(), target.fileno(), 200 << 20))) > 2
    assert_same_file(one, other)
    assert other.stat().st_blocks * 512 < 30 << 20


def assert_same_file(one, other):
    assert one.stat().st_size == other.stat().st_size
    assert one.read_bytes() == other.read_bytes()
