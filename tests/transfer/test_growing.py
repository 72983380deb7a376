"""Which large files are waited for."""

from __future__ import annotations

import os

from replication.transfer.growing import LARGE, wait_while_written
from replication.transfer.item import FileItem
from replication.volume.directory import DirectoryVolume


def test_what_is_new_or_grows_much_is_waited_for_and_a_log_is_not(tmp_path):
    volume = DirectoryVolume(os.fsencode(tmp_path))
    path = tmp_path / "large"

    def waited(how, observed, *, rests=False, size=LARGE):
        path.touch()
        os.truncate(path, size)
        os.utime(path, (1, 1) if rests else None)
        fd = os.open(path, os.O_RDONLY)
        try:
            item = FileItem(b"g" * 16, b"large", how, 1, 1, observed, 1, 1)
            return wait_while_written(volume, item, fd, volume.stat(fd), lambda _files, _bytes: None)
        finally:
            os.close(fd)

    assert waited("new", LARGE)
    assert waited("data", LARGE // 2)
    assert not waited("data", LARGE)
    assert not waited("data", LARGE, size=LARGE + LARGE // 10)
    assert not waited("new", LARGE, rests=True)
    assert not waited("new", LARGE - 1, size=LARGE - 1)
    volume.close()
