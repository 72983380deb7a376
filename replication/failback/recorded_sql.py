"""What a scan of a promoted root (agreement.py) asks about what was recorded there since, and the tables that it has for that."""

from __future__ import annotations

from replication.changelog.record import Kind
from replication.volume.identity import ROOT_GFID

_ROOT = f"x'{ROOT_GFID.hex()}'"
_ALL = int(Kind.E | Kind.M | Kind.D)
_MORE = "ON CONFLICT(ino) DO UPDATE SET kinds = kinds | excluded.kinds"

TABLES = (
    # Every name of a file that has several; here has one of them.
    "CREATE TABLE other(path BLOB PRIMARY KEY, ino INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE named(parent BLOB, name BLOB, kinds INTEGER NOT NULL, ours INTEGER NOT NULL, PRIMARY KEY(parent, name))
        WITHOUT ROWID""",
    # What was changed; kinds 0: names in it alone.
    "CREATE TABLE recorded(ino INTEGER PRIMARY KEY, kinds INTEGER NOT NULL)",
)
ADD = "INSERT INTO named VALUES(?, ?, ?, ?) ON CONFLICT(parent, name) DO UPDATE SET kinds = kinds | excluded.kinds"


def _find(table: str, condition: str) -> str:
    """Names of the table at ``t.path`` for which the condition holds."""
    return f"INSERT INTO recorded SELECT t.ino, n.kinds FROM named AS n {condition} {_MORE}".replace(
        "TABLE", table
    )


def _below(table: str) -> str:
    """What is below a directory that came from outside: what happened to it there nobody has recorded."""
    return f"""INSERT INTO recorded SELECT t.ino, {_ALL} FROM recorded AS r CROSS JOIN here AS d ON d.ino = r.ino
        CROSS JOIN {table} AS t ON t.path > below(d.path, x'') AND t.path < beyond(d.path)
        WHERE r.kinds & {int(Kind.D)} AND d.mode & 61440 = 16384 {_MORE}"""


_IN_THE_ROOT = f"CROSS JOIN TABLE AS t ON t.path = n.name WHERE n.parent = {_ROOT}"
_IN_A_DIRECTORY = """CROSS JOIN here AS d ON d.gfid = n.parent
    CROSS JOIN TABLE AS t ON t.path = below(d.path, n.name) WHERE n.name <> x''"""
FIND = (
    "CREATE INDEX here_gfid ON here(gfid)",
    "CREATE INDEX here_path ON here(path)",
    _find("here", "CROSS JOIN TABLE AS t ON t.gfid = n.parent WHERE n.name = x''"),
    *(_find(table, where) for where in (_IN_THE_ROOT, _IN_A_DIRECTORY) for table in ("here", "other")),
    *(_below(table) for table in ("here", "other")),
    # A directory of which a name changed has other times.
    f"INSERT INTO recorded SELECT d.ino, 0 FROM named AS n CROSS JOIN here AS d ON d.gfid = n.parent WHERE n.name <> x'' {_MORE}",
)
