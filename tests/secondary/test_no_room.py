"""A file system on which no file can be made any more costs the secondary nothing that it has."""

from __future__ import annotations

import os
import subprocess

import pytest

from replication.remote.answers import SecondaryError
from tests.conftest import missing
from tests.filesystems import available, filesystem
from tests.judge import assert_same
from tests.secondary.primary import Far, Primary

pytestmark = pytest.mark.root


@pytest.fixture
def pair(tmp_path):
    """A primary, and a root of which the file system can be filled: ``fill`` and ``empty``."""
    if reason := available("tmpfs"):
        missing(reason)
    with filesystem("tmpfs", tmp_path, mib=16) as where:
        subprocess.run(["mount", "-o", "remount,nr_inodes=500", where], check=True)
        (tmp_path / "primary").mkdir()
        for number in range(5):
            (tmp_path / "primary" / f"f{number}").write_text(f"{number}")
        yield tmp_path / "primary", where / "secondary", where / "ballast"


def fill(ballast):
    """Until there is room for no other file."""
    ballast.mkdir(exist_ok=True)
    with pytest.raises(OSError, match="No space left"):
        for number in range(1000):
            (ballast / f"{number}").touch()


@pytest.mark.parametrize("made_room_for", [0, 1])
def test_the_index_is_kept(pair, made_room_for):
    """SQLite needs files of its own beside it, and says of those what it says of one that cannot be opened at all."""
    source, root, ballast = pair
    primary = Primary(source)
    far = Far(root)
    with far as client:
        primary.crawl(client)
        client.sync()
    before = far.hello
    fill(ballast)
    for number in range(made_room_for):
        (ballast / f"{number}").unlink()
    with pytest.raises(SecondaryError) as raised:
        Far(root)
    assert raised.value.code == "no-space", raised.value
    for file in ballast.iterdir():
        file.unlink()
    far = Far(root)
    with far as client:
        assert (far.hello["index"], far.hello["index_id"]) == ("ok", before["index_id"])
        primary.crawl(client, "2")
        assert client.check() == []
    assert_same(source, root)
    assert not [name for name in os.listdir(root / ".seamark") if name.startswith("damaged-index")]
