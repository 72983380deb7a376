"""The log follows a file from the batch that it came with, and has the words of whoever refused it."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.judge import assert_same
from tests.scheduler.test_monitor import node  # noqa: F401

AT = r"\[photos/(\d+)/([^]]*)\]"


def units_of(log, path, words):
    """(batch, unit) of each line about a path that says so."""
    return re.findall(rf" {AT}: {re.escape(path)} \([0-9a-f]{{32}}\): .*{words}", log)


@pytest.mark.timeout(240)
def test_a_file_is_followed_from_its_batch_to_its_place(node):  # noqa: F811
    options = [word for role in ("control", "data") for word in ("--set", f"log.{role}=debug")]
    primary, copy = node.session("photos", "--set", "sync_method=tar", *options)
    node.monitor()
    node.ok("start", "photos")
    log = node.state / "logs" / "photos.log"
    node.wait_for(
        lambda: (copy / ".seamark").exists() and "hybrid crawl begins" in log.read_text(), "the start"
    )
    (primary / "one").write_bytes(os.urandom(300_000))
    node.wait_for(lambda: units_of(log.read_text(), "one", "ok, "), "one to be sent")
    (primary / "one").unlink()
    node.wait_for(lambda: re.search(rf" {AT}: one: gone", log.read_text()), "it to be gone")
    text = log.read_text()
    [(batch, looked_in)] = set(units_of(text, "one", "to be sent: new"))
    sent_in = units_of(text, "one", "ok, ")
    assert (batch, f"D:tar:{looked_in}:0") in sent_in
    assert_same(primary, copy)
    assert node.stop() == 0


@pytest.mark.timeout(240)
def test_what_fails_is_logged_with_the_words_of_who_refused_it(node):  # noqa: F811
    primary, copy = node.session("photos", "--set", "retry_longest=5")
    for number in range(14):
        (primary / f"f{number}").write_text(str(number))
    node.monitor()
    node.ok("start", "photos")
    node.wait_for(lambda: (copy / "f13").exists() and (copy / "f0").exists(), "the copy")
    os.system(f"chattr +i {copy}/f*")
    try:
        for number in range(14):
            (primary / f"f{number}").write_text("changed")
        node.wait_for(
            lambda: json.loads(node.ok("status", "photos", "--json"))["failures"] == 14, "the failures"
        )
        text = (node.state / "logs" / "photos.log").read_text()
        told = re.findall(rf" WARNING \d+ seamark.tasks {AT}: \w+ of (f\d+) failed: (.*) \((.*)\)", text)
        assert told, text
        assert {words for *_, words, _ in told} == {"cannot place it: Operation not permitted"}
        assert {batch for batch, *_ in told}
        assert re.search(rf"{AT}: \d+ more failed: seamark failures photos", text)
    finally:
        os.system(f"chattr -i {copy}/f*")
    node.wait_for(lambda: (copy / "f13").read_text() == "changed", "the end of it")
    assert node.stop() == 0
