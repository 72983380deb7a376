"""A glusterd for all tests of a worker, and places with a volume as their primary."""

from __future__ import annotations

import os
import subprocess

import pytest

from replication.gluster.address import parse_address
from replication.gluster.mount import GlusterMount
from tests.conftest import missing, need
from tests.gluster import Glusterd, lacking
from tests.system.harness import SeamarkRun


@pytest.fixture(scope="session")
def glusterd(tmp_path_factory):
    if not os.path.exists("/dev/fuse"):
        pytest.skip("the kernel has no FUSE")
    if why := lacking():
        missing(f"no Gluster: {why}")
    with Glusterd(tmp_path_factory.mktemp("gluster")) as node:
        yield node


class GlusterPlace:
    """A volume, mounted as its users have it, a secondary directory and a state directory."""

    def __init__(self, node, base, name):
        self.node, self.base, self.name = node, base, name
        self.secondary, self.state = base / "secondary", base / "state"
        self.address = ""
        self.runs = []

    def volume(self, bricks, *kind, **options):
        self.address = self.node.volume(self.name, bricks, *kind, **options)
        self.primary = self.node.mount(self.name)
        return self.primary

    def run(self, *options, below="", secondary=None, **more):
        """Seamark on the volume, or on a directory ``below`` its root; what is judged is seen through the users' mount."""
        address = f"{self.address}/{below}".rstrip("/")
        made = SeamarkRun(
            address, secondary or self.secondary, self.state, *options, env=self.node.environment, **more
        )
        made.primary = self.primary / below
        self.runs.append(made)
        return made

    def once(self, *options, timeout=90, **more):
        with self.run("--once", *options, **more) as made:
            made.wait(timeout)
            return made


@pytest.fixture
def place(glusterd, tmp_path, request):
    need("rsync", "mtree")
    name = "v" + request.node.name.partition("[")[0].encode().hex()[-20:]
    made = GlusterPlace(glusterd, tmp_path, name)
    yield made
    for run in made.runs:
        if run.process.poll() is None:
            run.kill()
        run.close()
    if made.address:
        for where in (glusterd.base / "mounts").glob(f"{name}*"):
            subprocess.run(["umount", "--lazy", where], capture_output=True, check=False)
            where.rmdir()
        glusterd.delete(name)


@pytest.fixture
def own(place, tmp_path, monkeypatch):
    """The mount that a session makes of the volume."""

    def mounted():
        monkeypatch.setenv("PATH", place.node.environment["PATH"])
        made.append(GlusterMount(parse_address(place.address), tmp_path / "session" / "mount"))
        made[0].where.parent.mkdir()
        made[0].start()
        return made[0].where

    mounted.made = made = []
    yield mounted
    for mount in made:
        mount.stop()
