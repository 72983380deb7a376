"""What a promotion leaves for the way back: a session that records, whatever was interrupted, and no reason to fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time

import pytest

from replication import session_file
from replication.failback.promoted import promoted_root
from replication.failback.recorded import Count
from replication.session import Desired, SessionDir, node_name, pair_id, session_names
from replication.settings import SessionConfig
from scheduler import way_back
from scheduler.failback import session_on
from scheduler.monitor_client import ask_monitor
from scheduler.way_back import record_from_now
from tests.changelog.running import running
from tests.conftest import missing
from tests.filesystems import available, filesystem
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.secondary.test_promotion import promote
from tests.secondary.test_seeding import Turned

pytestmark = pytest.mark.root


@pytest.fixture
def turned(tmp_path):
    made = Turned(tmp_path)
    made.promote()
    owner = made.b / ".seamark" / "owner"
    of = {"name": "photos", "path": str(made.a), "node": node_name()}
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "of": of}))
    yield made
    made.far.close()


def test_it_is_one_session_whatever_was_interrupted(turned, tmp_path):
    state = tmp_path / "state"
    said = record_from_now(str(state), str(turned.b))
    assert (said.session, said.recording) == ("photos", False)
    assert "once a monitor runs here" in said.says
    place = SessionDir(state, "photos")
    before = place.state()
    assert (before.desired, before.recording.term, before.recording.position) == (Desired.RECORDING, 1, 0)
    os.unlink(place.changelog)  # killed before it used the changelog, and before it was noted that it records
    place.change_state(desired=Desired.CREATED, recording=None)
    assert record_from_now(str(state), str(turned.b)) == said
    assert place.state() == before
    place.state_file.unlink()  # killed when nothing but its file was written
    assert record_from_now(str(state), str(turned.b)) == said
    assert place.state().recording == before.recording
    assert session_names(state) == ["photos"]


def test_it_records_though_what_is_remembered_of_it_is_damaged(turned, node):  # noqa: F811
    """Nobody can tell then what is wanted of it; what is changed meanwhile may be known by its record alone."""
    node.monitor()
    node.wait_for(lambda: ask_monitor(str(node.state), "look") is not None, "the monitor")
    said = record_from_now(str(node.state), str(turned.b))
    assert said.recording, said
    place = SessionDir(node.state, "photos")
    before = place.state()

    def goes_on(name, count):
        for _ in range(3):  # an agent that is not wanted any more has ended after that
            ask_monitor(str(node.state), "look")
            time.sleep(0.5)
        (turned.b / name).write_bytes(b"1")
        node.wait_for(
            lambda: Count(place.changelog, before.recording).look().names == count, f"{name} to be recorded"
        )

    goes_on("sound", 1)
    place.state_file.write_text("{")
    goes_on("damaged", 2)
    assert "damaged" in node.ok("list")
    assert node.stop() == 0
    node.monitor()
    node.wait_for(lambda: ask_monitor(str(node.state), "look") is not None, "the monitor")
    goes_on("and after another start", 3)
    place.state_file.unlink()  # as the message says
    goes_on("removed", 4)
    assert record_from_now(str(node.state), str(turned.b)).recording
    assert place.state().recording == before.recording
    assert place.state().desired is Desired.RECORDING
    goes_on("said again", 5)
    assert node.stop() == 0


def session_to(state, name, primary, secondary, **known):
    """One that was made before the promotion; without ``known`` it was never started, and nothing is remembered of it."""
    place = SessionDir(state, name)
    session_file.write_new(place.named_config, SessionConfig(primary=str(primary), secondary=secondary), "")
    if known:
        place.change_state(**known)
    return place


def know(root, **of):
    """What a root says of who replicated to it."""
    owner = root / ".seamark" / "owner"
    known = json.loads(owner.read_text())
    owner.write_text(json.dumps({**known, "of": {**known["of"], **of}}))
    return promoted_root(str(root))


@pytest.mark.parametrize("begun", [False, True])
def test_a_session_that_goes_on_to_a_third_host_is_not_the_way_back(turned, tmp_path, begun):
    """Its secondary may have the path that the old primary has, on another host."""
    state = tmp_path / "state"
    know(turned.b, term=0, back_from="")
    chain = session_to(
        state, "onwards", turned.b, f"third:{turned.a}", **({"desired": Desired.STARTED} if begun else {})
    )
    before = chain.state()
    assert record_from_now(str(state), str(turned.b)).session == "photos"
    assert chain.state() == before
    # Nor where roles were turned round before: it is known which one that was.
    root = know(turned.b, term=4, back_from="0123")
    SessionDir(state, "photos").change_state(back_from="")
    assert session_on(state, root) is None


def test_the_session_of_before_is_the_way_back_where_roles_are_turned_round_again(turned, tmp_path):
    state = tmp_path / "state"
    there = f"other:{turned.a}"
    chain = session_to(state, "a-chain", turned.b, f"third:{turned.a}", desired=Desired.STARTED)
    before = session_to(state, "before", turned.b, there, desired=Desired.STOPPED)
    root = know(turned.b, term=1, back_from=pair_id(str(turned.b), there))
    assert session_on(state, root).name == "before"
    # Of an older version nothing is known but where it was.
    chain.named_config.unlink()
    before.change_state(back_from="")
    assert session_on(state, know(turned.b, term=1, back_from="")).name == "before"
    assert session_on(state, know(turned.b, term=0)) is None


def test_what_was_recorded_before_another_promotion_counts_no_more(turned, tmp_path):
    """As after a promotion to a snapshot: the tree went back."""
    state = tmp_path / "state"
    record_from_now(str(state), str(turned.b))
    place = SessionDir(state, "photos")
    with running(turned.b, place.changelog) as recorder:
        (turned.b / "before").write_bytes(b"1")
        recorder.barrier()
        assert Count(place.changelog, place.state().recording).look().names == 1
        promote(turned.b, term=2)
        assert record_from_now(str(state), str(turned.b)).recording is False
        begun = place.state().recording
        assert begun.term == 2 and begun.position > 0
        (turned.b / "after").write_bytes(b"1")
        recorder.barrier()
        found = Count(place.changelog, begun).look()
        assert (found.names, found.at_least) == (1, False)
        assert record_from_now(str(state), str(turned.b)).session == "photos"
        assert place.state().recording == begun, "in one term it begins once"


def test_why_it_cannot_be_is_a_line_and_takes_a_moment(turned, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no directory")
    says = record_from_now(str(tmp_path / "file"), str(turned.b)).says
    assert says.startswith(way_back.NOT_RECORDED) and "file" in says and "\n" not in says
    owner = turned.b / ".seamark" / "owner"
    known = owner.read_text()
    owner.write_text(json.dumps({**json.loads(known), "of": {}}))
    assert "where its primary was" in record_from_now(str(tmp_path / "state"), str(turned.b)).says
    owner.write_text(known)
    monkeypatch.setattr(way_back, "shared_kind", lambda _: "nfs4")
    assert "it is on nfs4" in record_from_now(str(tmp_path / "state"), str(turned.b)).says
    monkeypatch.setattr(way_back, "_LONGEST_S", 0.5)
    monkeypatch.setattr(way_back, "shared_kind", lambda _: time.sleep(60))
    began = time.monotonic()
    says = record_from_now(str(tmp_path / "state"), str(turned.b)).says
    assert "did not answer" in says and time.monotonic() < began + 30
    assert not (tmp_path / "state").exists()


def test_a_state_directory_that_hangs_in_the_kernel_holds_no_promotion_up(
    turned, tmp_path, monkeypatch, caplog
):
    """Whoever writes to a file system that is frozen cannot be killed either."""
    if why := available("xfs"):
        missing(why)
    monkeypatch.setattr(way_back, "_LONGEST_S", 0.5)
    with filesystem("xfs", tmp_path / "disk") as disk:
        thawed = threading.Event()

        def thaw():
            thawed.set()
            subprocess.run(["fsfreeze", "--unfreeze", disk], check=False)

        subprocess.run(["fsfreeze", "--freeze", disk], check=True)
        timer = threading.Timer(60, thaw)
        timer.start()
        try:
            says = record_from_now(str(disk / "state"), str(turned.b)).says
            assert not thawed.is_set()
        finally:
            timer.cancel()
            thaw()
        assert f"{disk / 'state'} did not answer" in says
        (left,) = re.findall(r"process (\d+) is left behind", caplog.text)
        os.waitpid(int(left), 0)
