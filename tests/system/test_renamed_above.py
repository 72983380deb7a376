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
