"""``gate SESSION VOLUME``: what a key for the bricks of a volume starts. ``install SESSION VOLUME KEY`` and ``revoke SESSION``
change which key that is; one line of JSON says what became of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

from replication.bricknode.gate import gate
from replication.secondary import authorized

_VOLUME = re.compile(r"[A-Za-z0-9_-]{1,255}")


def main(arguments: list[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "gate":
        return gate(arguments[1], arguments[2])
    if len(arguments) == 4 and arguments[0] == "install":
        return _said(lambda: _install(*arguments[1:]))
    if len(arguments) == 2 and arguments[0] == "revoke":
        return _said(lambda: authorized.revoke(arguments[1]))
    print("usage: seamark-bricks gate SESSION VOLUME", file=sys.stderr)
    return 2


def _install(session: str, volume: str, key: str) -> dict[str, Any]:
    if not _VOLUME.fullmatch(volume):
        raise authorized.Refused("not the name of a volume")
    return authorized.let_in(session, key, ["gate", session, volume])


def _said(work: Callable[[], dict[str, Any]]) -> int:
    try:
        answer = work()
    except authorized.Refused as reason:
        answer = {"error": str(reason)}
    except OSError as error:
        answer = {"error": f"{error.filename}: {error.strerror}"}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
