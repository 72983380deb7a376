"""`seamark worker` and `seamark workers`: what they say, and bad input in one line."""

from __future__ import annotations

import json
import os

import msgspec
import pytest
from click.testing import CliRunner

from replication.joined import export, joined_file
from replication.session import Session, SessionDir
from seamark.cli import cli, main
from tasks import fleet
from tests.tasks.test_fleet import row

ID, INSTANCE = "ab" * 16, "12ab34cd56ef"


@pytest.fixture
def state(tmp_path, monkeypatch, redis_server):
    monkeypatch.setenv("SEAMARK_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SEAMARK_BROKER", redis_server.url)
    return tmp_path / "state"


@pytest.fixture
def session(tmp_path):
    (tmp_path / "volume").mkdir()
    return Session(name="home", id=ID, instance=INSTANCE, primary=str(tmp_path / "volume"), secondary="/copy")


def join(state, session, text=None):
    path = joined_file(state, "home")
    path.parent.mkdir(parents=True)
    path.write_text(text or export(session, state / "key"))
    return path


def said(capsys, *words):
    code = main(words)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_every_worker_is_shown_and_a_silent_one_as_such(state, redis_server, capsys):
    with redis_server.client() as client:
        now = fleet.clock(client)
        for each in (
            row(name="a@one", host="one", at=now, now=("sync_by_stream home batch 3",), done=7),
            row(name="b@two", host="two", at=now - 60, now=("what it did then",), rests={}),
            row(name="c@three", host="three", at=now, rests={"home": "not mounted"}),
        ):
            client.hset(fleet.WORKERS, each.name, msgspec.json.encode(each))
    code, out, _ = said(capsys, "workers")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["WORKER", "a@one", "b@two", "c@three"]
    assert "busy" in lines[1] and "silent" in lines[2] and "60 s ago" in lines[2] and "idle" in lines[3]
    assert lines[4:] == [
        "a@one: sync_by_stream home batch 3",
        "c@three: rests from session home: not mounted",
    ]
    code, out, _ = said(capsys, "workers", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert [(each["worker"], each["state"], each["done"]) for each in told] == [
        ("a@one", "busy", 7), ("b@two", "silent", 0), ("c@three", "idle", 0),
    ]  # fmt: skip
    assert told[1]["now"] == [] and told[1]["silent_s"] > 59 and told[2]["rests"] == {"home": "not mounted"}


def test_nobody_works(state, capsys):
    assert said(capsys, "workers")[:2] == (0, "no workers\n")


def test_a_broker_that_is_gone_is_temporary(state, monkeypatch, capsys):
    monkeypatch.setenv("SEAMARK_BROKER", "redis://127.0.0.1:1/0")
    code, _, err = said(capsys, "workers")
    assert code == 5 and "redis redis://127.0.0.1:1/0: " in err and len(err.splitlines()) == 1


def test_the_file_that_is_exported_joins(state, session, tmp_path, monkeypatch, capsys):
    SessionDir(state, "home").save_run(session)
    code, out, _ = said(capsys, "workers", "export", "home")
    assert code == 0
    monkeypatch.setenv("SEAMARK_STATE_DIR", str(tmp_path / "other"))
    join(tmp_path / "other", session, out)
    code, out, err = said(capsys, "worker", "--dry-run", "--jobs", "3", "--name", "w@h")
    assert code == 0, err
    assert "-n w@h -c 3" in out and os.environ["SEAMARK_BROKER"] not in out
    assert f"-Q stream.home.{INSTANCE},rsync.home.{INSTANCE},tar.home.{INSTANCE},bulk.home.{INSTANCE}" in out
    assert "--autoscale=8,2" in said(capsys, "worker", "home", "-n", "--autoscale", "8,2")[1]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("worker",), 2, "no session was joined here"),
        (("worker", "nobody"), 4, "was not joined here"),
        (("worker", "../x"), 2, "session name"),
        (("worker", "--autoscale", "2,8"), 2, "MOST,FEWEST"),
        (("workers", "export", "nobody"), 4, "there is no session nobody"),
    ],
)
def test_bad_input_is_one_line(state, capsys, words, code, line):
    got, _, err = said(capsys, *words)
    assert got == code and line in err and len(err.splitlines()) == 1


def test_what_is_wrong_on_a_joined_host_is_one_line(state, session, tmp_path, monkeypatch, capsys):
    path = join(state, session)
    (tmp_path / "volume").rmdir()
    code, _, err = said(capsys, "worker", "-n")
    assert code == 2 and str(path) in err and "no directory of this host" in err
    (tmp_path / "volume").mkdir()
    monkeypatch.delenv("SEAMARK_BROKER")
    code, _, err = said(capsys, "worker", "-n")
    assert code == 2 and "no broker" in err
    monkeypatch.setenv("SEAMARK_BROKER", "redis://127.0.0.1:1/0")
    assert said(capsys, "worker", "-n")[0] == 5
    path.write_text("primary = 3\n")
    code, _, err = said(capsys, "worker", "-n")
    assert code == 2 and str(path) in err and len(err.splitlines()) == 1


def test_export_warns_of_a_broker_that_nobody_else_reaches(state, session, redis_server):
    SessionDir(state, "home").save_run(session)
    result = CliRunner().invoke(cli, ["workers", "export", "home"])
    assert result.exit_code == 0
    assert "set broker in seamark.toml" in result.stderr  # a Unix socket
    assert "seamark.toml" not in result.stdout
