"""A name that goes from one object to another always stands for one of them, whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest

from replication.remote.errors import LinkLost
from tests.secondary.primary import Far, Primary, differences


class Pair:
    """A primary with a file `f`, and the secondary that has it."""

    def __init__(self, base):
        self.a, self.b = base / "a", base / "b"
        self.a.mkdir()
        self.b.mkdir()
        (self.a / "f").write_bytes(b"old")
        self.primary = Primary(self.a)
        self.far = Far(self.b)
        self.primary.crawl(self.far.client)
        self.crawl = 0

    @property
    def client(self):
        return self.far.client

    def save(self, path="f", content=b"the new one"):
        """As an editor does; the name is never absent."""
        (self.a / "aside").write_bytes(content)
        os.rename(self.a / "aside", self.a / path)

    # Transactions of a look: hello (after a restart), begin_crawl, observe; of content: hello, data.

    def look(self, *names, directory=b"", purge=True):
        """Observe some names; what loses its last name is not kept. Content is not sent."""
        self.crawl += 1
        self.client.begin_crawl(str(self.crawl))
        listing = self.primary.look(directory, [os.fsencode(n) for n in names])
        answer = self.client.observe([listing], crawl=str(self.crawl), limbo_until=self.crawl)
        if purge:
            self.client.purge(self.crawl)
        return answer

    def complete(self, answer=None):
        """Send what is wanted; then nothing differs and nothing is left over."""
        if answer is not None:
            self.primary.send(self.client, answer)
        for _ in range(2):  # the second settles the times
            self.crawl += 1
            self.primary.crawl(self.client, str(self.crawl), stamp=self.crawl)
        assert differences(self.a, self.b) == ""
        assert self.client.check() == []
        found = self.client.stat()
        assert (found["limbo"], found["dirty"], found["displaced"]) == (0, 0, 0)
        with sqlite3.connect(self.b / ".seamark" / "index.sqlite") as index:
            assert index.execute("SELECT count(*) FROM shadow").fetchone() == (0,)
        index.close()
        nlinks = {
            n: (os.lstat(self.a / n).st_nlink, os.lstat(self.b / n).st_nlink) for n in os.listdir(self.a)
        }
        assert all(here == there for here, there in nlinks.values()), nlinks

    def restart(self, **options):
        self.far.close()
        self.far = Far(self.b, **options)

    def old(self, name="f"):
        return (self.b / name).read_bytes() == b"old"


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    made.far.close()


# ---- what becomes of the old object


def test_the_old_content_stays_until_the_new_one_is_placed(pair):
    pair.save()
    answer = pair.look("f")
    assert [how for _, how in answer.need] == ["new"]
    assert pair.old()
    assert pair.client.check() == []
    pair.complete(answer)


@pytest.mark.parametrize("looks", ["together", "first the old name", "first the new name"])
@pytest.mark.parametrize("again", [False, True])
def test_what_was_seen_empty_comes_to_its_name_with_content(pair, looks, again):
    """A look between open(2) and write(2): the name is never empty, nor is a new one."""
    (pair.a / "aside").touch()
    (pair.a / "tmp").touch()
    answer = pair.look("aside", "tmp")
    assert answer.need == []
    pair.save()
    (pair.a / "tmp").write_bytes(b"a mail")
    os.rename(pair.a / "tmp", pair.a / "mail")
    if again:  # the old name is another one's by now
        (pair.a / "aside").write_bytes(b"the next one")
    names = ["f", "mail", "aside", "tmp"]
    if looks == "first the old name":
        pair.look("aside", "tmp", purge=False)
    if looks == "first the new name":
        answer = pair.look("f", "mail", purge=False)
        assert pair.old()
    answer = pair.look(*names)
    assert pair.old()
    assert not (pair.b / "mail").exists()
    assert not (pair.b / "tmp").exists()
    assert [how for _, how in answer.need] == ["new"] * (3 if again else 2)
    assert pair.client.check() == []
    pair.complete(answer)


def test_what_was_seen_empty_and_has_another_name_stays_there(pair):
    (pair.a / "aside").touch()
    os.link(pair.a / "aside", pair.a / "kept")
    pair.complete()
    pair.save()
    answer = pair.look("f", "aside", "kept")
    assert (pair.b / "kept").read_bytes() == b""
    pair.complete(answer)


def test_a_file_that_is_removed_and_made_anew(pair):
    (pair.a / "f").unlink()
    (pair.a / "f").write_bytes(b"another inode")
    answer = pair.look("f", purge=False)
    assert pair.old()
    pair.complete(answer)


def test_a_replaced_file_that_moved_is_in_both_places_until_then(pair):
    os.rename(pair.a / "f", pair.a / "f~")
    pair.save()
    answer = pair.look("f", "f~")
    assert pair.old()
    assert pair.old("f~")
    pair.complete(answer)


def test_a_replaced_file_that_has_another_name(pair):
    os.link(pair.a / "f", pair.a / "kept")
    pair.complete()
    pair.save()
    answer = pair.look("f", "kept")
    assert pair.old()
    assert pair.old("kept")
    pair.complete(answer)


def test_a_replaced_file_that_comes_back(pair):
    os.rename(pair.a / "f", pair.a.parent / "outside")
    pair.save()
    pair.look("f", purge=False)
    os.rename(pair.a.parent / "outside", pair.a / "f")
    ino = (pair.b / "f").stat().st_ino
    answer = pair.look("f")
    assert "new" not in [how for _, how in answer.need]
    assert (pair.b / "f").stat().st_ino == ino
    pair.complete(answer)


def test_new_content_of_the_replaced_file_does_not_show_under_the_old_name(pair):
    os.rename(pair.a / "f", pair.a / "f~")
    pair.save()
    answer = pair.look("f", "f~")
    (pair.a / "f~").write_bytes(b"written later")
    pair.primary.send(pair.client, pair.look("f~"))
    assert (pair.b / "f~").read_bytes() == b"written later"
    assert pair.old()
    pair.complete(answer)


def test_what_stands_as_a_shadow_is_not_written_in_place(pair):
    os.rename(pair.a / "f", pair.a / "f~")
    pair.save()
    answer = pair.look("f", "f~")
    gfid = pair.primary.gfid(b"f~")
    assert pair.client.stage("u", [gfid], in_place=True)["in_place"] == []
    pair.client.commit("u", [])
    pair.complete(answer)
    assert pair.client.stage("u", [gfid], in_place=True)["in_place"] == [gfid.hex()]
    pair.client.commit("u", [])


# ---- what comes instead


def test_replaced_twice_before_any_content_came(pair):
    for content in (b"second", b"third"):
        pair.save(content=content)
        answer = pair.look("f")
        assert pair.old()
    pair.complete(answer)


@pytest.mark.parametrize("kind", ["empty", "symlink", "fifo", "moved", "linked"])
@pytest.mark.parametrize("pending", [False, True])
def test_what_needs_no_content_replaces_it_at_once(pair, kind, pending):
    """In one rename: killed before it, the old content is there."""
    (pair.a / "there").write_bytes(b"known already")
    pair.complete()
    if pending:
        pair.save()
        pair.look("f")
    (pair.a / "f").unlink()
    if kind == "empty":
        (pair.a / "f").touch()
    elif kind == "symlink":
        os.symlink("nowhere", pair.a / "f")
    elif kind == "fifo":
        os.mkfifo(pair.a / "f")
    elif kind == "moved":
        os.rename(pair.a / "there", pair.a / "f")
    else:
        os.link(pair.a / "there", pair.a / "f")
    pair.restart(fault="over:1")
    with pytest.raises(LinkLost):
        pair.look("f", "there")
    assert pair.old()
    pair.restart()
    pair.look("f", "there")
    assert stat.S_IFMT(os.lstat(pair.b / "f").st_mode) == stat.S_IFMT(os.lstat(pair.a / "f").st_mode)
    assert os.lstat(pair.b / "f").st_size == os.lstat(pair.a / "f").st_size
    pair.complete()


@pytest.mark.parametrize("make", [lambda p: os.symlink("f", p), os.mkfifo], ids=["symlink", "fifo"])
def test_what_is_no_file_stays_until_the_file_is_there(pair, make):
    make(pair.a / "other")
    pair.complete()
    (pair.a / "other").unlink()
    (pair.a / "other").write_bytes(b"a file now")
    kind = os.lstat(pair.b / "other").st_mode
    answer = pair.look("other")
    assert os.lstat(pair.b / "other").st_mode == kind
    pair.complete(answer)


def test_a_directory_in_its_place_is_there_at_once(pair):
    pair.save()
    pair.look("f")
    (pair.a / "f").unlink()
    (pair.a / "f").mkdir()
    pair.look("f")
    assert (pair.b / "f").is_dir()
    pair.complete()


def test_a_name_that_is_gone_takes_its_shadow_along(pair):
    pair.save()
    pair.look("f")
    os.rename(pair.a / "f", pair.a / "g")
    answer = pair.look("f", "g")
    assert sorted(os.listdir(pair.b)) == [".seamark"]
    pair.complete(answer)


def test_a_directory_is_purged_with_the_shadows_in_it(pair):
    (pair.a / "d").mkdir()
    (pair.a / "d" / "f").write_bytes(b"old")
    pair.complete()
    pair.save("d/f")
    pair.look("f", directory=b"d")
    assert pair.old("d/f")
    shutil.rmtree(pair.a / "d")
    pair.look("d")
    assert os.listdir(pair.b / ".seamark" / "limbo") == []
    pair.complete()


def test_two_files_that_swap_their_names_are_never_away(pair):
    (pair.a / "g").write_bytes(b"the other")
    pair.complete()
    for passage in range(1, 20):
        for one, other in (("f", "x"), ("g", "f"), ("x", "g")):
            os.rename(pair.a / one, pair.a / other)
        pair.restart(fault=f"step:{passage}" if passage < 10 else f"over:{passage - 9}")
        try:
            pair.look("f", "g")
        except LinkLost:
            pair.restart()
        assert {(pair.b / n).read_bytes() for n in "fg"} <= {b"old", b"the other"}
        pair.complete()


# ---- what is not ours


def test_what_somebody_puts_over_a_shadow_is_displaced(pair):
    pair.save()
    answer = pair.look("f")
    (pair.b / "theirs").write_bytes(b"theirs")
    os.rename(pair.b / "theirs", pair.b / "f")
    pair.primary.send(pair.client, answer)
    assert (pair.b / "f").read_bytes() == b"the new one"
    assert [p.read_bytes() for p in (pair.b / ".seamark" / "displaced").rglob("f")] == [b"theirs"]
    assert pair.client.check() == []


def test_a_shadow_that_somebody_removed_is_not_missed(pair):
    pair.save()
    answer = pair.look("f")
    (pair.b / "f").unlink()
    pair.complete(answer)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.root
def test_what_may_not_be_linked_is_moved():
    """Somebody else's file in a directory of ours (fs.protected_hardlinks): absent, as a directory would be."""
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "0":
        pytest.skip("everybody may link everything here")
    with tempfile.TemporaryDirectory(prefix="seamark-test-") as base:
        os.chmod(base, 0o755)
        a, b = Path(base, "a"), Path(base, "b")
        a.mkdir()
        b.mkdir()
        (a / "f").write_bytes(b"old")
        for path in (a, a / "f", b):
            os.chown(path, 65534, 65534)
        primary = Primary(a)
        with Far(b, user=65534) as client:
            primary.crawl(client)
            os.chown(b / "f", 0, 0)
            (a / "new").write_bytes(b"the new one")
            os.chown(a / "new", 65534, 65534)
            os.rename(a / "new", a / "f")
            client.begin_crawl("2")
            answer = client.observe([primary.look(b"", [b"f"])], crawl="2", limbo_until=1)
            assert not (b / "f").exists()
            assert client.check() == []
            primary.send(client, answer)
            client.purge(1)
            assert (b / "f").read_bytes() == b"the new one"
            assert client.check() == []
            assert client.stat()["displaced"] == 0


# ---- the index


def test_an_index_that_is_made_anew_keeps_what_stands_there(pair):
    """Two names of one inode here, of two on the primary: neither is absent meanwhile."""
    os.rename(pair.a / "f", pair.a / "f~")
    pair.save()
    pair.look("f", "f~")
    pair.far.close()
    for path in (pair.b / ".seamark").glob("index.sqlite*"):
        path.unlink()
    pair.far = Far(pair.b)
    pair.client.begin_crawl("new")
    answer = pair.client.observe([pair.primary.listing(b"")], crawl="new", limbo_until=1)
    assert pair.old()
    assert pair.old("f~")
    pair.primary.send(pair.client, answer)
    pair.primary.crawl(pair.client, "again", rebuilt=True)
    pair.complete()


def test_an_index_from_before_there_were_shadows_goes_on(pair):
    pair.far.close()
    with sqlite3.connect(pair.b / ".seamark" / "index.sqlite") as index:
        index.execute("DROP TABLE shadow")
    index.close()
    pair.far = Far(pair.b)
    assert pair.far.hello["index"] == "ok"
    pair.save()
    answer = pair.look("f")
    assert pair.old()
    pair.complete(answer)


# ---- kills


@pytest.mark.parametrize("fault", ["step:1", "linked:1", "commit:3", "committed:3"])
@pytest.mark.parametrize("backup", [False, True])
def test_killed_while_the_old_object_is_set_aside(pair, fault, backup):
    if backup:
        os.rename(pair.a / "f", pair.a / "f~")
    pair.save()
    pair.restart(fault=fault)
    with pytest.raises(LinkLost):
        pair.look("f", "f~")
    assert pair.old()
    pair.restart()
    pair.client.begin_crawl("to recover")
    assert pair.client.check() == []
    answer = pair.look("f", "f~")
    assert pair.old()
    pair.complete(answer)


def test_killed_before_a_shadow_is_replaced_that_has_just_been_linked(pair):
    """Its ctime is new, as that of a file which was to be made there; it is not taken for that."""
    pair.restart(fault="over:1")
    pair.save()
    pair.look("f", purge=False)
    pair.save(content=b"")
    with pytest.raises(LinkLost):
        pair.look("f")
    assert pair.old()
    pair.restart()
    pair.client.begin_crawl("to recover")
    with sqlite3.connect(pair.b / ".seamark" / "index.sqlite") as index:
        twice = index.execute(
            "SELECT ino FROM inode WHERE ino <> 0 GROUP BY ino HAVING count(*) > 1"
        ).fetchall()
    index.close()
    assert twice == []
    assert pair.client.check() == []
    pair.look("f")
    assert (pair.b / "f").read_bytes() == b""
    pair.complete()


@pytest.mark.parametrize("fault", ["place:1", "over:1", "over:2", "commit:2", "committed:2"])
def test_killed_while_the_content_is_placed(pair, fault):
    os.link(pair.a / "f", pair.a / "g")
    pair.complete()
    pair.save("f")
    (pair.a / "g").unlink()
    os.link(pair.a / "f", pair.a / "g")
    answer = pair.look("f", "g")
    assert pair.old()
    assert pair.old("g")
    pair.restart(fault=fault)
    with pytest.raises(LinkLost):
        pair.primary.send(pair.client, answer)
    assert {(pair.b / n).read_bytes() for n in "fg"} <= {b"old", b"the new one"}
    pair.restart()
    pair.complete(answer)


@pytest.mark.parametrize("fault", ["lifted:1", "commit:3", "committed:3"])
def test_killed_while_a_shadow_is_removed(pair, fault):
    pair.save()
    pair.look("f")
    (pair.a / "f").unlink()
    pair.restart(fault=fault)
    with pytest.raises(LinkLost):
        pair.look("f")
    pair.restart()
    pair.look("f")
    assert not (pair.b / "f").exists()
    pair.complete()


@pytest.mark.parametrize("fault", ["step:1", "step:2", "step:3", "step:4", "commit:3", "committed:3"])
@pytest.mark.parametrize("limbo", [False, True])
def test_killed_while_what_was_seen_empty_is_forsaken(pair, fault, limbo):
    (pair.a / "aside").touch()
    (pair.a / "other").touch()
    pair.complete()
    pair.save()
    (pair.a / "other").write_bytes(b"in a new place")
    os.rename(pair.a / "other", pair.a / "elsewhere")
    if limbo:
        pair.look("aside", "other", purge=False)
    pair.restart(fault=fault)
    try:
        pair.look("f", "aside", "elsewhere", "other")
    except LinkLost:
        pair.restart()
    else:
        assert fault == "step:4"
    assert pair.old()
    assert pair.client.check() == []
    answer = pair.look("f", "aside", "elsewhere", "other")
    assert pair.old()
    pair.complete(answer)
