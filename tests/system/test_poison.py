"""One file among hundreds makes whatever sends it fail, for no reason that is known: it ends up alone."""

from __future__ import annotations

import os
import re

import pytest

from tests.judge import assert_same
from tests.system.hooks import hook

HOOK = """
send = module.sync_by_tar

def sync_by_tar(items, *words, **names):
    harmful = [item for item in items if item.path == b"d/poison"]
    if harmful and os.path.exists({flag!r}):
        send([item for item in items if item not in harmful][:3], *words, **names)
        if {killed!r}:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("a bad day")
    return send(items, *words, **names)

module.sync_by_tar = sync_by_tar
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_file_that_cannot_be_sent_is_found_and_the_rest_is_not_sent_again(place, tmp_path, killed):
    flag = tmp_path / "harmful"
    flag.touch()
    hooked = hook(tmp_path, "replication.transfer.tar", HOOK.format(flag=str(flag), killed=killed))
    (place.primary / "d").mkdir()
    names = [*(f"f{number:03}" for number in range(200)), "poison"]
    for name in names:
        (place.primary / "d" / name).write_bytes(os.urandom(3000))
    with place.run("--sync-method", "tar", python_path=hooked) as run:
        run.wait_for(
            lambda: len(list((place.secondary / "d").glob("f*"))) == 200, "all but one", 200 if killed else 60
        )
        run.wait_for(lambda: run.status["failures"] == 1, "the one", 200 if killed else 30)
        (place.primary / "later").write_text("later")
        run.wait_for(lambda: (place.secondary / "later").exists(), "what comes later")
        assert not (place.secondary / "d" / "poison").exists()
        assert run.counters()["bytes_sent"] < 2 * 201 * 3000, "what was sent is not sent again"
        mark = run.progress()
        assert mark["stime_ns"] < os.stat(place.primary / "d" / "poison").st_ctime_ns
        said = [message["message"] for message in run.of_type("log")]
        why = "its process ended 3 times while it was at it" if killed else "ValueError: a bad day"
        assert any(re.fullmatch(rf"data of d/poison failed: {why} \(unexpected\)", line) for line in said), (
            said
        )
        flag.unlink()
        run.wait_for(lambda: run.status["failures"] == 0, "the failure to be over", 60)
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
