"""Cutting wanted files into data units: many small ones together, a large one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replication.transfer.choose import RSYNC_MIN_BYTES, choose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from replication.transfer.item import FileItem

# A task should be worth some 200 ms: Celery's own cost of 2 to 7 ms then stays below 5 %.
UNIT_FILES = 1500
UNIT_BYTES = 24 << 20


def cut(
    items: Iterable[FileItem], method: str, rsync_from: int = RSYNC_MIN_BYTES
) -> Iterator[tuple[str, list[FileItem]]]:
    """(engine, items) of each unit. ``method`` and ``rsync_from`` are the session's; see choose."""
    open_units: dict[str, list[FileItem]] = {}
    sizes: dict[str, int] = {}
    for item in items:
        engine = choose(item.how, item.size, method, rsync_from)
        if item.size >= UNIT_BYTES:
            yield engine, [item]
            continue
        unit = open_units.setdefault(engine, [])
        unit.append(item)
        sizes[engine] = sizes.get(engine, 0) + item.size
        if len(unit) >= UNIT_FILES or sizes[engine] >= UNIT_BYTES:
            yield engine, open_units.pop(engine)
            sizes[engine] = 0
    yield from open_units.items()
