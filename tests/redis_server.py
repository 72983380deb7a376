"""A real Redis for tests: started once for the session, on a Unix socket, flushed before each test."""

from __future__ import annotations

import pytest

from scheduler.redis_server import EmbeddedRedis


@pytest.fixture(scope="session")
def _redis_of_session(tmp_path_factory):
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(_redis_of_session):
    """An EmbeddedRedis that is running and empty. ``.url`` is the broker address, ``.client()`` a connection."""
    _redis_of_session.ensure()
    with _redis_of_session.client() as client:
        client.flushall()
    return _redis_of_session
