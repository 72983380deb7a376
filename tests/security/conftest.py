"""Fixtures of this room."""

from __future__ import annotations

from tests.sshd import shared_ssh_server, ssh_server  # noqa: F401
from tests.system.conftest import place  # noqa: F401
