"""Options of ssh that a session may set: both ways to the secondary obey them, and the others are refused."""

from __future__ import annotations

import socket
import subprocess

import pytest

from replication.remote.command import control_path, ssh_command
from replication.remote.errors import RemoteError
from replication.remote.ssh import connect
from replication.remote.ssh_words import check_options
from tests.remote.test_ssh import run
from tests.sshd import SshServer


def both(server, *extra):
    """Our own connection, and what the system's ssh says of its: its cipher, and where it came from."""
    options = server.options(extra=extra)
    connection = connect(server.target("/x"), options)
    try:
        ours = (
            connection.transport.remote_cipher,
            run(connection, "echo $SSH_CONNECTION").split()[0].decode(),
        )
        again = connection.transport.packetizer._Packetizer__keepalive_interval
    finally:
        connection.close()
    command = [*ssh_command(server.target("/x"), options), "-v", "-oLogLevel=DEBUG1"]
    command = [word for word in command if word != "-oLogLevel=ERROR"]
    done = subprocess.run(
        [*command, "--", server.target("/x").login, "echo $SSH_CONNECTION"],
        capture_output=True,
        text=True,
        check=True,
    )
    cipher = next(
        line.split("cipher: ")[1].split()[0] for line in done.stderr.splitlines() if "cipher: " in line
    )
    return ours, (cipher, done.stdout.split()[0]), again


def test_ciphers_bind_address_and_keep_alive(shared_ssh_server):
    ours, theirs, alive = both(
        shared_ssh_server, "Ciphers=aes256-ctr", "BindAddress=127.0.0.3", "ServerAliveInterval=7", "IPQoS=cs1"
    )
    assert ours == theirs == ("aes256-ctr", "127.0.0.3")
    assert alive == 7
    ours, theirs, alive = both(shared_ssh_server)
    assert (ours[1], theirs[1], alive) == ("127.0.0.1", "127.0.0.1", 15)


def test_ipqos_marks_our_connection(shared_ssh_server):
    connection = connect(
        shared_ssh_server.target("/x"), shared_ssh_server.options(extra=("IPQoS=lowdelay cs1",))
    )
    try:
        assert connection.transport.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x20
    finally:
        connection.close()


def test_a_jump_leads_there(shared_ssh_server, tmp_path):
    hop = SshServer(tmp_path / "hop")
    try:
        # The jump's own trust and key come from the user's configuration, as for ssh -J.
        config = tmp_path / "config"
        config.write_text(
            f"Host 127.0.0.1\nUserKnownHostsFile {hop.known_hosts}\nIdentityFile {hop.identity}\n"
        )
        options = shared_ssh_server.options(
            config_file=config, extra=(f"ProxyJump={hop.user}@127.0.0.1:{hop.port}",)
        )
        connection = connect(shared_ssh_server.target("/x"), options)
        try:
            assert run(connection) == b"hello\n"
        finally:
            connection.close()
        target = shared_ssh_server.target("/x")
        done = subprocess.run(
            [*ssh_command(target, options), "--", target.login, "echo hello"], capture_output=True, text=True
        )
        assert done.stdout == "hello\n", done.stderr
        assert hop.log().count("Accepted publickey") == 2
    finally:
        hop.stop()


def test_ways_that_differ_share_no_connection(shared_ssh_server, tmp_path):
    target = shared_ssh_server.target("/x")
    plain = control_path(target, shared_ssh_server.options(run_dir=tmp_path / "r"))
    assert plain != control_path(
        target, shared_ssh_server.options(run_dir=tmp_path / "r", extra=("Compression=yes",))
    )


def test_nothing_in_common_is_said(shared_ssh_server):
    with pytest.raises(RemoteError, match="none can be used"):
        connect(
            shared_ssh_server.target("/x"), shared_ssh_server.options(extra=("MACs=umac-64@openssh.com",))
        )


@pytest.mark.parametrize(
    "text",
    [
        "ProxyCommand=sh -c id", "LocalCommand=id", "PermitLocalCommand=yes", "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null", "Match=exec id", "Include=/tmp/x", "KnownHostsCommand=id", "ForwardAgent=yes",
        "IdentityFile=/x", "User=root", "HostName=evil", "ProxyJump=-oProxyCommand=id", "ProxyJump=a,-J", "ProxyJump=a b",
        "ProxyJump=$(id)", "Ciphers=a b", "Ciphers=", "BindAddress=eth0;id", "ServerAliveInterval=0", "Ciphers",
        "Ciphers=a\nProxyCommand=id", "IPQoS=cs1 cs1 cs1", "Compression=maybe", "XAuthLocation=/bin/sh", "PKCS11Provider=/x",
        "SecurityKeyProvider=/x", "HostKeyAlias=x", "RemoteCommand=id", "ConnectTimeout=1m",
    ],
)  # fmt: skip
def test_what_could_run_a_command_or_trust_anybody_is_refused(text):
    with pytest.raises(ValueError, match="will not do|may not be set"):
        check_options([text])


def test_what_may_be_set_is():
    said = check_options(
        ["proxyjump = me@gate:2222,[::1]:22", "Ciphers=^aes128-gcm@openssh.com", "AddressFamily=inet", "IPQoS=af21 cs1",
         "ConnectTimeout=5", "KexAlgorithms=+diffie-hellman-group14-sha1", "ServerAliveCountMax=3"]
    )  # fmt: skip
    assert said["proxyjump"] == "me@gate:2222,[::1]:22"
