"""max_delete and ignore_deletes, with whole sessions: what is deleted stays until somebody agrees, or for good."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.judge import assert_same, rsync_differences
from tests.system.harness import REPOSITORY
from tests.system.trees import many_small_files


def settings(place, *lines):
    """Settings of the session of a run, beside those that it has."""
    (path,) = place.state.glob("sessions/*/session.toml")
    names = [line.split(" = ")[0] for line in lines]
    kept = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in names]
    aside = path.with_suffix(".aside")
    aside.write_text("\n".join([kept[0], *lines, *kept[1:]]) + "\n")
    aside.replace(path)


def deletions(place, verb):
    (session,) = place.state.glob("sessions/*")
    done = subprocess.run(
        [sys.executable, "-m", "seamark", "deletions", session.name, verb, "--state-dir", str(place.state)],
        capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(run):
    return any("gone from the primary" in m.get("message", "") for m in run.of_type("log"))


def extra(place):
    lines = rsync_differences(place.primary, place.secondary)
    assert all(line.startswith("*deleting") for line in lines), lines
    return [line.split(maxsplit=1)[1] for line in lines]


@pytest.fixture
def filled(place):
    many_small_files(place.primary, 60, 4)
    assert place.once().process.returncode == 0
    return place


def test_a_wiped_primary_asks_first_also_after_a_crash(filled):
    p, s = filled.primary, filled.secondary
    settings(filled, 'max_delete = "20"')
    with filled.run() as run:
        run.wait_idle()
        before = run.progress()["stime_ns"]
        (p / "last").write_text("still there")
        for entry in os.listdir(p):
            if entry != "last":
                shutil.rmtree(p / entry)
        run.wait_for(lambda: asked(run), "the question")
        run.wait_for(lambda: (s / "last").exists(), "what is new")
        assert len([path for path in s.rglob("f*") if ".seamark" not in path.parts]) >= 40
        kept = len(extra(filled))
        run.kill()
    # Durable: nothing that is restarted forgets it, and the mark stays before it.
    with filled.run() as run:
        run.wait_for(lambda: "gone from the primary" in str(run.status), "the question again")
        (p / "after").write_text("goes on")
        run.wait_for(lambda: (s / "after").exists(), "what is new")
        assert len(extra(filled)) == kept
        assert run.progress()["stime_ns"] >= before
        assert run.progress()["stime_ns"] < run.progress()["front_ns"]
        assert "you are asked" in deletions(filled, "list")
        deletions(filled, "allow")
        run.wait_same()
        run.wait_idle()
        assert run.progress()["stime_ns"] == run.progress()["front_ns"]
        assert run.stop() == 0
    assert_same(p, s)


def test_a_run_that_is_to_end_says_so(filled):
    settings(filled, 'max_delete = "20"')
    for entry in os.listdir(filled.primary)[1:]:
        shutil.rmtree(filled.primary / entry)
    run = filled.once()
    assert run.process.returncode == 1, run.report()
    assert "seamark deletions" in run.of_type("error")[0]["message"]
    assert len(extra(filled)) >= 40
    deletions(filled, "allow")
    assert filled.once().process.returncode == 0
    assert_same(filled.primary, filled.secondary)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["auto", "scan"])
def test_renames_and_ordinary_changes_ask_nothing(filled, detector):
    p = filled.primary
    settings(filled, 'max_delete = "3"')
    with filled.run("--change-detector", detector) as run:
        run.wait_idle()
        os.rename(p / "d0", p / "d1" / "moved")
        for n in range(20):
            (p / "d2" / "new").write_text(str(n))
            os.rename(p / "d2" / "new", p / "d2" / "f2")
        (p / "d3" / "f3").unlink()
        run.wait_same()
        run.wait_idle()
        assert not asked(run)
        assert run.stop() == 0
    assert filled.once().process.returncode == 0
    assert_same(p, filled.secondary)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["auto", "scan"])
def test_ignored_deletions_are_all_that_differs(filled, detector):
    p, s = filled.primary, filled.secondary
    settings(filled, "ignore_deletes = true")
    with filled.run("--change-detector", detector) as run:
        run.wait_idle()
        shutil.rmtree(p / "d0")
        (p / "d1" / "f1").unlink()
        os.rename(p / "d2", p / "renamed")
        (p / "d3" / "f3").unlink()
        (p / "d3" / "f3").write_text("made again")
        run.wait_for(lambda: (s / "renamed").exists() and not (s / "d2").exists(), "the rename")
        run.wait_for(lambda: (s / "d3" / "f3").read_bytes() == b"made again", "what was made again")
        run.wait_idle()
        assert run.progress()["stime_ns"] == run.progress()["front_ns"]
        assert run.stop() == 0
    assert filled.once().process.returncode == 0
    gone = extra(filled)
    assert sorted(name for name in gone if not name.startswith("d0/")) == ["d1/f1"]
    assert (s / "d0").is_dir()
    # Gone after all, once they are not ignored any more.
    settings(filled, "ignore_deletes = false")
    with filled.run("--change-detector", detector) as run:
        run.wait_same()
        assert run.stop() == 0
    assert_same(p, s)
