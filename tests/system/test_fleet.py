"""Data workers on other hosts: they join and leave while work flows, and what they cannot vouch for is done at home."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import pytest

from tests.conftest import need
from tests.judge import assert_same
from tests.longlink import FarServer, LongLink, emulator
from tests.system.fleet import Fleet, burst, bursts_until, is_possible, needed
from tests.system.trees import every_kind_of_thing, many_small_files

pytestmark = pytest.mark.root


@pytest.fixture
def fleet(place):
    need(*needed())
    if not is_possible():
        pytest.skip("network namespaces cannot be made here")
    made = Fleet(place)
    yield made
    made.down()


@pytest.mark.timeout(480)
def test_a_worker_elsewhere_sends_what_changes_and_leaves(fleet):
    """Owners, attributes and links come from the primary's node, whatever the worker's mount shows."""
    p = fleet.place.primary
    every_kind_of_thing(p)
    with fleet.run("--jobs", "1") as run:
        worker = fleet.worker("one")
        bursts_until(p / "live", lambda: worker.row()["done"] >= 3)
        os.rename(p / "live" / "b0", p / "renamed")
        run.wait_same(90)
        told = [json.loads(line) for line in fleet.command("workers", "--json").splitlines()]
        assert {row["worker"].partition("@")[0] for row in told} == {"control", "data", "one"}
        assert worker.row()["sessions"] == ["fleet"] and worker.row()["host"] == "one"
        worker.stop()
        assert "one@one" not in fleet.workers()
        burst(p / "after", 20)
        run.wait_same(60)
        assert run.stop() == 0
    assert_same(p, fleet.place.secondary)


@pytest.mark.timeout(480)
def test_what_cannot_be_identified_goes_back_to_the_primarys_own_node(fleet):
    """A copy is mounted where the primary should be: every file looks right, and none is the one that was observed."""
    p = fleet.place.primary
    many_small_files(p, 20, 2)
    with fleet.run("--jobs", "1") as run:
        burst(p / "live", 10)
        run.wait_same()
        copy = fleet.base / "copy"
        shutil.copytree(p, copy, symlinks=True)
        # Its root is taken for the primary's: the files themselves have to tell.
        worker = fleet.worker("one", start=False)
        worker.mount(copy / "live")
        worker.host.run("umount", worker.mounted)
        worker.host.mount(copy / "live", worker.mounted / "live")
        worker.start()
        before = worker.row()["done"]
        for _ in range(60):
            for path in (p / "live").iterdir():
                path.write_bytes(os.urandom(70_001))
            time.sleep(0.3)
            if worker.row()["done"] >= before + 2:
                break
        run.wait_same(90)
        assert worker.row()["done"] >= before + 2
        assert run.stop() == 0
    assert_same(p, fleet.place.secondary)
    assert not run.progress()["crawl"]


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_worker_whose_volume_is_not_mounted_rests_and_nothing_waits_for_it(fleet):
    p = fleet.place.primary
    many_small_files(p, 20, 2)
    with fleet.run("--jobs", "1") as run:
        worker = fleet.worker("one")
        worker.host.run("umount", worker.mounted)
        bursts_until(p / "live", lambda: worker.row()["rests"])
        assert "mounted" in worker.row()["rests"]["fleet"]
        run.wait_same(90)
        worker.mount()
        fleet.wait_for(lambda: not worker.row()["rests"], "the rest to end")
        done = worker.row()["done"]
        bursts_until(p / "again", lambda: worker.row()["done"] > done + 2)
        assert not worker.row()["rests"]
        run.wait_same(90)
        assert run.stop() == 0
    assert_same(p, fleet.place.secondary)


class Churn:
    """Somebody who works on the primary all the time."""

    def __init__(self, root):
        self.root, self._stop = root, threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self):
        number = 0
        while not self._stop.wait(0.7):
            number += 1
            burst(self.root / f"c{number}", 8)
            if number > 4:
                os.rename(self.root / f"c{number - 4}", self.root / f"moved{number}")
            if number > 12 and number % 3 == 0:
                shutil.rmtree(self.root / f"moved{number - 6}")
            for path in sorted((self.root / f"c{number}").iterdir())[:2]:
                with open(path, "ab") as file:
                    file.write(b"more")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hosts_are_killed_and_links_are_cut_while_work_flows(fleet):
    p = fleet.place.primary
    (p / "busy").mkdir()
    with fleet.run("--jobs", "1") as run:
        one, two = fleet.worker("one"), fleet.worker("two")
        with Churn(p / "busy"):
            fleet.wait_for(lambda: one.row()["done"] > 1 and two.row()["done"] > 1, "both to work", 200)
            one.crash()
            fleet.wait_for(lambda: one.row()["state"] == "silent", "its death to be seen", 30)
            two.host.cut()
            fleet.wait_for(lambda: two.row()["state"] == "silent", "its absence to be seen", 30)
            one.start()
            two.host.heal()
            fleet.wait_for(lambda: two.row()["state"] != "silent", "it to be back", 60)
            fleet.far.cut()
            time.sleep(5)
            fleet.far.heal()
            two.stop()
            fleet.broker.cut()
            time.sleep(5)
            fleet.broker.heal()
            two.start()
            done = one.row()["done"], two.row()["done"]
            fleet.wait_for(
                lambda: one.row()["done"] > done[0] and two.row()["done"] > done[1], "both to work again", 200
            )
        run.wait_same(120)
        assert run.stop() == 0
    assert_same(p, fleet.place.secondary)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_far_away_over_a_link_that_loses_packets(fleet, tmp_path):
    """100 ms there and back, 200 Mbit/s, and one packet of a thousand is lost: for all hosts of the fleet."""
    script = emulator()
    if script is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun and an emulator of long links (SEAMARK_WAN)")
    need("gcc")
    p = fleet.place.primary
    link = LongLink(script, tmp_path / "wan", 50, 200, 2500, loss_ppm=1000)
    try:
        worker = fleet.worker("one", start=False, join=False)
        fleet.network.route("10.99.0.0/24", link.holder("a"), link.holder("b"))
        fleet.server.stop()
        fleet.server = FarServer(link, tmp_path / "far")
        every_kind_of_thing(p)
        with fleet.run("--jobs", "1") as run:
            worker.join()
            worker.start()
            bursts_until(p / "live", lambda: worker.row()["done"] >= 3)
            worker.crash()
            burst(p / "while it was dead", 20)
            worker.start()
            bursts_until(p / "later", lambda: worker.row()["done"] >= 2)
            run.wait_same(180)
            assert run.stop() == 0
        assert_same(p, fleet.place.secondary)
    finally:
        fleet.server.stop()
        link.down()
