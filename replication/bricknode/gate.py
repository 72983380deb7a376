"""The forced command of a key for the bricks of one volume: it tells what they record, and nothing else.

sshd starts it whatever the client asked for, and hands that over in SSH_ORIGINAL_COMMAND (sshd(8), AUTHORIZED_KEYS FILE
FORMAT). No shell reads it: it is compared with these forms, word by word.

    seamark-bricks PROTOCOL VOLUME
    seamark-revoke                                  this key is let in no more
"""

from __future__ import annotations

import os
import sys

from replication.bricknode.server import Server
from replication.bricknode.wire import READY, VERSION
from replication.secondary import authorized
from replication.secondary.protocol import AgentError

REFUSED_STATUS = 94  # as secondary/gate.py


def gate(session: str, volume: str) -> int:
    """Serve what was asked for, or say why not. Returns an exit status."""
    words = os.environ.get("SSH_ORIGINAL_COMMAND", "").split(" ")
    if words == ["seamark-revoke"]:
        authorized.revoke(session)
        return 0
    if len(words) != 3 or words[0] != "seamark-bricks":
        return _refuse(f"this key is for following the bricks of volume {volume}, and nothing else")
    if words[2] != volume:
        return _refuse(f"this key is for volume {volume}, and no other")
    if words[1] != str(VERSION):
        return _refuse(
            f"the program that lies here speaks version {VERSION}, the session's node {words[1]}: run 'seamark push-pem NAME --nodes' "
            "there"
        )
    # Nothing else may write into the stream of frames.
    out = os.dup(1)
    os.dup2(2, 1)
    os.write(out, READY)
    try:
        return Server(volume, 0, out).serve()
    except (AgentError, OSError) as error:  # the other end is gone, or is none of ours
        print(f"seamark: {error}", file=sys.stderr)
        return 1


def _refuse(reason: str) -> int:
    print(f"seamark: refused: {reason}", file=sys.stderr)
    return REFUSED_STATUS
