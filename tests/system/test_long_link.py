"""A running session over a long link: 100 ms for a round trip, so that whatever is asked is asked ahead."""

from __future__ import annotations

import os

import pytest

from tests.conftest import need
from tests.judge import assert_same
from tests.longlink import FarServer, LongLink, emulator
from tests.system.trees import every_kind_of_thing, many_small_files


@pytest.fixture
def far(place, tmp_path):
    """The target and the options that reach it, and what takes a command to the near side."""
    script = emulator()
    if script is None or os.geteuid() or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs root, /dev/net/tun and an emulator of long links (SEAMARK_WAN)")
    need("gcc", "ip", "nsenter", "sshd")
    link = LongLink(script, tmp_path / "wan", 50, 200, 2500)
    try:
        server = FarServer(link, tmp_path / "sshd")
        try:
            options = [
                "--ssh-port",
                str(server.port),
                "--identity",
                str(server.identity),
                "--accept-new-host-key",
            ]
            yield f"{server.user}@{server.host}:{place.secondary}", options, link.prefix
        finally:
            server.stop()
    finally:
        link.down()


@pytest.mark.slow
def test_trees_that_come_and_go_and_come_back(place, far):
    """What comes from outside is sent before anybody asked for it, also where the secondary has it already."""
    target, options, prefix = far
    outside = place.base / "outside"
    outside.mkdir()
    many_small_files(outside / "tree", 1200, 20)
    every_kind_of_thing(
        outside / "tree" / "things" if (outside / "tree" / "things").mkdir() is None else outside
    )
    with place.run(*options, secondary=target, prefix=prefix) as run:
        run.secondary = place.secondary
        run.wait_idle()
        os.rename(outside / "tree", place.primary / "tree")
        run.wait_same()
        os.rename(place.primary / "tree", outside / "tree")
        (outside / "tree" / "d0" / "later").write_text("while it was away")
        os.rename(outside / "tree", place.primary / "tree")
        run.wait_same()
        os.rename(place.primary / "tree", place.primary / "other")
        run.wait_same()
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
    again = place.once(*options, "--change-detector", "scan", secondary=target, prefix=prefix)
    assert again.process.returncode == 0, again.report()
    assert again.status["files_done"] == 0, again.report()
    assert_same(place.primary, place.secondary)
