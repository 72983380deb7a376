"""What cannot be replicated: listed whatever its name, tried again, done without, by what a person says."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager

import pytest

from tests.conftest import missing
from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401
from tests.scheduler.test_status import report, wait_healthy, wait_reason

STRANGE = b"caf\xe9 \n\x1b[31m.txt"


@contextmanager
def locked(directory):
    """Nobody can write into it."""
    done = subprocess.run(["chattr", "+i", directory], check=False, capture_output=True, text=True)
    if done.returncode:
        missing(f"chattr +i is not possible here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", directory], check=True)


def rows(node, *words):  # noqa: F811
    return [json.loads(line) for line in node.ok("failures", "photos", *words, "--json").splitlines()]


def skip_all(node):  # noqa: F811
    """Until nothing fails: the attributes of a directory may fail later than what is in it."""

    def healthy():
        node.ok("failures", "photos", "skip", "--all")
        return report(node)["healthy"]

    node.wait_for(healthy, "health")


@pytest.mark.root
@pytest.mark.timeout(300)
def test_a_failure_is_listed_retried_and_skipped(node):  # noqa: F811
    primary, copy = node.session("photos")
    (primary / "closed").mkdir()
    assert node.command("failures", "nobody").returncode == 4
    assert node.command("failures", "photos", "retry", "a").returncode == 4
    node.monitor()
    node.ok("start", "photos")
    wait_healthy(node)  # with a first mark, by which the lag is known
    with locked(copy / "closed"):
        strange = os.path.join(os.fsencode(primary / "closed"), STRANGE)
        with open(strange, "w") as file:
            file.write("x")
        wait_reason(node, "failures", "closed")
        found = next(row for row in rows(node) if row["path"] != "closed")  # its attributes fail as well
        assert os.fsencode(found["path"]) == b"closed/" + STRANGE
        assert (found["class"], found["message_type"]) == ("permission", "failure")
        listed = node.ok("failures", "photos")
        assert "\x1b" not in listed
        assert "not permitted" in listed
        assert found["key"] in node.ok("failures", "photos", "show", found["key"])
        assert report(node)["lag_s"] > 0

        assert node.command("failures", "photos", "skip").returncode == 2
        assert node.command("failures", "photos", "skip", "nothing-like-it").returncode == 4
        node.ok("failures", "photos", "skip", found["key"], "--why", "for the test")
        skip_all(node)
        assert (rows(node), report(node)["failures"]) == ([], 0)
        assert report(node)["skipped"] >= 1
        (skip,) = [row for row in rows(node, "list", "--skipped") if row["key"] == found["key"]]
        assert (skip["why"], skip["ended"]) == ("for the test", None)
        (primary / "later").write_text("goes on")
        node.wait_for_file(copy / "later", "goes on")
        before = report(node)["last_synced"]
        node.wait_for(lambda: report(node)["last_synced"] > before, "a mark that moves on")

        node.ok("failures", "photos", "retry", found["key"])
        wait_reason(node, "failures", "closed")
    skipped = [row["key"] for row in rows(node, "list", "--skipped") if row["ended"] is None]
    if skipped:
        node.ok("failures", "photos", "retry", *skipped)
    node.ok("failures", "photos", "retry")
    wait_healthy(node)
    assert (rows(node), report(node)["skipped"]) == ([], 0)
    (skip,) = [row for row in rows(node, "list", "--skipped") if row["key"] == found["key"]]
    assert skip["ended"] == "withdrawn"
    assert_same(primary, copy)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(300)
def test_what_was_skipped_and_comes_through_is_skipped_no_more(node):  # noqa: F811
    primary, copy = node.session("photos")
    (primary / "closed").mkdir()
    node.monitor()
    node.ok("start", "photos")
    node.wait_for((copy / "closed").is_dir, "the directory")
    with locked(copy / "closed"):
        (primary / "closed" / "a").write_text("1")
        wait_reason(node, "failures", "closed")
        skip_all(node)
    (primary / "closed" / "a").write_text("22")
    (primary / "closed").touch()
    node.wait_for_file(copy / "closed" / "a", "22")
    node.wait_for(lambda: report(node)["skipped"] == 0, "the end of the skip", 200)
    assert {row["ended"] for row in rows(node, "list", "--skipped")} == {"replicated"}
    assert_same(primary, copy)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_skipped_and_is_removed_is_skipped_no_more(node):  # noqa: F811
    """Its content is wanted no more, and nothing else fails: the skip ends by itself."""
    primary, copy = node.session("photos", "--set", "sync_method=rsync")
    (primary / "closed").mkdir()
    (primary / "closed" / "a").write_text("1")
    node.monitor()
    node.ok("start", "photos")
    node.wait_for_file(copy / "closed" / "a", "1")
    with locked(copy / "closed"):
        (primary / "closed" / "a").write_text("22")
        wait_reason(node, "failures", "closed")
        skip_all(node)
        assert "data" in {row["step"] for row in rows(node, "list", "--skipped")}
    (primary / "closed" / "a").unlink()
    node.wait_for(lambda: not (copy / "closed" / "a").exists(), "the removal")
    node.wait_for(
        lambda: (
            not [r for r in rows(node, "list", "--skipped") if r["step"] == "data" and r["ended"] is None]
        ),
        "the end of the skip",
        150,
    )
