"""What a person and a script see of a run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.options import RunOptions
from scheduler.snapshot import Crawl, Phase, ProgressSnapshot
from seamark.progress import JsonProgress, NoProgress, PlainProgress, TerminalProgress, make_display, text
from seamark.progress.terminal import block
from tests.seamark.terminal import Terminal

counts = st.integers(min_value=0, max_value=2**62)


@given(counts, counts, counts, counts, st.sampled_from(Phase))
def test_100_percent_means_finished(files, more_files, size, more_bytes, phase):
    snapshot = ProgressSnapshot(
        phase=phase,
        files_done=files,
        files_total=files + more_files,
        bytes_done=size,
        bytes_total=size + more_bytes,
    )
    shown = f"{text.percent(snapshot)} {text.status_line(snapshot)}"
    out = io.StringIO()
    JsonProgress(out).update(snapshot)
    fraction = json.loads(out.getvalue())["fraction"]
    if phase is Phase.FINISHED:
        assert text.percent(snapshot) == "100 %"
        assert fraction == 1
    else:
        assert "100 %" not in shown
        assert fraction is None or fraction < 1


def test_almost_done_is_99_percent():
    snapshot = ProgressSnapshot(phase=Phase.RUNNING, files_done=10**9 - 1, files_total=10**9)
    assert text.percent(snapshot) == "99 %"
    everything = ProgressSnapshot(phase=Phase.RUNNING, files_done=5, files_total=5)
    assert text.percent(everything) == "99 %"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1536, "1.5 KiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_sizes(count, expected):
    assert text.size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "–"),
        (float("inf"), "–"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.7, "1:00"),
        (184, "3:04"),
        (3723, "1:02:03"),
        (273900, "3 d 04:05"),
        (-1, "0.0 s"),
    ],
)
def test_durations(seconds, expected):
    assert text.duration(seconds) == expected


@given(
    st.builds(
        ProgressSnapshot,
        scanned=counts,
        rate_bytes_s=st.floats(0, 1e15),
        eta_s=st.none() | st.floats(0, 1e9),
        state=st.text(max_size=200),
    ),
    st.integers(20, 200),
)
def test_the_block_keeps_its_height_whatever_the_width(snapshot, width):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(block("/a → b", snapshot))
    if "\n" not in snapshot.state and snapshot.state.isprintable():
        assert captured.get().count("\n") == 5


SHOW = """
import sys, time, logging
from scheduler.options import RunOptions
from scheduler.snapshot import *
from seamark.progress import make_display
from seamark.logs import setup_logging
options = RunOptions(primary=b"/srv/photos", secondary="backup@host:/srv/photos", state_dir="/nonexistent", dry_run=True)
with make_display(options, sys.stderr, sys.stdout) as display:
    setup_logging(display, None)
    for n in range(30):
        display.update(ProgressSnapshot(phase=Phase.RUNNING, crawl=Crawl.HYBRID, scanned=n, files_done=n,
                       files_total=30, bytes_done=n * 1024, bytes_total=30 * 1024, lag_s=1.0, failures=2))
        logging.getLogger("scheduler").info("message %d", n)
        time.sleep(0.02)
    display.update(ProgressSnapshot(phase=Phase.FINISHED, crawl=Crawl.HYBRID, scanned=30, files_done=30,
                   files_total=30, bytes_done=30720, bytes_total=30720))
    display.summary(0)
"""


def test_on_a_terminal_the_block_stays_and_logs_scroll_above_it():
    terminal = Terminal(SHOW)
    assert terminal.wait() == 0
    lines = terminal.lines()
    messages = [line for line in lines if " message " in line]
    assert [line.split()[-1] for line in messages] == [str(n) for n in range(30)]
    # one block, at the end, below all messages
    assert sum("/srv/photos → backup@host:/srv/photos" in line for line in lines) == 1
    assert lines[-1].startswith("100 %, finished: scanned 30")
    tail = "\n".join(lines[-6:-1])
    assert "hybrid crawl · finished" in tail
    assert "100 %" in tail
    assert "files 30 of 30" in tail
    assert "\n".join(lines[:-6]).count("100 %") == 0
    assert not terminal.screen.cursor.hidden


def test_on_a_narrow_terminal_nothing_wraps():
    terminal = Terminal(SHOW, columns=40, lines=12)
    assert terminal.wait() == 0
    assert sum("/srv/photos" in line for line in terminal.lines()) == 1


def test_a_dumb_terminal_gets_plain_lines():
    terminal = Terminal(SHOW, env={"TERM": "dumb"})
    assert terminal.wait() == 0
    assert b"\x1b[" not in terminal.raw
    assert "100 %, finished: scanned 30" in terminal.lines()[-1]


def test_the_terminal_display_starts_no_thread():
    code = SHOW + "\nimport threading; sys.exit(threading.active_count() - 1)\n"
    assert Terminal(code).wait() == 0


def test_the_cursor_comes_back_after_an_error():
    code = SHOW.replace("display.summary(0)", "raise SystemExit(7)")
    terminal = Terminal(code)
    assert terminal.wait() == 7
    assert not terminal.screen.cursor.hidden


def _options(**words):
    return RunOptions(primary=b"/a", secondary="/b", state_dir="/nonexistent", **words)


def test_where_there_is_no_terminal_lines_are_plain_and_few():
    out = io.StringIO()
    display = make_display(_options(), out, io.StringIO())
    assert isinstance(display, PlainProgress)
    for n in range(1000):
        display.update(ProgressSnapshot(phase=Phase.RUNNING, crawl=Crawl.HYBRID, scanned=n))
    display.update(ProgressSnapshot(phase=Phase.RUNNING, crawl=Crawl.CHANGELOG, scanned=1000))
    display.update(ProgressSnapshot(phase=Phase.FINISHED, crawl=Crawl.CHANGELOG, scanned=1000))
    display.summary(0)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert "hybrid crawl, running, scanned 0" in lines[0]
    assert "changelog crawl, running" in lines[1]
    assert lines[3].startswith("100 %, finished")


def test_an_idle_session_fills_no_log():
    out = io.StringIO()
    display = PlainProgress(out, interval=0)
    for n in range(100):
        display.update(ProgressSnapshot(phase=Phase.IDLE, crawl=Crawl.CHANGELOG, scanned=n))
    assert len(out.getvalue().splitlines()) == 1


def test_a_busy_session_fills_no_log_either():
    out = io.StringIO()
    display = PlainProgress(out, interval=60)
    for n in range(100):
        for phase in (Phase.RUNNING, Phase.IDLE):
            display.update(ProgressSnapshot(phase=phase, crawl=Crawl.CHANGELOG, scanned=n))
    assert len(out.getvalue().splitlines()) == 2
    display.update(ProgressSnapshot(phase=Phase.STOPPING, crawl=Crawl.CHANGELOG))
    assert len(out.getvalue().splitlines()) == 3


def test_idle_is_no_percentage():
    snapshot = ProgressSnapshot(phase=Phase.IDLE, files_done=5, files_total=5)
    assert text.percent(snapshot) == ""


def test_the_choice_of_display():
    out = io.StringIO()
    assert isinstance(make_display(_options(log_json=True, progress=False), out, out), JsonProgress)
    assert isinstance(make_display(_options(progress=False), out, out), NoProgress)
    assert isinstance(make_display(_options(progress=True), out, out), PlainProgress)
    master, slave = os.openpty()
    with os.fdopen(master), os.fdopen(slave, "w") as terminal:
        os.environ.setdefault("TERM", "xterm")
        assert isinstance(make_display(_options(), terminal, out), TerminalProgress) == (
            os.environ["TERM"] != "dumb"
        )


def test_json_is_one_object_a_line_whatever_the_names():
    out = io.StringIO()
    display = JsonProgress(out)
    display.update(ProgressSnapshot(state="name\n\udcff\u2028"))
    display.log("line\n\udcfe", "WARNING", "scheduler.run", 1.0)
    display.error("no", 5)
    display.summary(5)
    out.getvalue().encode()  # no lone surrogates
    lines = out.getvalue().splitlines()
    messages = [json.loads(line) for line in lines]
    assert [message["message_type"] for message in messages] == ["status", "log", "error", "summary"]
    assert messages[0]["state"] == "name\n\udcff\u2028"
    assert messages[1] == {
        "message_type": "log",
        "time": 1.0,
        "level": "warning",
        "logger": "scheduler.run",
        "message": "line\n\udcfe",
    }
    assert messages[2]["exit_code"] == 5
    assert messages[3]["exit_code"] == 5


def test_json_status_is_not_repeated_while_only_numbers_change():
    out = io.StringIO()
    display = JsonProgress(out)
    for n in range(100):
        display.update(ProgressSnapshot(phase=Phase.RUNNING, scanned=n))
    display.update(ProgressSnapshot(phase=Phase.RUNNING, scanned=101, failures=1))
    assert len(out.getvalue().splitlines()) == 2


@pytest.mark.parametrize("json_wanted", [False, True])
def test_a_reader_that_goes_away_stops_nothing(json_wanted):
    code = SHOW.replace("dry_run=True", f"dry_run=True, log_json={json_wanted}, progress=True")
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=write) as process:
        os.close(write)
        assert process.wait(20) == 0


def test_the_documented_fields_are_those_that_are_written():
    from tests.test_architecture import ROOT

    out = io.StringIO()
    display = JsonProgress(out)
    display.update(ProgressSnapshot())
    display.summary(0)
    document = (ROOT / "docs" / "scripting.md").read_text()
    for line in out.getvalue().splitlines():
        for field in json.loads(line):
            assert f"`{field}`" in document, field
