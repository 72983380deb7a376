"""A directory is renamed between the look at what is in it and the reading of its attributes: no record tells of those again."""

from __future__ import annotations

import os

from tests.judge import assert_same
from tests.system.hooks import hook

HOOK = """
row = module._row

def renamed(volume, gfid, path):
    if path.startswith(b"old/") and os.path.exists({flag!r}):
        os.unlink({flag!r})
        os.rename(volume.root + b"/old", volume.root + b"/new")
    return row(volume, gfid, path)

module._row = renamed
"""


def test_attributes_are_read_all_the_same(place, tmp_path):
    flag = tmp_path / "flag"
    hooked = hook(tmp_path, "replication.attributes", HOOK.format(flag=str(flag)))
    old = place.primary / "old"
    (old / "below").mkdir(parents=True)
    for name in ("a", "b", "below/c"):
        (old / name).write_text(name)
    with place.run(python_path=hooked) as run:
        run.wait_idle()
        flag.touch()
        for name in ("a", "b", "below/c"):
            (old / name).chmod(0o640)
            os.setxattr(old / name, "user.of", name.encode())
        run.wait_for(lambda: not flag.exists(), "the rename")
        run.wait_same()
        run.wait_idle()
        assert run.status["failures"] == 0
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


WITHOUT_HANDLES = """
opened = module.DirectoryVolume.open_dir

def open_dir(self, path, gfid):
    if path == b"old/below" and os.path.exists({flag!r}):
        os.unlink({flag!r})
        os.rename(self.root + b"/old", self.root + b"/new")
    return opened(self, path, gfid)

def open_dir_by_handle(self, handle):
    raise PermissionError(1, "as for a user")

module.DirectoryVolume.open_dir = open_dir
module.DirectoryVolume.open_dir_by_handle = open_dir_by_handle
"""


def test_what_was_recorded_in_it_is_looked_at_also_without_privileges(place, tmp_path):
    """The directory is renamed before its record is looked at, and no handle may be opened."""
    flag = tmp_path / "flag"
    hooked = hook(tmp_path, "replication.volume.directory", WITHOUT_HANDLES.format(flag=str(flag)))
    below = place.primary / "old" / "below"
    below.mkdir(parents=True)
    for name in "abc":
        (below / name).write_text(name)
    with place.run(python_path=hooked) as run:
        run.wait_idle()
        flag.touch()
        (below / "a").write_text("changed")
        (below / "b").unlink()
        (below / "c").rename(below / "e")
        run.wait_for(lambda: not flag.exists(), "the rename")
        run.wait_same()
        run.wait_for(lambda: run.status["failures"] == 0, "the failure to be over")
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


UNREADABLE = """
identify = module.DirectoryVolume.identify

def failing(self, dir_fd, name):
    if name == b"bad" and os.path.exists({flag!r}):
        raise OSError(5, "Input/output error")
    return identify(self, dir_fd, name)

module.DirectoryVolume.identify = failing
"""


def test_what_could_not_be_read_is_found_under_another_name(place, tmp_path):
    """Its directory is renamed before it is tried again: no record says where it is, and the mark waits for it."""
    flag = tmp_path / "flag"
    hooked = hook(tmp_path, "replication.volume.directory", UNREADABLE.format(flag=str(flag)))
    old = place.primary / "old"
    old.mkdir(parents=True)
    with place.run(python_path=hooked) as run:
        run.wait_idle()
        flag.touch()
        (old / "bad").write_text("whole")
        run.wait_for(lambda: run.status["failures"] == 1, "a failure")
        old.rename(place.primary / "new")
        flag.unlink()
        run.wait_same()
        run.wait_for(lambda: run.status["failures"] == 0, "the failure to be over")
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
