"""The proof that nothing changed since an agent ended (quiescence.py), kept for the next one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def kept(directory: str, root: str) -> str | None:
    """The proof that was kept, which is used up by this; None: there is none, or not of this user."""
    path = _path(Path(directory), root)
    try:
        if path.stat().st_uid != os.geteuid():
            return None
        token = path.read_text(encoding="ascii")
        path.unlink()
    except (OSError, ValueError):
        return None
    return token


def keep(directory: str, root: str, token: str) -> None:
    """Keep a proof. That it cannot be kept costs a comparison."""
    path = _path(Path(directory), root)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
    except OSError as error:
        log.debug("no proof of quiet is kept: %s", error)


def forget(store: Path) -> None:
    """A changelog is removed for good: so is what proves that nothing changed since. Raises OSError."""
    _elsewhere(store).unlink(missing_ok=True)


def _path(store: Path, root: str) -> Path:
    """Not on the volume's own file system, where keeping the token would make it wrong."""
    if store.stat().st_dev != os.stat(root).st_dev:
        return store / "quiet"
    return _elsewhere(store)


def _elsewhere(store: Path) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ("/run" if os.geteuid() == 0 else "/nonexistent")
    key = os.fsencode(store.resolve()).hex()[-120:]
    return Path(runtime) / f"seamark-quiet-{key}"
