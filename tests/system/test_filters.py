"""Filters: what they leave out is not sent, and what stands there for it is left alone."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.judge import rsync_differences
from tests.system.trees import many_small_files


def rules(place, *texts):
    (path,) = place.state.glob("sessions/*/session.toml")
    kept = [line for line in path.read_text().splitlines() if not line.startswith("filters")]
    kept.insert(1, f"filters = {list(texts)!r}")
    path.write_text("\n".join(kept) + "\n")


def differences(place, *texts):
    return rsync_differences(place.primary, place.secondary, *(f"--filter={text}" for text in texts))


RULES = ("+ keep.tmp", "- *.tmp", "- /cache/", "- node_modules/")


@pytest.fixture
def filtered(place):
    (place.primary / "empty").touch()
    assert place.once().process.returncode == 0
    rules(place, *RULES)
    many_small_files(place.primary, 60, 4)
    for name in ("a.tmp", "keep.tmp", "d0/b.tmp", "cache/x/y", "d1/cache", "d1/node_modules/z"):
        (place.primary / name).parent.mkdir(parents=True, exist_ok=True)
        (place.primary / name).write_text(name)
    return place


def test_what_is_left_out_is_not_sent(filtered):
    assert filtered.once().process.returncode == 0
    for name in ("a.tmp", "d0/b.tmp", "cache", "d1/node_modules"):
        assert not (filtered.secondary / name).exists(), name
    for name in ("keep.tmp", "d1/cache"):
        assert (filtered.secondary / name).exists(), name
    assert differences(filtered, *RULES) == []


def test_live_changes_obey_too(filtered):
    p, s = filtered.primary, filtered.secondary
    with filtered.run() as run:
        run.wait_idle()
        (p / "d0" / "new.tmp").write_text("out")
        (p / "cache" / "x" / "more").write_text("out")
        (p / "d0" / "in").write_text("in")
        os.rename(p / "d0" / "f0", p / "d0" / "f0.tmp")  # goes out
        os.rename(p / "a.tmp", p / "a")  # comes in
        shutil.move(p / "cache" / "x", p / "x")  # a whole directory comes in
        run.wait_for(lambda: (s / "x" / "more").exists() and not (s / "d0" / "f0").exists(), "the changes")
        run.wait_for(lambda: not differences(filtered, *RULES), "no difference")
        assert run.stop() == 0
    assert not (s / "d0" / "new.tmp").exists()
    assert not (s / "d0" / "f0.tmp").exists()


def test_rules_that_change_are_applied_to_the_whole_tree(filtered):
    p, s = filtered.primary, filtered.secondary
    rules(filtered)
    assert filtered.once().process.returncode == 0
    assert differences(filtered) == []
    rules(filtered, *RULES)
    with filtered.run() as run:
        run.wait_idle()
        # What was replicated before stays as it is, whatever becomes of it on the primary.
        (p / "a.tmp").write_text("changed")
        shutil.rmtree(p / "cache")
        (p / "d2" / "marker").touch()
        run.wait_for(lambda: (s / "d2" / "marker").exists(), "a later change")
        run.wait_idle()
        assert (s / "a.tmp").read_text() == "a.tmp"
        assert (s / "cache" / "x" / "y").read_text() == "cache/x/y"
        assert differences(filtered, *RULES) == []
        rules(filtered, "- /cache/")
        run.wait_for(lambda: (s / "a.tmp").read_text() == "changed", "what is no longer left out")
        run.wait_for(lambda: not differences(filtered, "- /cache/"), "no difference")
        assert run.stop() == 0
    assert (s / "cache" / "x" / "y").exists()


def test_what_others_put_there_is_left_alone(filtered):
    p, s = filtered.primary, filtered.secondary
    (p / "d3" / "cache.tmp").write_text("of the primary")
    assert filtered.once().process.returncode == 0
    (s / "d3" / "theirs.tmp").write_text("somebody else's")
    shutil.rmtree(p / "d3")
    (p / "d4").mkdir(exist_ok=True)
    assert filtered.once().process.returncode == 0
    assert not (s / "d3").exists()
    assert filtered.once().process.returncode == 0  # by now nobody will ask for d3 any more
    (found,) = s.glob(".seamark/displaced/**/theirs.tmp")
    assert found.read_text() == "somebody else's"


def test_a_secondary_that_is_adopted_keeps_what_is_left_out(filtered):
    s = filtered.secondary
    assert filtered.once().process.returncode == 0
    (s / "theirs.tmp").write_text("somebody else's")
    shutil.rmtree(s / ".seamark")
    run = filtered.once("--adopt")
    assert run.process.returncode == 0, run.report()
    assert (s / "theirs.tmp").read_text() == "somebody else's"
    assert differences(filtered, *RULES) == []
