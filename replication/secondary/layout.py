"""What lies below ``ROOT/.seamark``."""

from __future__ import annotations

HIDDEN = b".seamark"
INDEX = b"index.sqlite"
JOURNAL = b"journal"
LOCK = b"lock"
OWNER = b"owner"
SETTINGS = b"session.toml"
LIMBO = b"limbo"
STAGING = b"staging"
DISPLACED = b"displaced"
TEMPORARY = b"tmp"
DAMAGED = b"damaged"
ROOT_GFID = bytes(15) + b"\x01"
ROOT_ID = 1
