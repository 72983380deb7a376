"""Whoever writes a session's files is killed at each point: each file is the old one or the new one, and loads."""

from __future__ import annotations

import json
import os
import re
import stat
import time

import pytest

from replication import session_file
from replication.remote.known_hosts import Verdict, judge
from replication.session import Desired, SessionDir
from scheduler import courier, history
from scheduler.events import EventBook, spool
from scheduler.status_file import StatusFile, last_report
from tests.killing import kill_at_each, run_killed

WRITER = """
import sys
from pathlib import Path
from replication import session_file
from replication.remote.known_hosts import pin
from replication.remote.pem import make_key
from replication.session import Desired, SessionDir, SessionState
from replication.settings import SessionConfig, key_named
from scheduler import courier, history
from scheduler.events import EventBook, Kind, spool
from scheduler.history import History
from scheduler.snapshot import Phase, ProgressSnapshot
from scheduler.status_file import StatusFile

place = SessionDir(Path(sys.argv[1]), "s1")
place.path.mkdir(parents=True, exist_ok=True)
samples = History(place)

def deliver():
    for path in sorted(spool(place).glob("*.json")):
        courier._done(path, courier._COMMAND)
    courier.Courier._clear(spool(place), [courier._COMMAND])

def note():
    samples._due = 0
    samples.note({"bytes": 1, "files": 1}, 1.0, 60, 0, 0)

config = SessionConfig(primary="/p", secondary="/s")
STEPS = [
    lambda: session_file.write_new(place.named_config, config, "made by hand"),
    lambda: session_file.set_key(place.named_config, key_named("events.command"), ["true"]),
    lambda: session_file.set_key(place.named_config, key_named("jobs"), 3),
    lambda: session_file.reset_key(place.named_config, key_named("jobs")),
    lambda: place.save_state(SessionState(id="1")),
    lambda: place.save_state(SessionState(id="1", desired=Desired.STARTED)),
    lambda: StatusFile(place).write(ProgressSnapshot(phase=Phase.STARTING)),
    lambda: StatusFile(place).write(ProgressSnapshot(phase=Phase.IDLE)),
    lambda: EventBook(place).state(Kind.ACTIVE),
    lambda: EventBook(place).state(Kind.FAULTY, "why"),
    deliver,
    lambda: EventBook(place).held("may they go?"),
    note,
    note,
    lambda: pin(place.known_hosts, "host", 22, "ssh-ed25519", b"blob"),
    lambda: pin(place.known_hosts, "other", 22, "ssh-ed25519", b"blob2"),
    lambda: make_key(place.key),
    lambda: make_key(place.key),
]
print("ready", flush=True)
sys.stdin.readline()
for number, step in enumerate(STEPS):
    step()
    print(number, flush=True)
"""


def check(place, done, *, events=True):
    """What is true when the step ``done`` was the last that was said to be done. ``events``: none was delivered before."""
    if done >= 0:
        config = place.load_config()
        assert (config.primary, config.secondary) == ("/p", "/s")
        assert done < 1 or list(config.events.command) == ["true"]
    if done >= 4:
        assert place.state().id == "1"
        assert done < 5 or place.state().desired is Desired.STARTED
    if done >= 6:
        assert last_report(place) is not None
    waiting = [courier._read(path) for path in sorted(spool(place).glob("*.json"))]
    assert None not in waiting
    told = [each.event["event"] for each in waiting]
    if events and done == 8:  # after 9 they are being delivered
        assert "active" in told
    if events and done >= 11:
        assert told[-1] == "deletes-held"
    book = place.path / "told.json"
    if book.exists():
        json.loads(book.read_bytes())
    if done >= 13:
        assert len(history.read(place)) in (
            1,
            2,
        )  # one for each ten seconds: two runs may fall into two of those
    for step, name, blob in ((14, "host", b"blob"), (15, "other", b"blob2")):
        if done >= step:
            assert judge([place.known_hosts], name, 22, blob)[0] is Verdict.KNOWN
    if done >= 16 and place.key.exists():
        assert stat.S_IMODE(place.key.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "most",
    [
        pytest.param(4, id="some"),
        pytest.param(None, id="each", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_killed_before_a_call(most, tmp_path):
    def work(log, point):
        base = tmp_path / re.sub(r"\W", "_", f"at-{point}")
        place = SessionDir(base, "s1")
        killed, said = run_killed(WRITER, [base], log, point)
        check(place, int(said[-1]) if said else -1)
        hour_ago(base)
        _, said = run_killed(WRITER, [base], tmp_path / "again", None)
        check(place, int(said[-1]), events=False)
        assert b"PRIVATE KEY" in place.key.read_bytes()
        assert [path for path in base.rglob("*.new") if path.is_file()] == []
        return killed

    kill_at_each("files", work, tmp_path / "calls", most)


def hour_ago(base):
    for path in base.rglob("*.new"):
        then = time.time() - 2 * session_file._ASIDE_S
        os.utime(path, (then, then))


def test_what_is_being_written_now_is_left_alone(tmp_path):
    place = SessionDir(tmp_path, "s1")
    place.path.mkdir(parents=True)
    young, old = place.path / "status.1.new", place.path / "told.2.new"
    for path in (young, old):
        path.touch()
    os.utime(old, (1, 1))
    StatusFile(place)
    EventBook(place)
    assert young.exists()
    assert not old.exists()
