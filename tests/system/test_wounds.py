"""Where it hurts elsewhere: named after the reports that tell of it. (More of them: docs/reliability.md.)"""

from __future__ import annotations

import itertools
import os
import socket

import pytest

from replication.observer import PART_NAMES
from replication.transfer.units import UNIT_FILES
from tasks.entry import PART_NAMES as SEGMENT_NAMES
from tests.judge import assert_same

COUNTS = (255, 256, PART_NAMES - 1, PART_NAMES, PART_NAMES + 1, SEGMENT_NAMES, SEGMENT_NAMES + 1, 8192)


def _fill(directory, count):
    directory.mkdir()
    for number in range(count):
        os.close(os.open(directory / f"{number}", os.O_CREAT))


def _empty(directory, count):
    for number in range(count):
        os.unlink(directory / f"{number}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("live", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_counts_at_every_limit_glusterfs_2133(place, live):
    """gsyncd's hybrid crawl drops the last name of a directory that has a multiple of 8,192."""
    p = place.primary
    if live:
        with place.run() as run:
            run.wait_idle()
            for act in (_fill, _empty):
                for count in COUNTS:
                    act(p / f"n{count}", count)
                run.wait_same(120)
            assert run.stop() == 0
    else:
        for act in (_fill, _empty):
            for count in COUNTS:
                act(p / f"n{count}", count)
            done = place.once()
            assert done.process.returncode == 0, done.report()
            assert_same(p, place.secondary)


@pytest.mark.parametrize("method", ["auto", "tar", pytest.param("rsync", marks=pytest.mark.slow)])
def test_hard_links_over_several_tasks_fpart_8(place, method):
    """More files than a unit takes, each with links in other directories: they are one file there too."""
    p = place.primary
    amount = UNIT_FILES + 100
    for directory in ("a", "b", "c"):
        (p / directory).mkdir()
    for number in range(amount):
        (p / "a" / f"{number}").write_text(f"{number}" * 5)
        os.link(p / "a" / f"{number}", p / "b" / f"{amount - number}")
        if number % 10 == 0:
            os.link(p / "a" / f"{number}", p / "c" / f"{number}")
    with place.run("--sync-method", method) as run:
        run.wait_same(90)
        for number in range(0, amount, 7):
            os.unlink(p / "a" / f"{number}")
            (p / "b" / f"{amount - number}").write_text("by its other name")
        run.wait_same(60)
        assert run.stop() == 0
    assert_same(p, place.secondary)  # by rsync -H, which sees a link too many or too few
    assert len({os.stat(place.secondary / "a" / f"{n}").st_ino for n in range(1, 7)}) == 6


def _make(path, kind):
    if kind == "file":
        path.write_text("a file")
    elif kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
        (path / "below").write_text("below it")
    elif kind == "symlink":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        (path / "below").unlink()
        path.rmdir()
    else:
        path.unlink()


def test_another_type_under_the_same_name_glusterfs_246(place, monkeypatch):
    """Each of each, live, and once more while nothing looks."""
    monkeypatch.chdir(place.primary)  # the path of a socket may not be long
    p = type(place.primary)(".")
    kinds = ("file", "empty", "directory", "symlink", "fifo", "socket")
    pairs = list(itertools.permutations(kinds, 2))
    for before, after in pairs:
        _make(p / f"{before}-{after}", before)
    with place.run() as run:
        run.wait_same()
        for before, after in pairs:
            _remove(p / f"{before}-{after}")
            _make(p / f"{before}-{after}", after)
        run.wait_same()
        run.wait_idle()
        assert run.status["failures"] == 0
        assert run.stop() == 0
    for before, after in pairs:
        _remove(p / f"{before}-{after}")
        _make(p / f"{before}-{after}", before)
    assert place.once().process.returncode == 0
    assert_same(place.primary, place.secondary)


def test_odd_names_glusterfs_787_3830(place):
    """Ends in CR, TAB, NBSP, newline; no UTF-8; 255 bytes; what looks like an option or a pattern."""
    base = os.fsencode(place.primary)
    names = [
        b"cr\r", b"tab\t", b"nbsp\xc2\xa0", b"nl\n", b" ", b"\xff\xfe", b"\x80" * 255, b"-rf", b"--delete", b"*", b"[a]", b"a\\b",
        b"%41", b"'\"`$(x)", b".seamark.x", "é".encode(), b"e\xcc\x81", bytes(range(1, 32)) + bytes(range(128, 255)),
    ]  # fmt: skip
    with place.run("--sync-method", "rsync") as run:
        run.wait_idle()
        for name in names:
            with open(os.path.join(base, name), "wb") as file:
                file.write(name)
            os.mkdir(os.path.join(base, b"d" + name[:200]))
            with open(os.path.join(base, b"d" + name[:200], name), "wb") as file:
                file.write(os.urandom(100))
        run.wait_same()
        for name in names:
            os.rename(os.path.join(base, name), os.path.join(base, name[:200] + b".moved"))
        run.wait_same()
        run.wait_idle()
        assert run.status["failures"] == 0
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)


def test_one_bad_file_is_no_faulty_loop_glusterfs_732(place):
    """It is on the list with the real error, all else goes on, and no process is restarted for it."""
    p = place.primary
    (p / "bad").write_text("bad")
    with place.run() as run:
        run.wait_same()
        os.system(f"chattr +i {place.secondary / 'bad'}")
        try:
            (p / "bad").write_text("worse")
            run.wait_for(lambda: run.status["failures"] == 1, "the failure")
            for number in range(300):
                (p / f"good{number}").write_text("good")
            run.wait_for(lambda: len(list(place.secondary.glob("good*"))) == 300, "all others")
            told = " ".join(message["message"] for message in run.of_type("log"))
            assert "Operation not permitted" in told
            assert "next start in" not in told
        finally:
            os.system(f"chattr -i {place.secondary / 'bad'}")
        run.wait_same()
        run.wait_for(lambda: run.status["failures"] == 0, "the end of it")
        assert run.stop() == 0
    assert_same(p, place.secondary)
