"""What a comparison of an old primary with what is known of it (agreeing.py) asks of its index, and the tables that it has beside that."""

from __future__ import annotations

from replication.secondary import sql

TABLES = (
    """CREATE TEMP TABLE agreed(inode INTEGER PRIMARY KEY, ctime INTEGER NOT NULL, target BLOB,
        found INTEGER NOT NULL DEFAULT 0, seen INTEGER)""",
    "CREATE TEMP TABLE pending(inode INTEGER PRIMARY KEY)",
    """CREATE TEMP TABLE finding(n INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL, what TEXT NOT NULL,
        inode INTEGER, mode INTEGER, ino INTEGER, size INTEGER, mtime INTEGER, uid INTEGER, gid INTEGER, before BLOB,
        proof INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX temp.finding_inode ON finding(inode)",
)
ADD = """INSERT INTO finding(parent, name, what, inode, mode, ino, size, mtime, uid, gid, proof)
    VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
FIND = "UPDATE agreed SET found = 1, seen = ? WHERE inode = ?"
AGREED = "SELECT inode, ctime, target FROM agreed WHERE inode IN ({})".format(",".join("?" * sql.CHUNK))
# Names at which files and directories stand that are known by others: they were renamed, or linked. A directory has one name.
RENAMED = """SELECT finding.n, finding.parent, finding.name, inode.id, agreed.found FROM finding
    JOIN inode ON inode.ino = finding.ino AND inode.mode & 61440 = finding.mode & 61440
    JOIN agreed ON agreed.inode = inode.id
    WHERE finding.what IN ('new', 'replaced') AND (inode.mode & 61440 = 16384) = ?1 AND NOT (?1 AND agreed.found)
    AND (?1 OR (inode.mode & 61440 = 32768 AND inode.size = finding.size AND inode.mtime = finding.mtime))
    GROUP BY inode.id"""
IS_RENAMED = "UPDATE finding SET what = ?, inode = ?, before = ?, proof = ? WHERE n = ?"
# Owner and mode as they are here: a look that finds others sets them. Content is compared.
DOUBTED = """UPDATE inode SET pctime = 0, mode = ?, uid = ?, gid = ?,
    dirty = CASE WHEN mode & 61440 = 32768 THEN 1 ELSE 0 END WHERE id = ?"""
# Names and objects of which nothing is agreed on.
NOT_AGREED = (
    """DELETE FROM entry WHERE EXISTS (SELECT 1 FROM finding WHERE finding.parent = entry.parent
        AND finding.name = entry.name AND finding.inode = entry.inode AND finding.what IN ('changed', 'replaced', 'removed'))""",
    "DELETE FROM entry WHERE inode IN (SELECT inode FROM agreed WHERE NOT found)",
    "DELETE FROM entry WHERE parent IN (SELECT inode FROM agreed WHERE NOT found)",
    "DELETE FROM inode WHERE id <> 1 AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.inode = inode.id)",
)
SEEN_FILES = """SELECT entry.parent, entry.name, agreed.seen FROM entry JOIN agreed ON agreed.inode = entry.inode
    JOIN inode ON inode.id = entry.inode WHERE inode.mode & 61440 <> 16384 AND agreed.found
    AND (entry.parent > ?1 OR (entry.parent = ?1 AND entry.name > ?2)) ORDER BY entry.parent, entry.name LIMIT ?3"""
