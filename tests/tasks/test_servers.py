"""What settings and the environment say of the servers, and that no password is shown."""

from __future__ import annotations

import msgspec
import pytest

from replication.addresses import has_password, shown
from replication.errors import UsageError
from replication.server_settings import SentinelSettings, ServerSettings, TlsSettings
from tasks.servers import from_environment, from_json, of_url, resolve


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "password"
    path.write_text("p@ss/w:rd\n")
    path.chmod(0o600)
    return path


def test_one_redis_is_everything():
    servers = resolve(ServerSettings(broker="redis://host/1"))
    assert servers.are_one
    assert servers.redis_url == servers.broker == "redis://host/1"
    assert servers.client().connection_pool.connection_kwargs["db"] == 1


def test_the_environment_goes_before_the_file():
    base = ServerSettings(broker="redis://a", redis="redis://b", tls=TlsSettings(ca="/ca", cert="/cert"))
    environment = {
        "SEAMARK_BROKER": "rediss://c",
        "SEAMARK_TLS_CA": "/other",
        "SEAMARK_TLS_CHECK_HOSTNAME": "false",
    }
    found = from_environment(base, environment)
    assert found == msgspec.structs.replace(
        base, broker="rediss://c", tls=TlsSettings(ca="/other", cert="/cert", check_hostname=False)
    )


def test_what_is_handed_on_means_the_same(secret):
    servers = resolve(
        ServerSettings(
            broker="sentinel://a:1;sentinel://b:2/3", broker_password_file=str(secret),
            sentinel=SentinelSettings(master="m", tls=True, password_file=str(secret)),
        )
    )  # fmt: skip
    assert resolve(from_environment(environ=servers.environment())) == servers
    assert from_json(servers.to_json()) == servers
    assert "rd" not in "".join(servers.environment().values()).replace(str(secret), "")


def test_a_password_from_a_file_is_in_the_address_and_nowhere_to_be_seen(secret):
    servers = resolve(ServerSettings(broker="redis://seamark@host:1/0", broker_password_file=str(secret)))
    kwargs = servers.client().connection_pool.connection_kwargs
    assert (kwargs["username"], kwargs["password"]) == ("seamark", "p@ss/w:rd")
    assert "rd" not in repr(servers)
    assert shown(servers.broker) == "redis://seamark:…@host:1/0"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:pw@h:1/0", "redis://:…@h:1/0"),
        ("redis://u:p@w@h/0", "redis://u:…@h/0"),
        ("redis://u:p/w@h/0", "redis://u:…@h/0"),
        ("sentinel://:a@h;sentinel://:b@i", "sentinel://:…@h;sentinel://:…@i"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=…&db=1"),
    ],
)
def test_addresses_are_shown_without_passwords(url, said):
    assert has_password(url)
    assert shown(url) == said


@pytest.mark.parametrize("url", ["redis://h:1/0", "redis+socket:///tmp/a@b:c/redis.sock", "amqp://user@h//"])
def test_addresses_without_passwords_are_shown_as_they_are(url):
    assert not has_password(url)
    assert shown(url) == url


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_password_that_others_can_read_is_refused(secret, mode):
    secret.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        resolve(ServerSettings(broker="redis://h", broker_password_file=str(secret)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ServerSettings(broker="amqp://h"), "a Redis is needed as well"),
        (ServerSettings(broker="amqp://h", redis="amqp://h"), "redis must begin with one of"),
        (ServerSettings(broker="http://h"), "broker must begin with one of"),
        (ServerSettings(broker="redis://h:port"), "Port could not be cast"),
        (ServerSettings(broker="redis://:secret@"), "names no host"),
        (ServerSettings(broker="redis://a;redis://b"), "only addresses of sentinels"),
        (ServerSettings(broker="redis://h", broker_password_file="/nonexistent"), "cannot read /nonexistent"),
        (ServerSettings(broker="rediss://h", tls=TlsSettings(ca="/nonexistent")), "tls.ca: cannot read"),
    ],
)
def test_what_cannot_be_meant_is_one_line(settings, words):
    with pytest.raises(UsageError, match=words) as caught:
        resolve(settings)
    assert "secret" not in caught.value.message


def test_tls_is_checked_in_all_three_clients():
    tls = TlsSettings(cert=None)
    for url in ("rediss://h", "sentinel://h"):
        servers = resolve(ServerSettings(broker=url, tls=tls, sentinel=SentinelSettings(tls=True)))
        settings = servers.celery_settings()
        pool = servers.client().connection_pool.connection_kwargs
        for said in (settings["broker_use_ssl"], settings["redis_backend_use_ssl"], pool):
            assert said["ssl_check_hostname"] is True
            assert said["ssl_cert_reqs"].name == "CERT_REQUIRED"
    amqp = resolve(ServerSettings(broker="amqps://u:p@mq.example:1/v", redis="redis://h")).celery_settings()
    assert amqp["broker_use_ssl"]["server_hostname"] == "mq.example"
    assert of_url("redis://h").celery_settings()["broker_use_ssl"] is None
