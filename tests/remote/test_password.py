"""A password, where a person can be asked and no key is let in. An ssh server in this process: sshd would need an account."""

from __future__ import annotations

import socket
import threading

import paramiko
import pytest

from replication.remote.endpoint import SshOptions
from replication.remote.errors import AuthFailed
from replication.remote.ssh import connect
from replication.remote.target import Target


class _Server(paramiko.ServerInterface):
    def get_allowed_auths(self, username):
        return "publickey,password"

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username, password):
        return paramiko.AUTH_SUCCESSFUL if password == "right" else paramiko.AUTH_FAILED


@pytest.fixture
def server(tmp_path):
    """The port of a server that lets in by password, and how to get there without any key."""
    listener = socket.create_server(("127.0.0.1", 0))
    key = paramiko.ECDSAKey.generate()
    transports = []

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(client)
            transport.add_server_key(key)
            transport.start_server(server=_Server())
            transports.append(transport)

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
    config = tmp_path / "config"
    config.write_text("IdentityFile none\nIdentityAgent none\n")
    yield {"port": port, "known_hosts_file": known, "config_file": config}
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for transport in transports:
        transport.close()


def test_it_is_asked_for_once_and_only_where_that_is_wanted(server):
    target, asked = Target(b"/x", "127.0.0.1", "somebody"), []

    def ask(login, answer):
        asked.append(login)
        return answer

    with pytest.raises(AuthFailed, match="keys tried: none"):
        connect(target, SshOptions(**server))
    with pytest.raises(AuthFailed, match="by this password"):
        connect(target, SshOptions(**server, ask_password=lambda login: ask(login, "wrong")))
    connect(target, SshOptions(**server, ask_password=lambda login: ask(login, "right"))).close()
    assert asked == [f"somebody@127.0.0.1 port {server['port']}"] * 2
