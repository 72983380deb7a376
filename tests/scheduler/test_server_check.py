"""Brokers and Redis that cannot be worked with: one line each, by the right exit code, without the password."""

from __future__ import annotations

import pytest

from replication.errors import ExitCode, SeamarkError
from replication.server_settings import ServerSettings, TlsSettings
from scheduler.server_check import check_servers
from tasks.servers import resolve
from tests.servers import Certificates, RedisServer, free_port, tls_lines, wait_until


def refusal(**settings):
    """The line and the exit code."""
    with pytest.raises(SeamarkError) as caught:
        check_servers(resolve(ServerSettings(**settings)), 5)
    assert "s3cret" not in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message, caught.value.exit_code


def test_tls_and_passwords(tmp_path):
    (tmp_path / "other").mkdir()
    certificates, other = Certificates(tmp_path), Certificates(tmp_path / "other")
    tls = TlsSettings(ca=certificates.ca)
    with RedisServer(tmp_path, *tls_lines(certificates, "localhost"), "requirepass s3cret") as server:
        good = f"rediss://:s3cret@localhost:{server.port}/0"
        check_servers(resolve(ServerSettings(broker=good, tls=tls)))
        other_name = good.replace("localhost", "127.0.0.1")
        unchecked = TlsSettings(ca=certificates.ca, check_hostname=False)
        check_servers(resolve(ServerSettings(broker=other_name, tls=unchecked)))

        line, code = refusal(broker=other_name, tls=tls)
        assert "not valid for '127.0.0.1'" in line
        assert code == ExitCode.ERROR
        line, code = refusal(broker=good, tls=TlsSettings(ca=other.ca))
        assert "its certificate will not do" in line
        assert code == ExitCode.ERROR
        line, code = refusal(broker=good.replace("s3cret", "wrong"), tls=tls)
        assert "invalid username-password pair" in line
        assert code == ExitCode.ERROR
        line, code = refusal(broker=good.replace(":s3cret@", ""), tls=tls)
        assert "it wants a password" in line
        assert code == ExitCode.ERROR


def test_an_expired_certificate(tmp_path):
    certificates = Certificates(tmp_path)
    with RedisServer(tmp_path, *tls_lines(certificates, "localhost", days=-1)) as server:
        line, code = refusal(broker=f"rediss://localhost:{server.port}", tls=TlsSettings(ca=certificates.ca))
    assert "certificate has expired" in line
    assert code == ExitCode.ERROR


def test_a_server_that_wants_our_certificate(tmp_path):
    certificates = Certificates(tmp_path)
    cert, key = certificates.issue("client")
    with RedisServer(tmp_path, *tls_lines(certificates, "localhost", clients="yes")) as server:
        url = f"rediss://localhost:{server.port}"
        check_servers(
            resolve(ServerSettings(broker=url, tls=TlsSettings(ca=certificates.ca, cert=cert, key=key)))
        )
        line, code = refusal(broker=url, tls=TlsSettings(ca=certificates.ca))
    assert "certificate required" in line or "refused" in line or "closed" in line, line
    assert code in (ExitCode.ERROR, ExitCode.TEMPORARY)


def test_a_replica_and_one_that_evicts(tmp_path):
    with RedisServer(tmp_path, "maxmemory-policy allkeys-lru") as evicts:
        line, code = refusal(broker=f"redis://127.0.0.1:{evicts.port}")
        assert "maxmemory-policy is allkeys-lru" in line
        assert code == ExitCode.ERROR
        with RedisServer(tmp_path, f"replicaof 127.0.0.1 {evicts.port}") as replica:
            wait_until(lambda: replica.client().info("replication")["role"] == "slave", "a replica")
            line, code = refusal(broker=f"redis://127.0.0.1:{replica.port}")
    assert "it is a replica" in line
    assert code == ExitCode.ERROR


def test_each_of_two_servers_is_named(tmp_path):
    away = free_port()
    with RedisServer(tmp_path) as server:
        here, there = f"redis://127.0.0.1:{server.port}", f"redis://:s3cret@127.0.0.1:{away}"
        line, code = refusal(broker=here, redis=there)
        assert line.startswith("redis ")
        assert code == ExitCode.TEMPORARY
        line, code = refusal(broker=there, redis=here)
        assert line.startswith("broker ")
        line, code = refusal(broker=f"amqp://u:s3cret@127.0.0.1:{away}//", redis=here)
    assert line.startswith("broker amqp://")
    assert "refused" in line
    assert code == ExitCode.TEMPORARY


def test_sentinels_that_are_away_may_come_back():
    line, code = refusal(broker=f"sentinel://:s3cret@127.0.0.1:{free_port()}")
    assert line.startswith("broker sentinel://")
    assert code == ExitCode.TEMPORARY
