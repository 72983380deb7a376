"""The settings of a session: typed, each with its meaning and default, checked before they are kept.

A session's file is TOML, of the shape of SessionConfig; people write it by hand as well. Whatever is
wrong with it is said in one line that names the key. How files are read and written: session_file.py.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from replication.errors import UsageError
from replication.quantities import NO_DELETE_LIMIT, NO_LIMIT, DeleteLimit, Duration, Size, Timetable
from replication.remote.ssh_words import check_options
from replication.secondary.filters import Filters
from replication.secondary.retention import DEFAULT, Retention
from replication.setting_tables import DrillSettings, LogSettings, NodesSettings, Port, about
from replication.transfer.choose import RSYNC_MIN_BYTES
from replication.windows import check_expression, zone

Kind = TypeVar("Kind", bound=Struct)


class SettingsError(UsageError):
    """A setting that is not known, or a value that it cannot have. Nothing was changed."""


SyncMethod = Literal["auto", "rsync", "tar", "stream"]
ChangeDetector = Literal["auto", "fanotify", "scan"]


class SshSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the secondary's host is reached; all but the last unused for a local secondary."""

    port: Annotated[
        Port | None, about("port of the secondary's sshd; unset: what ~/.ssh/config says, else 22")
    ] = None
    identity: Annotated[
        str | None, about("private key file; unset: the ssh agent's keys, or ~/.ssh/config's")
    ] = None
    accept_new_host_key: Annotated[
        bool, about("pin the key of a host that is not known yet, instead of refusing it")
    ] = False
    options: Annotated[
        tuple[str, ...],
        about(
            "options of ssh_config as Keyword=value: ProxyJump, Ciphers, BindAddress, ServerAliveInterval, IPQoS and such"
        ),
    ] = ()
    answer_timeout_s: Annotated[
        float,
        Meta(gt=0),
        about("seconds after which a far side that says nothing is taken for dead", restart=True),
    ] = 120.0

    def __post_init__(self) -> None:
        try:
            check_options(self.options)
        except ValueError as error:
            raise ValueError(f"options: {error}") from None


def _between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}: it must be from {least} to {most}")


class ScheduleSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the session works, if not always."""

    at: Annotated[
        str,
        about(
            "cron expression: from then on it works until it is consistent, and rests until the next; empty: always"
        ),
    ] = ""
    duration: Annotated[Duration, about("how long such a window lasts at most, consistent or not")] = (
        Duration(8 * 3600)
    )
    timezone: Annotated[
        str, about("time zone of schedule.at and bandwidth, as Europe/Berlin; empty: the machine's own")
    ] = ""

    def __post_init__(self) -> None:
        if self.at:
            check_expression(self.at)
        _between("duration", self.duration, Duration(60), Duration(7 * 86400))
        zone(self.timezone)


class EventSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told when the state of the session changes."""

    webhook: Annotated[
        tuple[Annotated[str, Meta(pattern="^https?://[^/]")], ...],
        about("addresses that get each event as JSON by POST"),
    ] = ()
    secret: Annotated[
        str | None, about("key of the HMAC-SHA256 in the header X-Seamark-Signature; unset: no signature")
    ] = None
    command: Annotated[
        tuple[str, ...], about("a program and its arguments, which gets each event as JSON on standard input")
    ] = ()


class VerifySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it is proved that the secondary has what the primary has: a part each time, by content."""

    at: Annotated[
        str, about("cron expression: when the next slice is compared by checksum; empty: never")
    ] = "17 3 * * *"
    slices: Annotated[
        int,
        Meta(ge=1, le=100_000),
        about("into how many slices the tree falls: so many times prove all of it"),
    ] = 30
    repair: Annotated[bool, about("whether what is found to differ is repaired at once")] = False

    def __post_init__(self) -> None:
        if self.at:
            check_expression(self.at)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything of a session that may be set at any time."""

    sync_method: Annotated[
        SyncMethod,
        about(
            "how data travels; auto: rsync for what is large and there in another version, stream for the rest"
        ),
    ] = "auto"
    jobs: Annotated[
        int, Meta(ge=1, le=64), about("data tasks at the same time on the primary's node", restart=True)
    ] = 2
    change_detector: Annotated[
        ChangeDetector,
        about(
            "how changes are noticed; auto: recorded where that is possible, else by scanning", restart=True
        ),
    ] = "auto"
    rsync_from: Annotated[
        Size, about("in auto: files from this size on, of which another version is there, may go by rsync")
    ] = Size(RSYNC_MIN_BYTES)
    bandwidth: Annotated[
        Timetable,
        about(
            'the most that is sent a second: "10M", or a timetable "08:00,1M 19:00,off"; a plain number is KiB/s'
        ),
    ] = NO_LIMIT
    compression: Annotated[
        Literal["auto", "on", "off"],
        about("whether content is compressed on its way; auto: over long or limited links"),
    ] = "auto"
    filters: Annotated[
        tuple[str, ...],
        about(
            "rules as rsync's, the first that matches decides: '- PATTERN' leaves out, '+ PATTERN' does not"
        ),
    ] = ()
    max_delete: Annotated[
        DeleteLimit,
        about(
            'names that may be deleted within delete_window: a number, "10%" of what is there, or "off"; what is more '
            "stays on the secondary, and you are asked (seamark deletions)"
        ),
    ] = NO_DELETE_LIMIT
    delete_window: Annotated[Duration, about("the time over which max_delete counts")] = Duration(600)
    ignore_deletes: Annotated[
        bool, about("what is deleted on the primary stays on the secondary; renames are carried out")
    ] = False
    segment_interval: Annotated[
        Duration,
        about(
            "a changelog segment is closed so long after its first record, and after a third of that when nothing "
            "was recorded for as long before: the least lag there can be",
            restart=True,
        ),
    ] = Duration(0.15)
    changelog_limit: Annotated[
        Size,
        about(
            "the most that changelogs may take; beyond it the oldest are dropped, and compared for instead",
            restart=True,
        ),
    ] = Size(1 << 30)
    batch_records: Annotated[
        int, Meta(ge=1, le=1_000_000), about("records of the changelog that are processed together, at most")
    ] = 20_000
    retry_longest: Annotated[
        Duration,
        about(
            "what fails is tried again after 5 s, then after twice as long each time, but never longer than this"
        ),
    ] = Duration(600)
    checkpoint_every: Annotated[
        Duration, about("how often a checkpoint is asked for by itself, as 1h; 0: never")
    ] = Duration(0)
    checkpoint_snapshot: Annotated[
        bool,
        about(
            "whether a read-only snapshot of the secondary is taken whenever a checkpoint is reached: on btrfs, or XFS with reflink"
        ),
    ] = False
    snapshot_keep: Annotated[
        Retention,
        about(
            'how long snapshots are kept at least: "24h hourly, 7d daily" keeps the first of each hour for a day, and the first '
            "of each day for a week; also all, weekly, monthly"
        ),
    ] = DEFAULT
    drill: DrillSettings = msgspec.field(default_factory=DrillSettings)
    verify: VerifySettings = msgspec.field(default_factory=VerifySettings)
    schedule: ScheduleSettings = msgspec.field(default_factory=ScheduleSettings)
    rpo: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        about(
            "seconds that the secondary may be behind; more is not healthy, and an event. Unset: no target"
        ),
    ] = None
    events: EventSettings = msgspec.field(default_factory=EventSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    ssh: SshSettings = msgspec.field(default_factory=SshSettings)
    nodes: NodesSettings = msgspec.field(default_factory=NodesSettings)

    def __post_init__(self) -> None:
        Filters(self.filters)
        _between("delete_window", self.delete_window, Duration(1), Duration(30 * 86400))
        _between("segment_interval", self.segment_interval, Duration(0.02), Duration(60))
        _between("changelog_limit", self.changelog_limit, Size(1 << 20), Size(1 << 50))
        if self.checkpoint_every:
            _between("checkpoint_every", self.checkpoint_every, Duration(60), Duration(30 * 86400))
        _between("retry_longest", self.retry_longest, Duration(5), Duration(86400))


class SessionConfig(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session's file: what is replicated where, and how. Paths are text as os.fsdecode gives it."""

    primary: Annotated[
        str,
        about(
            "what is replicated: the absolute path of a directory, or gluster://HOST/VOLUME[/SUBDIR]",
            restart=True,
        ),
    ]
    secondary: Annotated[str, about("where to: an absolute path, or [user@]host:/path", restart=True)]


# Said by `create`; a session that replicated something else would be another session.
FIXED = ("primary", "secondary")


class Key(NamedTuple):
    """One setting. ``name`` is dotted where it stands in a table; ``restart``: see ``about``."""

    name: str
    meaning: str
    default: Any
    restart: bool
    type: Any


def keys(struct: type[Struct] = Settings) -> dict[str, Key]:
    """Every key that may be set, in the order in which a person should read them."""
    return {key.name: key for key in _keys_of(struct, "")}


def _keys_of(struct: type[Struct], prefix: str) -> list[Key]:
    found: list[Key] = []
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Struct):
            found += _keys_of(hint, f"{prefix}{field.name}.")
            continue
        notes = [note for note in get_args(hint)[1:] if isinstance(note, Meta)]
        meaning = next((note.description for note in notes if note.description), "")
        restart = any((note.extra or {}).get("restart") for note in notes)
        found.append(Key(prefix + field.name, meaning, field.default, restart, hint))
    return found


def key_named(name: str, struct: type[Struct] = Settings) -> Key:
    """The key that a person means: dashes are as good as underscores. Raises SettingsError."""
    known = keys(struct)
    plain = name.strip().replace("-", "_")
    if plain in known:
        return known[plain]
    if plain in FIXED:
        raise SettingsError(f"{plain} is fixed when a session is created; create another session")
    raise SettingsError(_unknown(plain, known))


def _unknown(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"there is no key {name}" + (f"; did you mean {close[0]}?" if close else "")


def parse(key: Key, text: str) -> Any:
    """The value that ``text`` means for a key, as it goes into a file. Raises SettingsError."""
    try:
        found = msgspec.convert(_lists(key, text), key.type, strict=False, dec_hook=_from_words)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{key.name}: {text!r} will not do: {_words(str(error), key.type)}") from None
    return text.strip() if isinstance(found, _QUANTITIES) else to_builtins(found)


_QUANTITIES = (Duration, Size, Timetable, DeleteLimit, Retention)


def _from_words(wanted: type[Any], value: Any) -> Any:
    """msgspec asks this for types that are ours. Raises ValueError."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return wanted.parse(value)
    raise ValueError("give text")


def to_builtins(value: Any) -> Any:
    """A setting, or all of them, as a file has it."""
    return _lists_for_tuples(msgspec.to_builtins(value, enc_hook=str))


def _lists_for_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists_for_tuples(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _lists(key: Key, text: str) -> Any:
    """A list is given as a file has it, or as lines."""
    plain = get_args(key.type)[0] if get_origin(key.type) is Annotated else key.type
    if get_origin(plain) not in (list, tuple):
        return text
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return tomllib.loads(f"list = {text}")["list"]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{key.name}: {text!r} is no list: {error}") from None


def check(raw: dict[str, Any], where: str, kind: type[Kind]) -> Kind:
    """What a file of this kind says, checked. ``where`` names it in errors. Raises SettingsError."""
    try:
        return msgspec.convert(raw, kind, dec_hook=_from_words)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {_explain(str(error), keys(kind))}") from None


def _explain(message: str, known: dict[str, Key]) -> str:
    """msgspec's words about a whole file, with the key in front."""
    text, _, path = message.partition(" - at `$.")
    path = path.rstrip("`")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        name = f"{path}.{unknown[1]}" if path else unknown[1]
        return _unknown(name, known)
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        return f"{missing[1]} is missing"
    key = known.get(path)
    return f"{path}: {_words(text, key.type if key else None)}" if path else text


def _words(text: str, hint: Any) -> str:
    """What msgspec found wrong, in words that say what would be right."""
    choices = _choices(hint)
    if choices:
        return f"it must be one of {', '.join(choices)}"
    text = text.partition(" - at ")[0].replace("`", "")
    return text[0].lower() + text[1:]


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Annotated:
        return _choices(get_args(hint)[0])
    return [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
