"""A limit on what is sent holds for every engine, and may be lifted while something is being sent."""

from __future__ import annotations

import os
import time

import pytest

from tests.judge import assert_same

MIB = 1 << 20


def settings(place, text):
    (path,) = place.state.glob("sessions/*/session.toml")
    path.write_text(path.read_text() + text)
    return path


@pytest.mark.parametrize(
    "method", ["stream", *(pytest.param(method, marks=pytest.mark.slow) for method in ("rsync", "tar"))]
)
def test_no_more_is_sent_than_the_limit_allows(place, method):
    assert place.once("--sync-method", method).process.returncode == 0
    settings(place, 'bandwidth = "2M"\ncompression = "off"\n')
    for number in range(12):
        (place.primary / f"f{number}").write_bytes(os.urandom(MIB))
    began = time.monotonic()
    run = place.once("--sync-method", method)
    assert run.process.returncode == 0, run.report()
    # 12 MiB at 2 MiB a second, of which the first half second's worth is free; rsync keeps to its own clock
    assert time.monotonic() - began > (12 - 1) / 2 * 0.8
    assert_same(place.primary, place.secondary)


@pytest.mark.slow
def test_a_limit_is_lifted_while_a_large_file_is_on_its_way(place):
    assert place.once().process.returncode == 0
    path = settings(place, 'bandwidth = "64K"\ncompression = "off"\n')
    (place.primary / "large").write_bytes(os.urandom(64 * MIB))
    with place.run() as run:
        run.wait_for(lambda: list(place.secondary.glob(".seamark/staging/*.*-*")), "a beginning")
        time.sleep(3)
        (staged,) = place.secondary.glob(".seamark/staging/*.*-*")
        assert staged.stat().st_size < 4 * MIB
        path.write_text(path.read_text().replace("64K", "off"))
        run.wait_same(90)
        assert run.stop() == 0
    assert_same(place.primary, place.secondary)
