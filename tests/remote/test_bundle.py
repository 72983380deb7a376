"""The real secondary agent as it is sent: packed, started under the oldest Python, spoken to."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from replication.remote.bundle import build_bundle
from replication.remote.client import SecondaryClient
from replication.remote.launch import open_secondary
from replication.remote.target import Target
from tests.conftest import missing

ROOT = Path(__file__).parents[2]


def test_digest_is_of_the_content_and_the_same_every_time():
    bundle = build_bundle()
    assert bundle.digest == hashlib.sha256(bundle.content).hexdigest()
    build_bundle.cache_clear()
    assert build_bundle() == bundle


def test_holds_the_agent_and_nothing_else():
    with zipfile.ZipFile(io.BytesIO(build_bundle().content)) as archive:
        names = archive.namelist()
    assert {"__main__.py", "replication/__init__.py", "replication/secondary/__main__.py"} <= set(names)
    assert all(
        n == "__main__.py" or n == "replication/__init__.py" or n.startswith("replication/secondary/")
        for n in names
    )
    assert not [n for n in names if "__pycache__" in n]


def test_the_same_from_a_zip_as_from_a_checkout(tmp_path):
    """As from a wheel that was never unpacked: the sources are read through the importer."""
    packed = tmp_path / "p.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted((ROOT / "replication").rglob("*.py")):
            archive.write(file, file.relative_to(ROOT))
    code = f"import sys; sys.path.insert(0, {str(packed)!r}); from replication.remote import bundle as b; print(b.__file__, b.build_bundle().digest)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    file, digest = shown.stdout.split()
    assert file.startswith(str(packed))
    assert digest == build_bundle().digest


@pytest.mark.parametrize("name", ["python3.9", "python3"])
def test_runs_under(name, tmp_path):
    python = shutil.which(name)
    if not python or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        found = sorted(Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}.*/bin/{name}"))
        if not found:
            missing(f"not installed: {name}")
        python = str(found[0])
    file = tmp_path / "agent.pyz"
    file.write_bytes(build_bundle().content)
    done = subprocess.run(
        [python, "-I", "-S", file, "serve", tmp_path / "root"], input=b"", capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""


@pytest.mark.parametrize("remote", [False, True])
def test_hello_over_a_link(shared_ssh_server, tmp_path, remote):
    root = tmp_path / "root \udcff"
    path = os.fsencode(str(root))
    target = shared_ssh_server.target(path) if remote else Target(path)
    link = open_secondary(target, shared_ssh_server.options())
    client = SecondaryClient(link.reader, link.writer)
    hello = client.hello(session="s" * 32, volume="v", epoch=1, create=True)
    assert client.ping() > 0
    link.close()
    client.close()
    assert os.path.isdir(os.path.join(path, b".seamark"))
    assert hello
