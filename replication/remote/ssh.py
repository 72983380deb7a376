"""One ssh connection to the secondary's host, by paramiko, with the user's trust and keys.

Host keys come first: nothing is said to a host, let alone which keys we have, before its key is
known. Every failure is a RemoteError that says what to do.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import paramiko

from replication.remote.endpoint import Endpoint, SshOptions, resolve
from replication.remote.errors import (
    AuthFailed,
    HostKeyChanged,
    HostKeyUnknown,
    LinkLost,
    RemoteError,
    Unreachable,
    reason_of,
)
from replication.remote.identities import candidates
from replication.remote.known_hosts import Verdict, fingerprint, judge, known_keys, lookup_name, pin
from replication.remote.ssh_words import open_socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replication.remote.target import Target

# paramiko reports its own threads' errors as tracebacks in the log; ours says them in one line.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

# What arrives on one channel before we have read it; OpenSSH's own is 2 MiB, too little for a long link.
_WINDOW_BYTES = 16 << 20
_KEEPALIVE_S = 15
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class Connection:
    """An authenticated connection. Belongs to the process that made it: see abandon()."""

    def __init__(
        self, transport: paramiko.Transport, endpoint: Endpoint, proxy: subprocess.Popen[bytes] | None
    ) -> None:
        self.transport = transport
        self.endpoint = endpoint
        self._proxy = proxy

    def execute(self, command: str) -> paramiko.Channel:
        """Start a command; its channel. Raises LinkLost, RemoteError (no session to be had)."""
        try:
            channel = self.transport.open_session(timeout=30)
            channel.exec_command(command)
        except paramiko.ChannelException as error:
            raise RemoteError(
                f"{self.endpoint} opens no further session ({error.text}); raise MaxSessions in its sshd_config"
            ) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise LinkLost(f"the connection to {self.endpoint} was lost: {reason_of(error)}") from None
        return channel

    def close(self) -> None:
        """End the connection, and the proxy command that carried it. Never raises."""
        with contextlib.suppress(Exception):
            self.transport.close()
        if self._proxy is not None:
            _end(self._proxy)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connection without a word on the wire."""
        with contextlib.suppress(Exception):
            self.transport.active = False  # type: ignore[attr-defined]
            self.transport.packetizer.close()
            self.transport.sock.close()


def connect(target: Target, options: SshOptions) -> Connection:
    """Connect, verify the host key, log in.

    Raises Unreachable, HostKeyUnknown, HostKeyChanged, AuthFailed; UsageError for a bad configuration.
    """
    endpoint = resolve(target, options)
    sock, proxy = _open_socket(endpoint, options)
    transport: paramiko.Transport | None = None
    try:
        transport = _negotiate(sock, endpoint, options)
        verify_host_key(transport.get_remote_server_key(), endpoint, options)
        _log_in(transport, endpoint, options)
    except BaseException:
        if transport is not None:
            transport.close()
        sock.close()
        if proxy is not None:
            _end(proxy)
        raise
    transport.set_keepalive(int(endpoint.said.get("serveraliveinterval", _KEEPALIVE_S)))
    return Connection(transport, endpoint, proxy)


def verify_host_key(key: paramiko.PKey, endpoint: Endpoint, options: SshOptions) -> None:
    """Accept a known key; pin an unknown one if the session says so; refuse anything else."""
    name, port, blob = endpoint.key_name, endpoint.key_port, key.asbytes()
    verdict, lines = judge(endpoint.known_hosts, name, port, blob)
    shown = f"{key.get_name()} {fingerprint(blob)}"
    if verdict is Verdict.KNOWN:
        return
    if verdict is Verdict.REVOKED:
        raise HostKeyChanged(
            f"the host key of {endpoint} ({shown}) is marked @revoked in {lines[0].file}: refused"
        )
    if verdict is Verdict.CHANGED:
        known = lines[0]
        raise HostKeyChanged(
            f"the host key of {endpoint} has CHANGED: it shows {shown}, but line {known.line} of {known.file} has "
            f"{known.type} {fingerprint(known.blob)}; someone may be listening in. If the host was reinstalled, "
            f"remove the old key with: ssh-keygen -f {known.file} -R '{lookup_name(name, port)}'"
        )
    if options.accept_new_host_key and options.known_hosts_file is not None:
        try:
            pin(options.known_hosts_file, name, port, key.get_name(), blob)
        except OSError as error:
            raise RemoteError(
                f"cannot pin the host key in {options.known_hosts_file}: {error.strerror}"
            ) from None
        return
    port_option = "" if endpoint.port == 22 else f"-p {endpoint.port} "
    raise HostKeyUnknown(
        f"the host key of {endpoint} is not known: {shown}. Compare it with what 'ssh-keygen -lf "
        f"/etc/ssh/ssh_host_{_short(key.get_name())}_key.pub' prints on that host; if it is the same, accept it with "
        f"--accept-new-host-key, or connect once with: ssh {port_option}{endpoint.user}@{endpoint.host}"
    )


def _open_socket(
    endpoint: Endpoint, options: SshOptions
) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    if endpoint.proxy_command:
        ours, theirs = socket.socketpair()
        with theirs:
            proxy = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {endpoint.proxy_command}"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        return ours, proxy
    where = f"{endpoint.hostname} port {endpoint.port}"
    timeout_s = _connect_timeout(endpoint, options)
    try:
        sock = open_socket((endpoint.hostname, endpoint.port), timeout_s, endpoint.said)
    except socket.gaierror as error:
        raise Unreachable(f"the host name {endpoint.hostname} cannot be resolved: {error.strerror}") from None
    except TimeoutError:
        raise Unreachable(
            f"{where} does not answer within {timeout_s:g} s: is it up, is a firewall in between?"
        ) from None
    except ConnectionRefusedError:
        raise Unreachable(
            f"{where} refuses the connection: does sshd run there, on this port (--ssh-port)?"
        ) from None
    except OSError as error:
        raise Unreachable(f"{where} cannot be reached: {error.strerror or error}") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A peer that acknowledges nothing for so long is gone, whatever is still in the send queue.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.answer_timeout_s * 1000))
    return sock, None


def _negotiate(sock: socket.socket, endpoint: Endpoint, options: SshOptions) -> paramiko.Transport:
    transport = paramiko.Transport(sock, default_window_size=_WINDOW_BYTES)
    timeout_s = _connect_timeout(endpoint, options)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout_s
    transport.channel_timeout = timeout_s
    security = transport.get_security_options()
    security.ciphers = _first(_FAST_CIPHERS, tuple(security.ciphers))
    transport.use_compression(endpoint.said.get("compression") == "yes")
    # Ask for a key of a kind that we know: a host has several, and any other would look unknown.
    known = [
        key.type
        for key in known_keys(endpoint.known_hosts, lookup_name(endpoint.key_name, endpoint.key_port))
    ]
    wanted = tuple(name for kind in known for name in (_RSA if kind == "ssh-rsa" else (kind,)))
    security.key_types = _first(wanted, tuple(security.key_types))
    _choose(security, endpoint)
    try:
        transport.start_client(timeout=timeout_s)
        # start_client returns silently when its time is over.
        transport.get_remote_server_key()
    except paramiko.ssh_exception.IncompatiblePeer as error:
        transport.close()
        raise RemoteError(f"{endpoint} and we have no ssh algorithm in common: {error}") from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Unreachable(
            f"{endpoint} does not answer as an ssh server: {reason_of(error)}; is this the right port (--ssh-port)?"
        ) from None
    return transport


_CHOICES = {"ciphers": "ciphers", "macs": "digests", "kexalgorithms": "kex", "hostkeyalgorithms": "key_types"}


def _choose(security: paramiko.transport.SecurityOptions, endpoint: Endpoint) -> None:
    """Only the algorithms that the session's options name. Raises RemoteError where we have none of them."""
    for name, ours in _CHOICES.items():
        if name in endpoint.said:
            possible = getattr(security, ours)
            chosen = tuple(word for word in endpoint.said[name].split(",") if word in possible)
            if not chosen:
                raise RemoteError(
                    f"ssh.options: of {name} {endpoint.said[name]} none can be used for the control connection; "
                    f"possible are: {', '.join(possible)}"
                )
            setattr(security, ours, chosen)


def _connect_timeout(endpoint: Endpoint, options: SshOptions) -> float:
    return float(endpoint.said.get("connecttimeout", options.connect_timeout_s))


def _log_in(transport: paramiko.Transport, endpoint: Endpoint, options: SshOptions) -> None:
    """Try our keys one after the other, then a password where one may be asked for. Raises AuthFailed."""
    try:
        with contextlib.closing(candidates(endpoint)) as keys:
            _try_keys(transport, endpoint, keys)
    except AuthFailed:
        if options.ask_password is None or not transport.is_active():
            raise
        _try_password(transport, endpoint, options.ask_password(f"{endpoint.user}@{endpoint}"))


def _try_password(transport: paramiko.Transport, endpoint: Endpoint, password: str) -> None:
    try:
        left = transport.auth_password(endpoint.user, password)
    except paramiko.AuthenticationException:
        left = [""]
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise Unreachable(f"{endpoint} broke off while logging in: {reason_of(error)}") from None
    if left:
        raise AuthFailed(f"{endpoint} does not let {endpoint.user} in by this password")


def _try_keys(
    transport: paramiko.Transport, endpoint: Endpoint, keys: Iterable[tuple[str, paramiko.PKey | str]]
) -> None:
    tried: list[str] = []
    for name, key in keys:
        if isinstance(key, str):  # why this one cannot be used
            tried.append(f"{name} ({key})")
            continue
        tried.append(name)
        try:
            if not transport.auth_publickey(endpoint.user, key):
                return
            tried[-1] += " (accepted, but a second factor is asked for)"
        except paramiko.BadAuthenticationType as error:
            raise AuthFailed(
                f"{endpoint} does not let {endpoint.user} in by key; it allows: {', '.join(error.allowed_types)}"
            ) from None
        except paramiko.AuthenticationException:
            continue
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not transport.is_active() and len(tried) > 1:
                raise AuthFailed(
                    f"{endpoint} closed the connection after {len(tried)} keys; name the right one with --identity"
                ) from None
            raise Unreachable(f"{endpoint} broke off while logging in: {reason_of(error)}") from None
    raise AuthFailed(
        f"{endpoint} does not let {endpoint.user} in; keys tried: {', '.join(tried) or 'none'}. Add one to the "
        f"ssh-agent or name it with --identity FILE, and its .pub to authorized_keys of {endpoint.user} there"
    )


def _first(wanted: tuple[str, ...], possible: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(name for name in wanted if name in possible))
    return chosen + tuple(name for name in possible if name not in chosen)


def _short(key_type: str) -> str:
    """The word that sshd's key files are named by."""
    return {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}.get(key_type, "ecdsa")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    deadline = time.monotonic() + 2
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if process.poll() is None:
        process.kill()
        process.wait()
