"""How commands end: one line, the right exit code, never a traceback."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import traceback
import types

import pytest

from replication.errors import ExitCode, LockedError, SeamarkError, TemporaryError
from replication.quantities import DeleteLimit, Timetable
from replication.session import default_state_dir, node_config
from replication.session_file import read_servers
from replication.settings import SettingsError
from scheduler.options import RunOptions
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot
from seamark.cli import main
from tasks.servers import of_url
from tests.test_architecture import ROOT


@pytest.fixture(autouse=True)
def _own_logging():
    """Commands take over the logging of their process: give pytest its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Stands in for the pipeline: notes the options it was called with, ends with ``asked.end()``."""
    note = types.SimpleNamespace(options=None, end=lambda: 0)

    def run(options, show):
        note.options = options
        show(ProgressSnapshot(phase=Phase.FINISHED, crawl=Crawl.HYBRID, scanned=3))
        return note.end()

    monkeypatch.setitem(sys.modules, "scheduler.opening", types.SimpleNamespace(run=run))
    monkeypatch.setenv("SEAMARK_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SEAMARK_BROKER", raising=False)
    monkeypatch.delenv("SEAMARK_DEBUG", raising=False)
    return note


def _raise(error):
    def end():
        raise error

    return end


def test_every_option_of_run_arrives(asked, tmp_path):
    key = tmp_path / "key"
    key.write_text("")
    words = (
        f"run /srv/photos backup@host:/srv/photos --once --sync-method rsync --jobs 7 --ssh-port 2222 --identity {key} "
        f"--change-detector scan --state-dir {tmp_path}/s --broker redis://127.0.0.1/1 --flower 5556 --dry-run -P "
        "--log-json --accept-new-host-key --adopt --name photos --timeout 1.5h --max-delete 10% --compress "
        "--include keep.o --bwlimit 10M --exclude=*.o"
    )
    assert main([*words.split(), "--filter", "- /cache/"]) == 0
    assert asked.options == RunOptions(
        primary=b"/srv/photos",
        secondary="backup@host:/srv/photos",
        once=True,
        timeout_s=5400.0,
        sync_method="rsync",
        jobs=7,
        ssh_port=2222,
        identity=str(key),
        change_detector="scan",
        settings={
            "bandwidth": Timetable.parse("10M"),
            "compression": "on",
            "filters": ("+ keep.o", "- *.o", "- /cache/"),
            "max_delete": DeleteLimit.parse("10%"),
        },
        state_dir=f"{tmp_path}/s",
        servers=of_url("redis://127.0.0.1/1"),
        flower_port=5556,
        dry_run=True,
        progress=True,
        log_json=True,
        accept_new_host_key=True,
        adopt=True,
        name="photos",
    )
    assert not (tmp_path / "s").exists()  # a dry run touches nothing


@pytest.mark.parametrize(
    ("words", "seconds"), [("90", 90), ("90s", 90), ("0.5m", 30), ("2h", 7200), ("1d", 86400)]
)
def test_durations(asked, words, seconds):
    assert main(["run", "/a", "/b", "--once", "--timeout", words]) == 0
    assert asked.options.timeout_s == seconds


@pytest.mark.parametrize(
    "words", ["--once --timeout 0", "--once --timeout 5x", "--once --timeout -1", "--timeout 5"]
)
def test_durations_that_are_none_are_refused(asked, capsys, words):
    assert main(["run", "/a", "/b", *words.split()]) == 2
    assert asked.options is None
    assert "timeout" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    ["--bwlimit fast", "--max-delete 101%", "--filter x", "--exclude", "--include=", "--max-delete -1"],
)
def test_settings_that_will_not_do_are_refused(asked, capsys, words):
    assert main(["run", "/a", "/b", *words.split()]) == 2
    assert asked.options is None
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_not_asked_for_is_the_default(asked, tmp_path):
    assert main(["run", "/a", "/b"]) == 0
    expected = RunOptions(primary=b"/a", secondary="/b", state_dir=str(tmp_path / "state"))
    assert dataclasses.asdict(asked.options) == dataclasses.asdict(expected)


@pytest.mark.parametrize(
    "words", ["--flower /a /b", "/a /b --flower", "/a --flower /b", "--flower 5555 /a /b"]
)
def test_flower_needs_no_port(asked, words):
    assert main(["run", *words.split()]) == 0
    assert (asked.options.flower_port, asked.options.primary) == (5555, b"/a")


def test_paths_are_made_absolute_and_names_are_bytes(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", os.fsdecode(b"caf\xe9"), "copy"]) == 0
    assert asked.options.primary == os.fsencode(tmp_path) + b"/caf\xe9"
    assert asked.options.secondary == str(tmp_path / "copy")


@pytest.mark.parametrize(
    "words",
    [
        "run /a",
        "run",
        "run /a /b /c",
        "run /a /b --jobs 0",
        "run /a /b --sync-method ftp",
        "run /a /b --broker amqp://x",  # and no Redis
        "run /a /b --broker http://x",
        "run /a /b --broker redis://",
        "run /a /b --broker redis://a;redis://b",
        "run /a /b --broker redis://:secret@host/0",
        "run /a /b --redis redis://host",  # and no broker
        "run /a /b --broker amqp://x --redis amqp://x",
        "run /a /b --name ../x",
        "run /a /b --identity /nonexistent/key",
        "run /a rsync://host/x",
        "run /a host:relative",
        "run /a /b --flower 99999",
        "monitor --metrics-address localhost",
        "frobnicate",
        "changelog",
        "changelog dump",
    ],
)
def test_wrong_usage_is_2(asked, words, capsys):
    assert main(words.split()) == ExitCode.USAGE
    assert asked.options is None
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(("seamark: ", "Usage: "))
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SeamarkError("plain"), 1),
        (TemporaryError("later"), 5),
        (LockedError("held"), 8),
        (SeamarkError("some", ExitCode.PARTIAL), 3),
    ],
)
def test_an_understood_error_is_one_line_and_its_code(asked, capsys, error, code):
    asked.end = _raise(error)
    assert main(["run", "/a", "/b", "--no-progress"]) == code
    assert capsys.readouterr().err == f"seamark: {error.message}\n"


def test_a_broker_that_is_away_is_5(asked, capsys, monkeypatch):
    monkeypatch.setenv("SEAMARK_BROKER", "redis://:secret@127.0.0.1:1/0")
    assert main(["run", "/a", "/b", "--no-progress"]) == 5
    err = capsys.readouterr().err
    assert "refused" in err
    assert "secret" not in err
    assert asked.options is None


def test_the_pipelines_exit_code_is_ours(asked):
    asked.end = lambda: ExitCode.PARTIAL
    assert main(["run", "/a", "/b"]) == 3


def test_ctrl_c_is_130(asked, capsys):
    asked.end = _raise(KeyboardInterrupt())
    assert main(["run", "/a", "/b", "--no-progress"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_unforeseen_error_is_one_line_and_its_traceback_is_in_the_log(asked, capsys, tmp_path):
    asked.end = _raise(ZeroDivisionError("a\nb"))
    assert main(["run", "/a", "/b", "--no-progress"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unexpected ZeroDivisionError: a b; details are in " in err
    path = err.rsplit("details are in ", 1)[1].strip()
    assert path.startswith(str(tmp_path / "state" / "logs"))
    with open(path, encoding="utf-8") as file:
        assert "Traceback" in file.read()


def test_with_debug_the_traceback_is_shown(asked, monkeypatch):
    monkeypatch.setenv("SEAMARK_DEBUG", "1")
    asked.end = _raise(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["run", "/a", "/b", "--no-progress"])


def test_json_has_only_json_on_standard_output(asked, capsys):
    asked.end = lambda: logging.getLogger("scheduler").warning("careful\nnow") or 0
    assert main(["run", "/a", "/b", "--log-json"]) == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [message["message_type"] for message in messages] == ["status", "log", "summary"]
    assert messages[1]["message"] == "careful now"


@pytest.mark.parametrize("error", [TemporaryError("down"), ZeroDivisionError("x")])
def test_json_tells_the_error_too(asked, capsys, error):
    asked.end = _raise(error)
    code = main(["run", "/a", "/b", "--log-json"])
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert (last["message_type"], last["exit_code"]) == ("error", code)
    assert err.startswith("seamark: ")


def test_no_progress_says_nothing_when_all_is_well(asked, capsys):
    asked.end = lambda: logging.getLogger("scheduler").info("fine") or 0
    assert main(["run", "/a", "/b", "--no-progress", "--once"]) == 0
    assert capsys.readouterr() == ("", "")


def test_libraries_are_not_heard_and_tracebacks_stay_in_the_log(asked, capsys, tmp_path):
    def end():
        logging.getLogger("kombu.transport").error("Traceback of a library")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("scheduler.x").exception("it failed")
            logging.getLogger("tasks.x").error("worse\n%s", traceback.format_exc())
        return 0

    asked.end = end
    assert main(["run", "/a", "/b", "--no-progress"]) == 0
    err = capsys.readouterr().err
    assert "it failed (ValueError: why)" in err
    assert "worse (ValueError: why)" in err
    assert "Traceback" not in err
    (path,) = (tmp_path / "state" / "logs").iterdir()
    assert "Traceback of a library" in path.read_text()
    assert 'raise ValueError("why")' in path.read_text()
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_state_directory_that_cannot_be_used_is_one_line(asked, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["run", "/a", "/b", "--state-dir", str(tmp_path / "file")]) == 1
    assert "choose another --state-dir" in capsys.readouterr().err


def test_a_missing_changelog_is_4(tmp_path, capsys):
    assert main(["changelog", "dump", str(tmp_path / "none")]) == ExitCode.NOT_FOUND
    assert capsys.readouterr().err == f"seamark: {tmp_path}/none: No such file or directory\n"


def test_where_sessions_are_kept(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    assert default_state_dir() == "/x/state/seamark"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_state_dir() == "/var/lib/seamark"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir() == "/home/me/.local/state/seamark"


def test_as_a_program(tmp_path):
    def seamark(*words, **rest):
        return subprocess.run(
            [sys.executable, "-P", "-m", "seamark", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            **rest,
        )

    (tmp_path / "celery.py").write_text("raise SystemExit('imported from where the user stands')")
    assert seamark("version").stdout.startswith("seamark 0.")
    assert seamark("--help").returncode == 0
    assert seamark("nonsense").returncode == 2
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(
        [sys.executable, "-m", "seamark", "version"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        cwd=ROOT,
    )
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (1, b"")


def test_every_exit_code_is_documented():
    text = (ROOT / "docs" / "exit-codes.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} | {code.name.lower().replace('_', ' ')} |" in text


# ---- broker and Redis of the node


@pytest.fixture
def node_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SEAMARK_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SEAMARK_CONFIG_DIR", str(tmp_path / "config"))
    return node_config(tmp_path / "state")


def test_a_password_is_not_taken_from_a_command_line(node_file, capsys):
    assert main(["config", "all", "set", "broker", "redis://:s3cret@host/0"]) == 2
    err = capsys.readouterr().err
    assert "broker_password_file" in err
    assert "s3cret" not in err
    assert not node_file.exists()


def test_a_password_in_the_nodes_file_is_not_shown(node_file, capsys):
    node_file.parent.mkdir(parents=True)
    node_file.write_text('redis = "redis://:s3cret@host/0"\n')
    assert main(["config", "all", "get", "redis"]) == 0
    assert main(["config", "all", "--explain"]) == 0
    said = capsys.readouterr().out
    assert "redis://:…@host/0" in said
    assert "s3cret" not in said


def test_a_nodes_file_with_a_password_is_for_us_alone(node_file):
    node_file.parent.mkdir(parents=True)
    node_file.write_text('broker = "redis://:s3cret@host/0"\n')
    node_file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600") as caught:
        read_servers(node_file)
    assert "s3cret" not in caught.value.message
    node_file.chmod(0o600)
    assert read_servers(node_file).broker == "redis://:s3cret@host/0"


def test_a_file_of_settings_that_we_make_is_ours_alone(node_file):
    assert main(["config", "all", "set", "tls.check_hostname", "false"]) == 0
    assert node_file.stat().st_mode & 0o777 == 0o600
    node_file.chmod(0o640)
    assert main(["config", "all", "set", "sentinel.master", "ours"]) == 0
    assert node_file.stat().st_mode & 0o777 == 0o640
    assert read_servers(node_file).sentinel.master == "ours"
