"""What is so of a secondary's index after every transaction, whatever became of the tree it speaks of."""

from __future__ import annotations

import contextlib
import os
import sqlite3

_BELOW = """WITH RECURSIVE sub(id) AS (SELECT 1 UNION SELECT id FROM inode WHERE limbo IS NOT NULL
    UNION SELECT entry.inode FROM sub JOIN entry ON entry.parent = sub.id) """
WRONG = {
    "a name of no inode": """SELECT parent, name, inode FROM entry
        WHERE NOT EXISTS (SELECT 1 FROM inode WHERE id = entry.inode)""",
    "a name in no directory": """SELECT parent, name, inode FROM entry
        WHERE NOT EXISTS (SELECT 1 FROM inode WHERE id = entry.parent AND mode & 61440 = 16384)""",
    "neither a name nor in limbo": """SELECT id, hex(gfid), ino FROM inode WHERE limbo IS NULL AND id <> 1
        AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.inode = inode.id)""",
    "a name, and in limbo": """SELECT id, hex(gfid), parent, name FROM inode JOIN entry ON entry.inode = inode.id
        WHERE limbo IS NOT NULL""",
    "in limbo without an object": "SELECT id, hex(gfid), mode FROM inode WHERE limbo IS NOT NULL AND ino = 0",
    "a directory of several names": """SELECT entry.inode, count(*) FROM entry JOIN inode ON inode.id = entry.inode
        WHERE mode & 61440 = 16384 GROUP BY entry.inode HAVING count(*) > 1""",
    "a name of the root": "SELECT parent, name FROM entry WHERE inode = 1",
    "no way to it": _BELOW + "SELECT id, hex(gfid) FROM inode WHERE id NOT IN (SELECT id FROM sub)",
    "an id that is still to be given": """SELECT id, value FROM inode, meta
        WHERE key = 'next_id' AND id >= CAST(value AS INTEGER)""",
    "a shadow at no name": """SELECT parent, name FROM shadow WHERE NOT EXISTS (SELECT 1 FROM entry
        WHERE entry.parent = shadow.parent AND entry.name = shadow.name)""",
}


def wrong(root):
    """[what, row] of all that is wrong with the index of a secondary; nothing where it has none, or none that can be read."""
    path = os.path.join(os.fsdecode(root), ".seamark", "index.sqlite")
    if not os.path.exists(path) or not os.path.getsize(path):
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as index:
        index.text_factory = bytes
        try:
            index.execute("BEGIN")
            return [(what, row) for what, query in WRONG.items() for row in index.execute(query)]
        except sqlite3.DatabaseError:  # a test has damaged it, or there are no tables yet
            return []


def assert_consistent(root):
    found = wrong(root)
    assert found == [], found[:20]
