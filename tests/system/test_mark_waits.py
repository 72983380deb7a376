"""What the mark waits for is not let go of by what happens meanwhile: a hold, another name, another detector, a kill."""

from __future__ import annotations

import os
import signal
import sqlite3

import pytest

from tests.system.test_deletes import settings
from tests.system.test_lost_ledger import UNHELPED
from tests.system.test_mark_and_moves import FREEZE
from tests.system.test_moved_while_looked_at import BY_RECORD, Scene, end, mark_after_now


def unsettled_rows(run):
    """(gfid, since_ns, tries) of what the mark waits for."""
    (path,) = run.state.glob("sessions/*/progress.sqlite")
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT gfid, since_ns, tries FROM unsettled").fetchall()
    db.close()
    return found


# Its new name is to be looked at, and it has another one by then, which is recorded after what is waited for.
AND_ON = """
import tasks.entry
looked = tasks.entry._look_at_records

def on(work, observer, segment, at):
    if os.path.exists({root!r} + "/new") and os.path.exists({again!r}):
        import time
        from replication import unsettled
        while any(row.upto is None for row in work.ctx.progress.look(unsettled.rows)):
            work.alive()
            time.sleep(0.01)
        freeze({again!r})
        os.rename({root!r} + "/new", {root!r} + "/newer")
        os.unlink({again!r})
    return looked(work, observer, segment, at)

tasks.entry._look_at_records = on
"""


@pytest.mark.parametrize("setting", ['max_delete = "1"', "ignore_deletes = true"])
def test_what_was_missed_lies_below_a_name_that_is_held(place, tmp_path, setting):
    """The name is gone, and stays on the secondary: whether it is gone for good is not known before all until then is applied."""
    scene = Scene(place, tmp_path, BY_RECORD, FREEZE + AND_ON + UNHELPED)
    assert place.once().process.returncode == 0
    settings(place, setting)
    with place.run(python_path=scene.path) as run:
        run.wait_idle()
        recorder = run.pids("agent")
        scene.again.write_text(str(recorder))
        scene.come_from_outside(run)
        run.wait_for(lambda: not scene.again.exists(), "it to move on")
        run.wait_for(
            lambda: all(not gfid or tries for gfid, _, tries in unsettled_rows(run)), "it to be looked for"
        )
        os.kill(recorder, signal.SIGCONT)
        mark_after_now(run, place)
        assert scene.arrived("newer")
        end(run, place)
