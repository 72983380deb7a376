"""Files of settings, of sessions and of the node: TOML that people write and keep in git, and that we change key by key.

Comments and order stay. A file is written aside and renamed, so a reader sees the old or the new
one, and one that would not load again is never written. Paths that are not UTF-8, which TOML cannot
hold, are written percent-encoded, and ``encoding = "percent"`` says so.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec
import tomlkit
from msgspec import Struct

from replication.addresses import has_password
from replication.errors import ExitCode, SeamarkError
from replication.private import private_dir
from replication.server_settings import NodeSettings, ServerSettings
from replication.settings import (
    FIXED,
    Key,
    Kind,
    SessionConfig,
    SettingsError,
    check,
    to_builtins,
)

_ENCODING = "encoding"
_PERCENT = "percent"
_ASIDE_S = 3600  # no write takes so long


def read(path: Path, kind: type[Kind] = SessionConfig) -> Kind:  # type: ignore[assignment]
    """What a session's file says. Raises FileNotFoundError, SettingsError for what is wrong with it."""
    return _checked(_raw(path), str(path), kind)


def read_node(path: Path) -> NodeSettings:
    """What the node's file says, if there is one. Raises SettingsError for what is wrong with it."""
    try:
        return check(_raw(path), str(path), NodeSettings)
    except FileNotFoundError:
        return NodeSettings()


def read_servers(path: Path) -> ServerSettings:
    """The broker and the Redis that the node's file names. Raises SettingsError for what is wrong with it.

    A file that others may read must not hold a password.
    """
    node = read_node(path)
    said = {name: getattr(node, name) for name in ServerSettings.__struct_fields__}
    for name in ("broker", "redis"):
        if has_password(said[name] or "") and path.stat().st_mode & 0o077:
            raise SettingsError(
                f"{path}: {name} holds a password, and others may read the file: chmod 600 {path}"
            )
    return ServerSettings(**said)


def _raw(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SeamarkError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML: both say where
        raise SettingsError(f"{path}: {error}") from None


def _checked(raw: dict[str, Any], where: str, kind: type[Kind]) -> Kind:
    encoding = raw.pop(_ENCODING, None)
    if encoding not in (None, _PERCENT):
        raise SettingsError(f'{where}: encoding: it must be "{_PERCENT}", or left out')
    if encoding:
        for name in FIXED:
            if isinstance(raw.get(name), str):
                raw[name] = os.fsdecode(unquote_to_bytes(raw[name]))
    return check(raw, where, kind)


def write_new(path: Path, config: SessionConfig, comment: str) -> None:
    """Write a file with whatever differs from the defaults. Raises SeamarkError."""
    _write(path, _document(config, comment))


def text_of(config: Struct, comment: str) -> str:
    """The file that write_new would write."""
    return tomlkit.dumps(_document(config, comment))


def _document(config: Struct, comment: str) -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    for line in comment.splitlines():
        document.add(tomlkit.comment(line))
    values = to_builtins(config)
    required = [field.name for field in msgspec.structs.fields(config) if field.required]
    fixed = {name: values.pop(name) for name in required}
    if any(not _is_text(value) for value in fixed.values()):
        document.add(_ENCODING, _PERCENT)
        fixed = {name: quote_from_bytes(os.fsencode(v), safe="/:@[]~") for name, v in fixed.items()}
    for name, value in fixed.items():
        document.add(name, value)
    defaults = to_builtins(type(config)(**{name: getattr(config, name) for name in required}))
    for name, value in values.items():
        changed = _differing(value, defaults[name])
        if changed is not None:
            document.add(name, tomlkit.item(changed))
    return document


def _differing(value: Any, default: Any) -> Any:
    """The part of a value that is not the default; None where all of it is."""
    if isinstance(value, dict):
        part = {name: v for name, v in value.items() if v != default[name] and v is not None}
        return part or None
    return value if value != default else None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def set_key(path: Path, key: Key, value: Any, kind: type[Struct] = SessionConfig) -> None:
    """Change one key of a file of this kind. Raises SeamarkError, and then the file is what it was."""
    document = _parse(path)
    *tables, name = key.name.split(".")
    table: Any = document
    for each in tables:
        if each not in table:
            table[each] = tomlkit.table()
        table = table[each]
    table[name] = value
    _write(path, document, kind)


def reset_key(path: Path, key: Key, kind: type[Struct] = SessionConfig) -> None:
    """Have a key mean its default again. Raises SeamarkError."""
    document = _parse(path)
    *tables, name = key.name.split(".")
    table: Any = document
    for each in tables:
        table = table.get(each, {})
    if name in table:
        del table[name]
        _write(path, document, kind)


def _parse(path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    except OSError as error:
        raise SeamarkError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None


def _write(path: Path, document: tomlkit.TOMLDocument, kind: type[Struct] = SessionConfig) -> None:
    text = tomlkit.dumps(document)
    raw = tomllib.loads(text)
    if kind is SessionConfig:
        _checked(raw, str(path), kind)
    else:
        check(raw, str(path), kind)
    replace_file(path, text)


def replace_file(path: Path, text: str) -> None:
    """Write aside, sync, rename. Raises SeamarkError when that is not possible; the old file stays."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        private_dir(path.parent)
        # A file of settings may hold a password or a key: it is ours alone, unless somebody said otherwise.
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
        with os.fdopen(
            os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        drop_asides(path.parent, f".{path.name}.*.new")
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SeamarkError(f"cannot write {path}: {error.strerror}", ExitCode.USAGE) from None


def drop_asides(directory: Path, pattern: str) -> None:
    """Remove what was being written aside when its writer was killed, and is old by now."""
    for left in directory.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ASIDE_S:
                left.unlink()
