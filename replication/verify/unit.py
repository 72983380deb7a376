"""One unit of a comparison, as JSON says what it is to do and what came of it. Any process that sees both ends runs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from replication.secondary.inspection import Manner
from replication.verify.ends import Ends, fastest_hash
from replication.verify.looks import Looks
from replication.verify.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from replication.remote.client import SecondaryClient
    from replication.secondary.filters import Filters
    from replication.volume.directory import DirectoryVolume


def run_unit(
    payload: dict[str, Any],
    volume: DirectoryVolume,
    client: SecondaryClient,
    filters: Filters,
    powers: Mapping[str, Any],
    alive: Callable[[], object],
) -> dict[str, Any]:
    """What a unit's payload asks for. ``powers``: what the secondary can keep, from its hello.

    Raises SecondaryError, SeamarkError, and OSError of a primary that cannot be read at all.
    """
    if payload["kind"] == "begin":
        return {
            "hash": fastest_hash(client), "bytes": client.stat()["bytes"],
            "owners": bool(powers.get("chown", True)), "xattrs": bool(powers.get("xattr", True)),
            "trusted": bool(powers.get("trusted", True)),
        }  # fmt: skip
    volume.check_in_place()
    ends = Ends(volume, client, Manner(**payload["manner"]), filters, alive, payload["changed_before_ns"])
    if payload["kind"] == "walk":
        dirs = [(os.fsencode(path), os.fsencode(first)) for path, first in payload["dirs"]]
        walk = Walk(ends, dirs, list_equal=payload["list_equal"])
        walk.run(top=payload.get("top", False))
        return {
            "totals": walk.totals.plain(),
            "suspects": [suspect.plain() for suspect in walk.suspects],
            "links": [[os.fsdecode(path), here, there] for path, here, there in walk.links],
            "rest": [[os.fsdecode(path), os.fsdecode(first)] for path, first in walk.queue],
        }
    looks = Looks(ends, list_equal=payload["list_equal"])
    looks.run(os.fsencode(path) for path in payload["paths"])
    return {"totals": looks.totals.plain(), "looks": [suspect.plain() for suspect in looks.found]}
