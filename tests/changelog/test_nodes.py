"""Connections to nodes whose program ends, hangs, says something else, or sends more than makes sense."""

from __future__ import annotations

import os
import shlex
import struct
import sys
import time

import pytest

from replication.bricknode.wire import READY, VERSION, decode, encode
from replication.changelog.brickmembers import RemoteMember, RemoteNode
from replication.changelog.record import Kind, Record
from replication.gluster import node as module
from replication.gluster.glusterd import Brick
from replication.gluster.node import NodeLink
from replication.secondary.protocol import AgentError, frame


@pytest.fixture
def link(monkeypatch):
    """Calling it gives a link to a shell command."""
    monkeypatch.setattr(module, "_AGAIN_S", (0.05,))
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    monkeypatch.setattr(module, "ANSWER_S", 1.0)
    made = []

    def to(script):
        made.append(NodeLink("node", ["sh", "-c", script]))
        return made[-1]

    yield to
    for each in made:
        each.close()


def until(link, condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, (link.up, link.why)
        link.open()
        link.read()
        time.sleep(0.01)


SAYS = f"printf '%s\\n' {shlex.quote(READY.decode().strip())}"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no way in >&2; exit 255", "no way in"),
        ("sleep 60", "it does not answer"),
        (f"{SAYS}; exec {sys.executable} -c 'print(\"x\" * 70000)'", "does not speak as it should"),
        ("exec cat /dev/zero", "something else than Seamark's program"),
        ("printf '\\033[31mred\\n\\007' >&2; exit 1", "?"),
    ],
)
def test_what_cannot_be_used_is_given_up_said_and_tried_again(link, script, why):
    made = link(script)

    def given_up():
        try:
            while made.next() is not None:
                pass
        except AgentError as error:
            made.drop(f"it does not speak as it should: {error}")
        return made.opened > 1 or (made.fd < 0 and made.opened and why in made.why)

    until(made, given_up)
    assert why in made.why and made.why.isprintable()
    until(made, lambda: made.opened > 2 or (made.fd >= 0 and made.opened > 1) or given_up())


def test_of_a_link_that_was_given_up_nothing_is_left(link):
    made = link("echo no >&2; exit 255")
    until(made, lambda: made.opened and made.fd < 0)
    before = len(os.listdir("/proc/self/fd"))
    until(made, lambda: made.opened > 10 and made.fd < 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_question_that_is_not_answered_ends_it(link):
    made = link(f"{SAYS}; exec sleep 60")
    until(made, lambda: made.up)
    made.ask(op="round", n=1)
    until(made, lambda: not made.up)
    assert made.why == "it does not answer"


def test_noise_of_a_login_shell_is_passed_over(link):
    octal = "".join(f"\\{byte:03o}" for byte in frame({"round": 1, "bricks": {}}))
    made = link(f"echo welcome; {SAYS}; printf '{octal}'; exec sleep 60")
    until(made, lambda: made.up)
    got = []
    until(made, lambda: got.append(made.next()) or got[-1])
    assert got[-1] == ({"round": 1, "bricks": {}}, b"")


def test_records_travel_as_they_are():
    gfid, parent = os.urandom(16), os.urandom(16)
    records = [
        Record(Kind.E, gfid, parent, b"a\nname\xff", True), Record(Kind.E, gfid, parent, b"x" * 255),
        Record(Kind.M | Kind.D, gfid, None, None), Record(Kind.D, gfid, None, None),
    ]  # fmt: skip
    assert list(decode(encode(records))) == records
    for bad in (b"..", b".", b"a/b", b"a\0b", b"", b"x" * 256):
        with pytest.raises(AgentError):
            list(decode(encode([Record(Kind.E, gfid, parent, bad)])))
    assert VERSION == 2


@pytest.mark.parametrize("beat", ["Infinity", "1" + "0" * 400])
def test_a_node_that_says_a_number_without_sense_is_given_up(link, beat):
    place = '["HTIME.1", 0, 0, [], [0, 0], "boot", [0, 0]]'
    told = f'{{"place": {place}, "compared": true, "beat_ms": {beat}, "recording": true, "unread": "", "uneasy": false}}'
    header = f'{{"round": 1, "bricks": {{"/b": {told}}}}}'.encode()
    node = RemoteNode("node", [], hub=None)
    node.add(RemoteMember(Brick("node", "/b", False, False), 0, None))
    node.link = link("exec sleep 60")
    node.link.open()
    node.link.up = True
    node._asked[1] = 1
    node.link._frames.add(struct.pack(">II", len(header), 0) + header)
    node.pump(lambda: False)
    assert not node.link.up and "does not speak as it should" in node.link.why


def test_what_another_node_says_is_no_command_for_a_terminal():
    member = RemoteMember(Brick("node", "/b", False, False), 0, None)
    member.lost("\033[31mred\n\007")
    assert member.why.isprintable()
