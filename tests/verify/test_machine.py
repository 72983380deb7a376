"""The machine that compares: random damage against other judges, slices, changes meanwhile, interruptions."""

from __future__ import annotations

import os
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.secondary.inspection import Manner
from replication.verify.selection import WHOLE, Subset, slice_range
from scheduler.verify.outcome import combined, rows
from scheduler.verify.store import Store
from tests.conftest import need
from tests.judge import differences
from tests.verify.comparing import Here, Pair, Settled

NAMES = [b"a", b"b", b"c\xff", b"d "]  # mtree stumbles over directories with a newline


def grow(root, draw):
    """A random tree of a few names."""
    for _ in range(draw.randint(1, 12)):
        directory = root
        for _ in range(draw.randint(0, 2)):
            directory = os.path.join(directory, draw.choice(NAMES))
            if not os.path.isdir(directory):
                if os.path.lexists(directory):
                    break
                os.mkdir(directory)
        else:
            make(os.path.join(directory, draw.choice(NAMES)), root, draw)


def make(path, root, draw):
    if os.path.lexists(path):
        return
    kind = draw.choice(["file", "file", "file", "dir", "symlink", "fifo", "link"])
    others = [p for p in everything(root) if os.path.isfile(p) and not os.path.islink(p)]
    if kind == "file" or (kind == "link" and not others):
        with open(path, "wb") as file:
            file.write(draw.randbytes(draw.choice([0, 5, 5000])))
    elif kind == "dir":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink(draw.choice(NAMES), path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.link(draw.choice(others), path)


def everything(root):
    found = []
    for directory, directories, files in os.walk(root):
        if b".seamark" in directories:
            directories.remove(b".seamark")
        found += [os.path.join(directory, name) for name in directories + files]
    return sorted(found)


def damage(root, draw):
    """One change by somebody else; whether there was one."""
    paths = everything(root)
    if not paths or draw.random() < 0.2:
        before = len(paths)
        make(
            os.path.join(draw.choice([root, *filter(os.path.isdir, paths)]), b"new%d" % draw.randint(0, 9)),
            root,
            draw,
        )
        return len(everything(root)) != before
    path = draw.choice(paths)
    link, directory = os.path.islink(path), os.path.isdir(path)
    what = draw.choice(["remove", "content", "mode", "time", "move", "replace"])
    if what == "remove":
        shutil.rmtree(path) if directory and not link else os.unlink(path)
    elif what == "content" and os.path.isfile(path) and not link:
        s = os.stat(path)
        with open(path, "r+b") as file:
            file.write(b"?" if s.st_size else b"")
        os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))
        return bool(s.st_size)
    elif what == "mode" and not link:
        os.chmod(path, os.stat(path).st_mode ^ 0o010)
    elif what == "time":
        os.utime(path, ns=(0, 10**18 + draw.randint(1, 9) * 10**9), follow_symlinks=False)
    elif what == "move":
        os.rename(path, path + b".moved")
    elif what == "replace":
        if os.path.isfile(path) and not link:
            shutil.copy2(path, path + b".new")  # the same in all but its links
            os.replace(path + b".new", path)
            os.utime(os.path.dirname(path), ns=(0, 10**18))
        else:
            shutil.rmtree(path) if directory and not link else os.unlink(path)
            os.symlink(b"elsewhere", path)
    else:
        return False
    return True


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), wounds=st.integers(0, 3))
def test_it_is_silent_exactly_when_the_judges_are(tmp_path_factory, seed, wounds):
    need("rsync", "mtree")
    base = tmp_path_factory.mktemp("pair")
    draw = random.Random(seed)
    a = base / "a"
    a.mkdir()
    grow(os.fsencode(a), draw)
    pair = Pair(a, base / "b")
    try:
        for _ in range(wounds):
            damage(os.fsencode(pair.b), draw)
        silent = not differences(pair.a, pair.b) and not differences(pair.b, pair.a)
        found = pair.found()
        assert (not found) == silent, (seed, found)
    finally:
        pair.close()
        shutil.rmtree(base)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=30), st.integers(1, 50), st.text(max_size=4))
def test_each_name_is_in_exactly_one_slice(path, slices, salt):
    ranges = [slice_range(number, slices) for number in range(1, slices + 1)]
    assert (ranges[0][0], ranges[-1][1]) == (0, WHOLE)
    manners = [Manner(salt=salt, low=low, high=high) for low, high in ranges]
    assert sum(manner.takes(path) for manner in manners) == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "0%", "101%", "-1G", "3/", "0", "1/0"])
def test_a_subset_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="will not do"):
        Subset(text)


@pytest.fixture
def pair(tmp_path):
    a = tmp_path / "a"
    for directory in range(10):
        (a / f"d{directory}").mkdir(parents=True)
        for name in range(30):
            (a / f"d{directory}" / f"f{name}").write_bytes(b"%d %d" % (directory, name))
    for name in range(20):
        os.link(a / "d1" / f"f{name}", a / "d2" / f"l{name}")
    made = Pair(a, tmp_path / "b")
    yield made
    made.close()


def whole(pair):
    return sum(len(d) + len(f) for _, d, f in os.walk(pair.a)) + 1


def test_slices_together_compare_everything_once_and_find_everything_once(pair):
    for name in range(0, 30, 3):
        (pair.b / "d5" / f"f{name}").write_bytes(b"other")
        (pair.b / "d6" / f"f{name}").unlink()
        (pair.b / "d7" / f"g{name}").touch()
    for name in range(10):  # no longer linked: found in the slice that both names are in
        shutil.copy2(pair.b / "d1" / f"f{name}", pair.b / "x")
        os.replace(pair.b / "x", pair.b / "d1" / f"f{name}")
    expected = pair.found()
    found, names, digests = {}, 0, 0
    for number in range(1, 8):
        low, high = slice_range(number, 7)
        machine = pair.compare(low=low, high=high - 1)
        for row in rows(machine.store):
            assert row["path"] not in found
            found[row["path"]] = row["kind"]
        names += machine.store.totals()["names"]
        digests += int(machine.store.totals()["digest"] or "0", 16)
    assert found == expected
    assert sum(kind == "LINKS" for kind in found.values()) == 10
    all_of_it = pair.compare().store.totals()
    assert names == all_of_it["names"]
    assert digests % (1 << 256) == int(all_of_it["digest"], 16)


def test_a_sample_of_some_bytes_is_about_that(pair, monkeypatch):
    monkeypatch.setattr(pair.far.client, "stat", lambda: {"bytes": 1170})  # as an index knows it
    assert 0 < pair.outcome(salt="s", share_bytes=300).names < whole(pair)
    assert pair.outcome(salt="s", share_bytes=1 << 40).names == whole(pair)


def test_what_changes_while_it_is_compared_is_not_reported(pair):
    """The copy is always behind: each unit is met by a primary that has just changed."""
    draw = random.Random(1)
    changed = set()

    def change(payload):
        if payload["kind"] != "begin":
            for _ in range(20):
                name = f"d{draw.randrange(10)}/f{draw.randrange(30)}"
                changed.add(name)
                (pair.a / name).write_bytes(draw.randbytes(5))

    machine = pair.compare(workers=Here(pair, before=change), settling=Settled(arrived=1))
    found = {row["path"]: row["kind"] for row in rows(machine.store, unsettled=True)}
    assert set(found.values()) <= {"UNSETTLED"}
    assert {path for path in found if "/l" not in path} <= changed  # and links to what changed


def test_nothing_is_a_difference_while_it_may_be_on_its_way(pair):
    (pair.b / "d1" / "f1").unlink()
    found = pair.found(settling=Settled(arrived=0))
    assert set(found.values()) == {"UNSETTLED"}
    assert "d1/f1" in found


def test_a_comparison_that_is_interrupted_anywhere_goes_on(pair, tmp_path):
    (pair.b / "d1" / "f3").write_bytes(b"other")
    expected = pair.compare()
    path = tmp_path / "store.sqlite"
    for _ in range(500):
        store = Store(path)
        machine = pair.verification(store=store, workers=Here(pair, lose=lambda _: True), jobs=3)
        machine._workers.lost_ones = list(store.out())
        machine.step()
        if machine._workers.outcomes:
            machine.step()
        done = machine.done
        if done:
            break
        store.close()
    assert done
    assert list(rows(store)) == list(rows(expected.store))
    assert store.totals() == expected.store.totals()


def test_units_that_are_lost_are_sent_again(pair):
    workers = Here(pair, lose=lambda number: number % 2 == 0)
    assert pair.compare(workers=workers).store.totals()["names"] == whole(pair)
    assert workers.lost_ones


def test_combined_has_a_line_for_each_name(pair):
    (pair.b / "d1" / "f29").write_bytes(b"other")
    (pair.b / "d2" / "f29").unlink()
    (pair.b / "d3" / "new").touch()
    for directory in ("d2", "d3"):
        os.utime(pair.b / directory, ns=(0, os.stat(pair.a / directory).st_mtime_ns))
    lines = list(combined(pair.compare(list_equal=True).store))
    assert {line for line in lines if line[0] != "="} == {"* d1/f29", "+ d2/f29", "- d3/new"}
    assert len(lines) == whole(pair) + 1
    assert "= d1/f1" in lines


def test_a_directory_of_many_names_is_compared_in_parts(tmp_path):
    a = tmp_path / "a"
    a.mkdir()
    for name in range(2600):
        (a / f"{name:05}").touch()
    pair = Pair(a, tmp_path / "b")
    (pair.b / "01000").unlink()
    (pair.b / "02599").unlink()
    (pair.b / "99999").touch()
    (pair.b / "00000a").touch()
    found = pair.found()
    found.pop(".")
    assert found == {"01000": "MISSING", "02599": "MISSING", "99999": "EXTRA", "00000a": "EXTRA"}
    pair.close()
