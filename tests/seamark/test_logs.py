"""logs: the last lines of all files, and on across the moment when the file is turned over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from seamark.commands.logs import Tail


def test_the_last_lines_of_all_files(tmp_path):
    log = tmp_path / "a.log"
    (tmp_path / "a.log.2").write_text("1\n2\n")
    (tmp_path / "a.log.10").write_text("0\n")
    (tmp_path / "a.log.1").write_text("3\n")
    log.write_text("4\n5\n")
    (tmp_path / "a.log.gz").write_text("no\n")
    for count in (4, 100, 0):
        tail = Tail(log)
        assert tail.last(count) == [b"%d\n" % n for n in range(6)][max(0, 6 - count) :]
        tail.close()


def test_follows_over_a_turn_and_in_pieces(tmp_path):
    log = tmp_path / "a.log"
    tail = Tail(log)
    assert tail.last(5) == [] and list(tail.more()) == []
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert list(tail.more()) == [b"one"]
        file.write("o\n")
        file.flush()
        assert list(tail.more()) == [b"two"]
        file.write("three\n")
    log.rename(tmp_path / "a.log.1")
    assert list(tail.more()) == [b"three"]
    log.write_text("four\n")
    assert list(tail.more()) == [b"four"]
    with log.open("a") as file:
        file.write("five\n")
    os.replace(log, tmp_path / "a.log.1")
    log.write_text("six\n")
    assert list(tail.more()) == [b"five", b"six"]
    tail.close()


def test_the_command(tmp_path):
    def start(*words):
        return subprocess.Popen(
            [sys.executable, "-m", "seamark", "logs", *words, "--state-dir", tmp_path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    none = start("s")
    assert (none.communicate()[1], none.returncode) == ("seamark: there is no session s (known: none)\n", 4)
    (tmp_path / "sessions" / "s").mkdir(parents=True)
    none = start("s")
    assert "has not written a log yet" in none.communicate()[1] and none.returncode == 4
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "s.log").write_text("old\nnew\n")
    with start("s", "-n1", "-f") as follower:
        assert follower.stdout.readline() == "new\n"
        time.sleep(0.3)
        with (tmp_path / "logs" / "s.log").open("a") as file:
            file.write("newest\n")
        assert follower.stdout.readline() == "newest\n"
        follower.terminate()
