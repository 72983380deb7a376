"""What rsync's words and exit statuses are taken to mean."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from replication.remote.errors import LinkLost, NoRsync, Unreachable
from replication.remote.target import Target
from replication.transfer.rsync import Outcome, judge, remote_prefix, shell_of
from tests.conftest import need

A, B = bytes([1] * 16), bytes([2] * 16)


def outcome(status=0, listed=(A, B), transferred=2, errors=""):
    return Outcome(status, dict.fromkeys(listed, 1), transferred, 10, errors)


def test_all_is_well():
    assert judge(outcome(), [A, B], "host") == {}


def test_exit_status_0_with_nothing_copied_is_not_believed():
    failures = judge(outcome(listed=(), transferred=0), [A, B], "host")
    assert set(failures) == {A, B}
    assert "did not send it" in failures[A].message


def test_listed_but_not_counted_is_not_believed():
    assert set(judge(outcome(transferred=1), [A, B], "host")) == {A, B}


def test_partial_without_a_named_file_is_an_error_of_all():
    assert set(judge(outcome(23, errors="rsync: something odd"), [A, B], "host")) == {A, B}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('rsync: [sender] send_files failed to open "/tmp/x/{}": Permission denied (13)', "permission"),
        (
            'rsync: [receiver] mkstemp "/r/.seamark/staging/u/new/.{}.a8Zk2c" failed: Read-only file system (30)',
            "read-only",
        ),
        ('rsync: [receiver] write failed on "/r/{}": No space left on device (28)', "no-space"),
        ('rsync: [sender] link_stat "/tmp/x/{}" failed: No such file or directory (2)', "vanished"),
        ('rsync: [receiver] link_stat "/tmp/x/{}" failed: No such file or directory (2)', "io"),
        ('file has vanished: "/tmp/x/{}"', "vanished"),
        ('symlink has no referent: "/tmp/x/{}"', "vanished"),
        ("ERROR: {} failed verification -- update discarded.", "changed"),
        ('rsync: [sender] read errors mapping "/tmp/x/{}": Input/output error (5)', "io"),
    ],
)
def test_named_errors_are_of_that_file_alone(line, code):
    failures = judge(outcome(23, errors=line.format(A.hex()) + "\n", transferred=1), [A, B], "host")
    assert set(failures) == {A}
    assert failures[A].code == code


def test_the_far_sides_own_status_counts():
    """Which of the two we see first is a matter of luck."""
    errors = (
        'rsync: [Receiver] mkdir "/r/.seamark/no" failed: No such file or directory (2)\n'
        "rsync error: error in file IO (code 11) at main.c(791) [Receiver=3.5.0]\n"
        "rsync: connection unexpectedly closed (0 bytes received so far) [sender]\n"
        "rsync error: error in rsync protocol data stream (code 12) at io.c(285) [sender=3.5.0]\n"
    )
    for status in (11, 12):
        failures = judge(outcome(status, listed=(), errors=errors), [A, B], "host")
        assert set(failures) == {A, B}
        assert "No such file" in failures[A].message


def test_a_warning_that_it_will_try_again_is_no_error():
    line = f"WARNING: {A.hex()} failed verification -- update discarded (will try again).\n"
    assert judge(outcome(errors=line), [A, B], "host") == {}


@pytest.mark.parametrize(
    ("status", "errors", "error"),
    [
        (127, "bash: line 1: rsync: command not found", NoRsync),
        (12, "sh: 1: rsync: not found\nrsync: connection unexpectedly closed", NoRsync),
        (255, "ssh: connect to host x port 22: Connection refused", Unreachable),
        (12, "rsync: connection unexpectedly closed (0 bytes received so far) [sender]", Unreachable),
        (12, "rsync: connection unexpectedly closed (99 bytes received so far) [sender]", LinkLost),
        (30, "rsync error: timeout in data send/receive (code 30)", LinkLost),
    ],
)
def test_what_is_no_files_fault_is_raised(status, errors, error):
    with pytest.raises(error, match="host"):
        judge(outcome(status, errors=errors), [A, B], "host")


@pytest.mark.parametrize("word", ["plain", "with space", "it's", 'say "hi"', "", "-oA=\"/a b\" '/c'", "a''b"])
def test_rsync_splits_the_shell_as_we_joined_it(word, tmp_path):
    """rsync itself is asked: a program in place of ssh writes down its arguments."""
    need("rsync")
    spy = tmp_path / "spy"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {shlex.quote(str(tmp_path / "seen"))}\nexit 3\n')
    spy.chmod(0o755)
    subprocess.run(
        ["rsync", "-e", shell_of([str(spy), word, "last"]), "host:/x", tmp_path], capture_output=True
    )
    assert (tmp_path / "seen").read_bytes().split(b"\0")[:2] == [word.encode(), b"last"]


def test_prefix():
    assert remote_prefix(Target(b"/x", "h", "u")) == b"u@h:"
    assert remote_prefix(Target(b"/x", "::1")) == b"[::1]:"
