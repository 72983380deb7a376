from __future__ import annotations

import base64
import subprocess

import pytest

from replication.remote.known_hosts import Verdict, fingerprint, judge, pin
from tests.conftest import need


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    need("ssh-keygen")
    directory = tmp_path_factory.mktemp("keys")
    found = []
    for name in ("a", "b"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
        kind, text = (directory / f"{name}.pub").read_text().split()[:2]
        found.append((kind, text, base64.b64decode(text)))
    return found


def verdict(file, host, port, blob):
    return judge([file], host, port, blob)[0]


def test_fingerprint_is_what_ssh_keygen_prints(keys, tmp_path):
    kind, text, blob = keys[0]
    (tmp_path / "k.pub").write_text(f"{kind} {text} x\n")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "k.pub"], capture_output=True, text=True, check=True
    )
    assert fingerprint(blob) == shown.stdout.split()[1]


@pytest.mark.parametrize("pattern", ["host", "x,host,y", "h?st", "*", "HOST", "*,!other"])
def test_names_and_patterns_that_match(keys, tmp_path, pattern):
    file = tmp_path / "k"
    file.write_text(f"# comment\n\nbroken line\n{pattern} {keys[0][0]} {keys[0][1]} comment\n")
    assert verdict(file, "host", 22, keys[0][2]) is Verdict.KNOWN
    assert verdict(file, "host", 22, keys[1][2]) is Verdict.CHANGED


@pytest.mark.parametrize(
    "pattern", ["hos", "hostx", "*,!host", "[host]:23", "h[o]st", "@cert-authority host"]
)
def test_names_and_patterns_that_do_not(keys, tmp_path, pattern):
    file = tmp_path / "k"
    file.write_text(f"{pattern} {keys[0][0]} {keys[0][1]}\n")
    assert verdict(file, "host", 22, keys[0][2]) is Verdict.UNKNOWN


def test_hashed_names_as_ssh_keygen_writes_them(keys, tmp_path):
    file = tmp_path / "k"
    file.write_text(f"host {keys[0][0]} {keys[0][1]}\n[host]:2222 {keys[1][0]} {keys[1][1]}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "host" not in file.read_text()
    assert verdict(file, "host", 22, keys[0][2]) is Verdict.KNOWN
    assert verdict(file, "host", 2222, keys[1][2]) is Verdict.KNOWN
    assert verdict(file, "host", 2222, keys[0][2]) is Verdict.CHANGED
    assert verdict(file, "other", 22, keys[0][2]) is Verdict.UNKNOWN


def test_a_bare_host_vouches_for_its_ports_but_does_not_contradict(keys, tmp_path):
    file = tmp_path / "k"
    file.write_text(f"host {keys[0][0]} {keys[0][1]}\n")
    assert verdict(file, "host", 2222, keys[0][2]) is Verdict.KNOWN
    assert verdict(file, "host", 2222, keys[1][2]) is Verdict.UNKNOWN


def test_a_revoked_key_is_refused_even_if_another_line_has_it(keys, tmp_path):
    file = tmp_path / "k"
    line = f"host {keys[0][0]} {keys[0][1]}\n"
    file.write_text(f"{line}@revoked {line}host {keys[1][0]} {keys[1][1]}\n")
    assert verdict(file, "host", 22, keys[0][2]) is Verdict.REVOKED
    assert verdict(file, "host", 22, keys[1][2]) is Verdict.KNOWN


@pytest.mark.parametrize("port", [22, 2222])
def test_what_is_pinned_is_known_to_us_and_to_ssh_keygen(keys, tmp_path, port):
    file = tmp_path / "new" / "k"
    pin(file, "Host", port, keys[0][0], keys[0][2])
    assert verdict(file, "host", port, keys[0][2]) is Verdict.KNOWN
    assert file.stat().st_mode & 0o777 == 0o600
    name = "host" if port == 22 else f"[host]:{port}"
    assert not subprocess.run(["ssh-keygen", "-F", name, "-f", file], capture_output=True).returncode


def test_missing_files_know_nothing(keys, tmp_path):
    assert judge([tmp_path / "no", tmp_path], "host", 22, keys[0][2]) == (Verdict.UNKNOWN, [])
