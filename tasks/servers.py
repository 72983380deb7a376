"""The servers that a fleet shares: the broker, which has the queues, and the Redis of ledgers and results.

Often they are one Redis. What is set stands in the node's file, or in the environment (SEAMARK_BROKER,
SEAMARK_TLS_CA, … : the keys of ServerSettings); here it becomes what Celery and our own clients take.
Neither Celery nor redis-py is imported before one of them is wanted.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from replication.addresses import has_password, scheme, shown, with_password
from replication.errors import UsageError
from replication.server_settings import ServerSettings
from replication.settings import keys, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

REDIS = ("redis", "rediss", "redis+socket", "sentinel")
AMQP = ("amqp", "amqps")
SCHEMES = (*REDIS, *AMQP)
_CONNECT_S, _ANSWER_S = 5.0, 30.0  # a server that is not there, and one that says nothing
_SENTINEL_PORT = 26379
_SET_IN = "SEAMARK_"
_SHORTEST_KEY = 32  # characters: 128 bits in hexadecimal

chosen: Servers | None = None


@dataclass(frozen=True)
class Servers:
    """Addresses hold passwords: show ``shown(…)`` of them. Made by ``resolve``, ``from_environment`` or ``of_url``."""

    settings: ServerSettings
    broker: str
    redis_url: str
    sentinel_password: str | None = None
    message_key: bytes | None = None  # by which messages are signed, see signing.py

    def __repr__(self) -> str:
        return f"Servers(broker={shown(self.broker)}, redis={shown(self.redis_url)})"

    @property
    def broker_is_redis(self) -> bool:
        return scheme(self.broker) in REDIS

    @property
    def are_one(self) -> bool:
        """Whether the broker is the Redis of the ledgers too."""
        return self.broker == self.redis_url

    # ---- our own clients

    def client(self, timeout_s: float | None = None) -> redis.Redis:
        """A client of the Redis of ledgers and results, which follows the master where Sentinel says which that is.

        With ``timeout_s`` a Redis that does not answer is an error after that time, and is not asked again.
        """
        return self._client(self.redis_url, timeout_s)

    def broker_client(self, timeout_s: float | None = None) -> redis.Redis:
        """A client of a broker that is a Redis."""
        return self._client(self.broker, timeout_s)

    def _client(self, url: str, timeout_s: float | None) -> redis.Redis:
        import redis
        import redis.sentinel
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {}
        if scheme(url) != "redis+socket":
            options = {
                "socket_timeout": _ANSWER_S,
                "socket_connect_timeout": _CONNECT_S,
                "socket_keepalive": True,
            }
        if timeout_s is not None:
            options |= {"socket_timeout": timeout_s, "retry": Retry(NoBackoff(), 0)}
            if scheme(url) != "redis+socket":
                options["socket_connect_timeout"] = timeout_s
        options |= self._tls(url)
        if scheme(url) != "sentinel":
            plain = url.replace("redis+socket://", "unix://").replace("virtual_host=", "db=")
            return redis.Redis.from_url(plain, **options)
        parts = [urlsplit(part) for part in url.split(";")]
        hosts = [(part.hostname or "127.0.0.1", part.port or _SENTINEL_PORT) for part in parts]
        database = parts[0].path.strip("/")
        secure = {"ssl": True} if self.settings.sentinel.tls else {}
        sentinel: Any = redis.sentinel.Sentinel  # untyped
        master: redis.Redis = sentinel(hosts, sentinel_kwargs=self._sentinel_options(timeout_s)).master_for(
            self.settings.sentinel.master, username=parts[0].username, password=unquote(parts[0].password or "") or None,
            db=int(database or 0), **secure, **options,
        )  # fmt: skip
        return master

    # ---- Celery

    def celery_settings(self) -> dict[str, Any]:
        """What of Celery's settings depends on the servers (celeryconfig.py has the others)."""
        from tasks import signing

        queue_type = "classic" if self.broker_is_redis else "quorum"
        return {
            "broker_url": self.broker,
            "broker_use_ssl": self._amqp_tls()
            if not self.broker_is_redis
            else self._tls(self.broker) or None,
            "broker_transport_options": self._transport_options(),
            "task_default_queue_type": queue_type,
            "task_create_missing_queue_type": queue_type,
            "result_backend": self.redis_url,
            "redis_backend_use_ssl": self._tls(self.redis_url) or None,
            "result_backend_transport_options": self._redis_options(self.redis_url),
            **signing.celery_settings(self.message_key),
        }

    def _transport_options(self) -> dict[str, Any]:
        if not self.broker_is_redis:
            return {"confirm_publish": True}
        timeouts = {
            "socket_timeout": _ANSWER_S,
            "socket_connect_timeout": _CONNECT_S,
            "socket_keepalive": True,
        }
        return {
            # A message whose worker vanished is handed out again after this; a running task renews it each second.
            "visibility_timeout": 120,
            # How often that is looked at (kombu's own default is 100 s).
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # Sessions come in turn, and what asks whether a worker is alive comes first.
            "queue_order_strategy": "tasks.turns:Turns",
            "retry_on_timeout": True,
            **(timeouts if scheme(self.broker) != "redis+socket" else {"socket_keepalive": True}),
            **self._redis_options(self.broker),
        }

    def _redis_options(self, url: str) -> dict[str, Any]:
        if scheme(url) != "sentinel":
            return {}
        return {"master_name": self.settings.sentinel.master, "sentinel_kwargs": self._sentinel_options(None)}

    def _sentinel_options(self, timeout_s: float | None) -> dict[str, Any]:
        options: dict[str, Any] = {
            "socket_timeout": timeout_s or _CONNECT_S,
            "socket_connect_timeout": timeout_s or _CONNECT_S,
        }
        if self.sentinel_password is not None:
            options["password"] = self.sentinel_password
        if self.settings.sentinel.tls:
            options |= {"ssl": True, **self._tls("sentinel://")}
        return options

    def _tls(self, url: str) -> dict[str, Any]:
        """redis-py's words for TLS; none where the address does not ask for it."""
        if scheme(url) != "rediss" and not (scheme(url) == "sentinel" and self.settings.sentinel.tls):
            return {}
        tls = self.settings.tls
        found = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
        said: dict[str, Any] = {name: path for name, path in found.items() if path is not None}
        return said | {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": tls.check_hostname}

    def _amqp_tls(self) -> dict[str, Any] | None:
        """py-amqp's words for TLS; None where the address does not ask for it."""
        if scheme(self.broker) != "amqps":
            return None
        tls = self.settings.tls
        found = {"ca_certs": tls.ca, "certfile": tls.cert, "keyfile": tls.key}
        said: dict[str, Any] = {name: path for name, path in found.items() if path is not None}
        if tls.check_hostname:
            said["server_hostname"] = urlsplit(self.broker).hostname
        return said | {"cert_reqs": ssl.CERT_REQUIRED}

    # ---- handing on

    def environment(self) -> dict[str, str]:
        """The variables that make ``from_environment`` of another process give the same."""
        found: dict[str, str] = {}
        for name in keys(ServerSettings):
            value: Any = self.settings
            for part in name.split("."):
                value = getattr(value, part)
            if value is not None:
                found[variable(name)] = str(value).lower() if isinstance(value, bool) else str(value)
        return found

    def to_json(self) -> bytes:
        return msgspec.json.encode(self.settings)


def from_json(text: bytes) -> Servers:
    """What ``to_json`` wrote. Raises UsageError when a file of a password is gone by now."""
    return resolve(msgspec.json.decode(text, type=ServerSettings))


def choose(servers: Servers | None) -> None:
    """What a command line says, before Celery is loaded: celeryconfig.py then does not look at the environment."""
    global chosen
    chosen = servers


def of_url(url: str) -> Servers:
    """One Redis for everything."""
    return Servers(ServerSettings(broker=url), url, url)


def variable(key: str) -> str:
    """The environment variable of a key of ServerSettings."""
    return _SET_IN + key.upper().replace(".", "_")


def from_environment(
    base: ServerSettings | None = None, environ: Mapping[str, str] | None = None
) -> ServerSettings:
    """What the environment says, above what ``base`` does. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    said: dict[str, Any] = {}
    for name, key in keys(ServerSettings).items():
        if text := environ.get(variable(name), ""):
            table, _, last = name.rpartition(".")
            (said.setdefault(table, {}) if table else said)[last] = parse(key, text)
    found = base if base is not None else ServerSettings()
    for name, value in said.items():
        new = msgspec.structs.replace(getattr(found, name), **value) if isinstance(value, dict) else value
        found = msgspec.structs.replace(found, **{name: new})
    return found


def resolve(settings: ServerSettings) -> Servers:
    """The addresses, with passwords, that settings with a broker mean. Raises UsageError for what cannot be meant."""
    broker = _address("broker", settings.broker or "", SCHEMES, settings.broker_password_file)
    if scheme(broker) in AMQP and not settings.redis:
        raise UsageError(
            f"with {shown(broker)} as broker a Redis is needed as well, for ledgers and results: "
            f"give it as redis in the node's settings, --redis or {variable('redis')}"
        )
    redis = broker
    if settings.redis:
        redis = _address("redis", settings.redis, REDIS, settings.redis_password_file)
    for name in ("ca", "cert", "key"):
        path = getattr(settings.tls, name)
        if path is not None:
            _check_readable(f"tls.{name}", path, private=name == "key")
    password = None
    if settings.sentinel.password_file is not None:
        password = read_password("sentinel.password_file", settings.sentinel.password_file)
    key = None
    if settings.message_key_file is not None:
        key = _message_key(settings.message_key_file)
    return Servers(settings, broker, redis, password, key)


def _message_key(path: str) -> bytes:
    """The key that a file's line stands for. Raises UsageError."""
    line = read_password("message_key_file", path)
    if len(line) < _SHORTEST_KEY:
        raise UsageError(
            f"message_key_file: the line in {path} is shorter than {_SHORTEST_KEY} characters; "
            f"make one with: openssl rand -hex 32"
        )
    return hashlib.sha256(b"seamark messages\0" + line.encode("utf-8", "surrogateescape")).digest()


def _address(name: str, url: str, schemes: tuple[str, ...], password_file: str | None) -> str:
    """Checked, with the password in it. Raises UsageError."""
    parts = url.split(";")
    for part in parts:
        if scheme(part) not in schemes or "://" not in part:
            raise UsageError(f"{name} must begin with one of {', '.join(each + '://' for each in schemes)}")
        try:
            found = urlsplit(part)
            _ = found.port
        except ValueError as error:
            raise UsageError(f"{name} {shown(part)}: {error}") from None
        if scheme(part) != "redis+socket" and not found.hostname:
            raise UsageError(f"{name} {shown(part)}: it names no host")
    if len(parts) > 1 and any(scheme(part) != "sentinel" for part in parts):
        raise UsageError(f"{name}: only addresses of sentinels may be several")
    if password_file is None:
        return url
    if has_password(url):
        raise UsageError(
            f"{name} {shown(url)} holds a password, and {name}_password_file names another: give one"
        )
    password = quote(read_password(f"{name}_password_file", password_file), safe="")
    return ";".join(with_password(part, password) for part in parts)


def read_password(name: str, path: str) -> str:
    """The first line of a file that others may not read. Raises UsageError."""
    _check_readable(name, path, private=True)
    lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if not lines or not lines[0]:
        raise UsageError(f"{name}: {path} is empty")
    return lines[0]


def _check_readable(name: str, path: str, *, private: bool) -> None:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"{name}: cannot read {path}: {error.strerror}") from None
    if private and stat.S_IMODE(mode) & 0o027:
        raise UsageError(
            f"{name}: {path} may be read by others (mode {stat.S_IMODE(mode):o}): chmod 600 {path}"
        )
