"""Fixtures of this room: a real sshd, and a stand-in for the secondary agent where a test needs odd behaviour."""

from __future__ import annotations

import io
import zipfile
from hashlib import sha256

import pytest

from replication.remote import bundle as bundle_module
from replication.remote import launch
from replication.remote.bundle import Bundle
from tests.sshd import shared_ssh_server, ssh_server  # noqa: F401

ECHO = b"""
import os, sys
sys.stderr.write("echo agent started\\n"); sys.stderr.flush()
while True:
    data = os.read(0, 1 << 16)
    if not data:
        break
    if data.startswith(b"crash"):
        raise RuntimeError("disk on fire")
    while data:
        data = data[os.write(1, data):]
"""


def make_bundle(main: bytes) -> Bundle:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__main__.py", main)
    return Bundle(packed.getvalue(), sha256(packed.getvalue()).hexdigest())


@pytest.fixture
def echo_agent(monkeypatch):
    """Links lead to a program that sends back what it gets, and dies of the word "crash"."""
    return _replace(monkeypatch, make_bundle(ECHO))


@pytest.fixture
def replace_agent(monkeypatch):
    return lambda main: _replace(monkeypatch, make_bundle(main))


def _replace(monkeypatch, bundle: Bundle) -> Bundle:
    for module in (launch, bundle_module):
        monkeypatch.setattr(module, "build_bundle", lambda: bundle)
    return bundle


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
