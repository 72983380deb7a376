"""What loses its last name waits in limbo for the next one: nothing of it is sent again, and its inode stays the same."""

from __future__ import annotations

import os

import pytest

from tests.secondary.test_shadows import Pair


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    yield made
    made.far.close()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_a_name_that_goes_in_one_look_and_comes_in_the_next(pair, kind):
    old, new = pair.a / "old", pair.a / "new"
    if kind == "file":
        old.write_bytes(os.urandom(5000))
    elif kind == "directory":
        old.mkdir()
        (old / "below").write_bytes(os.urandom(5000))
    else:
        old.symlink_to("nowhere")
    pair.complete()
    ino = os.lstat(pair.b / "old").st_ino
    old.rename(new)
    pair.look("old", purge=False)
    assert not os.path.lexists(pair.b / "old")
    assert pair.client.stat()["limbo"] == 1
    answer = pair.look("new", purge=False)
    assert {how for _, how in answer.need} <= {"compare"}  # nobody says that its content is as before
    assert os.lstat(pair.b / "new").st_ino == ino
    assert pair.client.stat()["limbo"] == 0
    pair.complete(answer)


def test_what_never_comes_back_is_removed(pair):
    (pair.a / "f").unlink()
    pair.look("f", purge=False)
    assert pair.client.stat()["limbo"] == 1
    pair.client.purge(pair.crawl)
    pair.complete()
