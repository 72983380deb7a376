"""How the directories of a unit of a hybrid crawl are kept: in the progress database, and in the ledger."""

from __future__ import annotations

import json
import os


def encode_dirs(dirs: list[tuple[bytes, bytes]]) -> str:
    """Directories of a crawl unit, (gfid, path relative to the volume), as JSON text."""
    return json.dumps([[gfid.hex(), os.fsdecode(path)] for gfid, path in dirs])


def decode_dirs(text: str) -> list[tuple[bytes, bytes]]:
    """What encode_dirs wrote. Raises ValueError."""
    return [(bytes.fromhex(gfid), os.fsencode(path)) for gfid, path in json.loads(text)]
