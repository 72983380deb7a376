"""Trust, keys and ways to fail, against a real sshd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from replication.errors import UsageError
from replication.remote.errors import AuthFailed, HostKeyChanged, HostKeyUnknown, Unreachable
from replication.remote.ssh import connect
from tests.conftest import need

RELAY = """
import os, select, socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    for ready in select.select([0, sock], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else sock.recv(65536)
        if not data:
            sys.exit()
        sock.sendall(data) if ready == 0 else os.write(1, data)
"""


def run(connection, command="echo hello"):
    channel = connection.execute(command)
    with channel.makefile("rb") as file:
        return file.read()


def connected(server, **changes):
    connection = connect(server.target("/x"), server.options(**changes))
    try:
        assert run(connection) == b"hello\n"
        return connection.transport.remote_cipher
    finally:
        connection.close()


def fingerprint(server):
    shown = subprocess.run(["ssh-keygen", "-lf", server.host_key], capture_output=True, text=True, check=True)
    return shown.stdout.split()[1]


def test_known_host_and_a_fast_cipher(shared_ssh_server):
    assert connected(shared_ssh_server) == "aes128-gcm@openssh.com"


def test_unknown_host_is_refused_and_says_how_to_accept(shared_ssh_server):
    server = shared_ssh_server
    with pytest.raises(HostKeyUnknown) as caught:
        connect(server.target("/x"), server.options(known_hosts_file=server.pinned))
    assert caught.value.message == (
        f"the host key of 127.0.0.1 port {server.port} is not known: ssh-ed25519 {fingerprint(server)}. Compare it "
        "with what 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub' prints on that host; if it is the same, accept "
        f"it with --accept-new-host-key, or connect once with: ssh -p {server.port} {server.user}@127.0.0.1"
    )
    assert not server.pinned.exists()


def test_accepting_pins_at_first_use_only(ssh_server):
    server = ssh_server
    accepting = {"known_hosts_file": server.pinned, "accept_new_host_key": True}
    connected(server, **accepting)
    before = server.pinned.read_text()
    connected(server, **accepting)
    assert server.pinned.read_text() == before
    connected(server, known_hosts_file=server.pinned)
    server.new_host_key()
    server.restart()
    with pytest.raises(HostKeyChanged):
        connect(server.target("/x"), server.options(**accepting))
    assert server.pinned.read_text() == before


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_changed_key_is_refused_and_says_where_the_old_one_is(ssh_server, kind):
    server = ssh_server
    old = fingerprint(server)
    server.new_host_key(kind)
    server.restart()
    with pytest.raises(HostKeyChanged) as caught:
        connect(server.target("/x"), server.options(accept_new_host_key=True))
    message = caught.value.message
    assert "has CHANGED" in message
    assert old in message
    assert fingerprint(server) in message
    assert f"line 1 of {server.known_hosts}" in message
    assert f"ssh-keygen -f {server.known_hosts} -R '[127.0.0.1]:{server.port}'" in message
    assert not server.log().count("Accepted publickey")


def test_host_with_several_keys_is_asked_for_the_known_one(ssh_server):
    server = ssh_server
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", server.directory / "rsa"], check=True)
    kind, key = (server.directory / "rsa.pub").read_text().split()[:2]
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {kind} {key}\n")
    server.settings["HostKey"] = f"{server.host_key}\nHostKey {server.directory / 'rsa'}"
    server.restart()
    connected(server)


def test_ssh_config_gives_host_port_user_key_and_known_hosts(ssh_server):
    server = ssh_server
    included = server.directory / "included"
    included.write_text(f"Host backup\n  HostName 127.0.0.1\n  Port {server.port}\n  HostKeyAlias vault\n")
    kind, key = Path(f"{server.host_key}.pub").read_text().split()[:2]
    server.identity.rename(server.directory / "backup-id")
    trusted = server.directory / "with space"
    trusted.write_text(f"vault {kind} {key}\n")
    server.config.write_text(
        f"Include {included}\nHost backup\n  User {server.user}\n  IdentityFile {server.directory}/%n-id\n"
        f'  UserKnownHostsFile "{trusted}"\n  GlobalKnownHostsFile /dev/null\n'
    )
    target = server.target("/x").__class__(b"/x", "backup")
    options = server.options(port=None, identity=None, known_hosts_file=None)
    connection = connect(target, options)
    assert run(connection) == b"hello\n"
    connection.close()


@pytest.mark.parametrize(
    "setting", ["ProxyCommand {python} {relay} %h %p", "ProxyJump {user}@localhost:{port}"]
)
def test_proxies(ssh_server, setting):
    server = ssh_server
    relay = server.directory / "relay.py"
    relay.write_text(RELAY)
    jump = setting.format(user=server.user, port=server.port, python=sys.executable, relay=relay)
    server.known_hosts.write_text(
        server.known_hosts.read_text().replace("[", f"[localhost]:{server.port},[", 1)
    )
    # The jump itself goes by ssh's own known hosts and keys, which come from the same file.
    server.config.write_text(
        f"Host behind\n  HostName 127.0.0.1\n  {jump}\nHost *\n  IdentityFile {server.identity}\n"
        f"  UserKnownHostsFile {server.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
    )
    connection = connect(server.target("/x").__class__(b"/x", "behind", server.user), server.options())
    assert run(connection) == b"hello\n"
    connection.close()
    assert connection._proxy.returncode is not None


def test_port_where_nobody_listens(shared_ssh_server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            Unreachable, match=rf"127.0.0.1 port {port} refuses the connection.*--ssh-port"
        ) as caught:
            connect(shared_ssh_server.target("/x"), shared_ssh_server.options(port=port))
    assert caught.value.exit_code == 5


def test_port_where_something_else_listens(shared_ssh_server):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve():
            peer, _ = other.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(Unreachable, match="does not answer as an ssh server"):
            connect(shared_ssh_server.target("/x"), shared_ssh_server.options(port=other.getsockname()[1]))


def test_port_where_nothing_is_said(shared_ssh_server):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(Unreachable, match="does not answer"),
    ):
        connect(
            shared_ssh_server.target("/x"),
            shared_ssh_server.options(port=silent.getsockname()[1], connect_timeout_s=0.5),
        )


def test_name_that_does_not_exist(shared_ssh_server):
    target = shared_ssh_server.target("/x").__class__(b"/x", "no-such-host.invalid")
    with pytest.raises(Unreachable, match="no-such-host.invalid cannot be resolved"):
        connect(target, shared_ssh_server.options())


def test_key_that_is_not_let_in(shared_ssh_server, tmp_path):
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with pytest.raises(AuthFailed) as caught:
        connect(shared_ssh_server.target("/x"), shared_ssh_server.options(identity=key))
    assert f"keys tried: {key}" in caught.value.message
    assert "--identity" in caught.value.message


def test_keys_that_cannot_be_used_say_why(shared_ssh_server, tmp_path):
    encrypted, nonsense = tmp_path / "encrypted", tmp_path / "nonsense"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", encrypted], check=True)
    nonsense.write_text("not a key")
    for key, words in ((encrypted, "encrypted; add it to the ssh-agent"), (nonsense, "not a private key")):
        with pytest.raises(AuthFailed, match=words):
            connect(shared_ssh_server.target("/x"), shared_ssh_server.options(identity=key))
    with pytest.raises(UsageError, match="does not exist"):
        connect(shared_ssh_server.target("/x"), shared_ssh_server.options(identity=tmp_path / "none"))


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_kinds_of_keys(ssh_server, tmp_path, kind):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
    shutil.copy(f"{key}.pub", ssh_server.authorized_keys)
    connected(ssh_server, identity=key)


@pytest.fixture
def ssh_agent(tmp_path, monkeypatch):
    need("ssh-agent", "ssh-add")
    path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    while not path.exists():
        assert agent.poll() is None
    yield lambda key: subprocess.run(["ssh-add", "-q", key], check=True)
    agent.terminate()
    agent.wait()


def test_key_of_the_agent(shared_ssh_server, ssh_agent):
    ssh_agent(shared_ssh_server.identity)
    connected(shared_ssh_server, identity=None)


def test_identity_keeps_the_agents_other_keys_out(ssh_server, ssh_agent, tmp_path):
    """A full agent would use up the server's patience (MaxAuthTries) before the right key."""
    for number in range(7):
        key = tmp_path / f"k{number}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        ssh_agent(key)
    connected(ssh_server)
    with pytest.raises(
        AuthFailed, match=r"closed the connection after \d keys; name the right one with --identity"
    ):
        connect(ssh_server.target("/x"), ssh_server.options(identity=None))


def test_broken_configuration_is_a_usage_error(ssh_server):
    ssh_server.config.write_text("NoSuchSetting yes\n")
    with pytest.raises(UsageError, match="line 1: Bad configuration option: nosuchsetting; "):
        connect(ssh_server.target("/x"), ssh_server.options())


def test_a_forked_child_leaves_the_connection_alone(shared_ssh_server):
    connection = connect(shared_ssh_server.target("/x"), shared_ssh_server.options())
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        connection.abandon()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run(connection) == b"hello\n"
    connection.close()
