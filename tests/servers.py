"""Real servers of a test's own, on ports of loopback: redis-server, with TLS, replicas and sentinels; RabbitMQ."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import missing, need


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class RedisServer:
    """A redis-server with these lines of configuration; ``sentinel`` makes it one of those."""

    def __init__(self, directory, *lines, port=None, sentinel=False):
        need("redis-server")
        self.port = port or free_port()
        self._directory = Path(directory) / f"redis{self.port}"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._sentinel = ["--sentinel"] if sentinel else []
        with_tls = any(line.startswith("tls-port") for line in lines)
        plain = [] if with_tls else [f"port {self.port}"]
        common = [] if sentinel else ['save ""', "appendonly no", "repl-diskless-sync-delay 0"]
        words = [*plain, "bind 127.0.0.1", f"dir {self._directory}", *common, *lines]
        self._config = self._directory / "redis.conf"
        self._config.write_text("\n".join(words).replace("PORT", str(self.port)) + "\n")
        self.start()

    def start(self):
        with open(self._directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["redis-server", self._config, *self._sentinel],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, (self._directory / "log").read_text()
            time.sleep(0.02)
        raise AssertionError("redis-server does not listen")

    def client(self, **options):
        return redis.Redis(port=self.port, **options)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def wait_until(condition, what, timeout=60):
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        with contextlib.suppress(redis.RedisError):
            if found := condition():
                return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {timeout} s")


class Certificates:
    """An authority of its own, and certificates of servers, as files below ``directory``."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {os.urandom(8).hex()}")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        made = self._builder(self._name, self._key, 1).add_extension(constraints, critical=True)
        self.ca = self._write(
            "ca.pem", made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )

    def _builder(self, name, key, days):
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9)).not_valid_after(now + dt.timedelta(days=days))
        )  # fmt: skip

    def _write(self, name, content):
        path = self.directory / name
        path.write_bytes(content)
        path.chmod(0o600)
        return str(path)

    def issue(self, name, *hosts, days=1):
        """Files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [
            x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts
        ]
        builder = self._builder(subject, key, days).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.pem", pem), self._write(f"{name}.key", plain)


def tls_lines(certificates, *hosts, days=1, clients="no"):
    """Lines of configuration for a RedisServer that speaks TLS and nothing else."""
    cert, key = certificates.issue("server", *hosts, days=days)
    return ["port 0", "tls-port PORT", f"tls-cert-file {cert}", f"tls-key-file {key}",
            f"tls-ca-cert-file {certificates.ca}", f"tls-auth-clients {clients}"]  # fmt: skip


_RABBITMQ = "/usr/lib/rabbitmq/lib"


class RabbitMQ:
    """A node of RabbitMQ with files, ports and an epmd of its own."""

    def __init__(self, directory, *lines):
        found = sorted(Path(_RABBITMQ).glob("rabbitmq_server-*/sbin")) if os.path.isdir(_RABBITMQ) else []
        if not found:
            missing("not installed: rabbitmq-server")
        self._programs = found[-1]
        self.directory = Path(directory) / "rabbitmq"
        self.directory.mkdir()
        self.port = free_port()
        self._epmd = free_port()
        text = "\n".join([f"listeners.tcp.1 = 127.0.0.1:{self.port}", *lines])
        (self.directory / "rabbitmq.conf").write_text(text + "\n")
        (self.directory / "plugins").write_text("[].\n")
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._environment = {
            **os.environ, "HOME": str(self.directory), "RABBITMQ_NODENAME": f"seamark{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()), "ERL_EPMD_PORT": str(self._epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"), "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"), "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }  # fmt: skip
        # Its own epmd, so that it can be ended: a node would leave one behind.
        self._names = subprocess.Popen(["epmd", "-port", str(self._epmd), "-address", "127.0.0.1"])
        self.start()

    def start(self):
        with open(self.directory / "out", "ab") as out:
            self.process = subprocess.Popen(
                [self._programs / "rabbitmq-server"],
                env=self._environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until(self._listens, "RabbitMQ", 240)

    def _listens(self):
        assert self.process.poll() is None, (self.directory / "out").read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def ask(self, *words):
        """What rabbitmqctl says to this, as lines."""
        command = [self._programs / "rabbitmqctl", "-q", *words]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=True, timeout=100
        )
        return done.stdout.splitlines()

    def queues(self):
        return {line.partition("\t")[0] for line in self.ask("list_queues", "name", "type")[1:]}

    def kill(self):
        """kill -9 of the node and of what it started, as a crash of its host would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self._names.kill()
        self._names.wait()
