"""All SQL of the index, in one place.

inode   one row per gfid that is on the secondary, or wanted there.
        id       our short name for it: rows of a directory's files lie together, whatever their gfids
        mode…rdev  as on the primary when last applied; size and mtime (ns) are those of the content here
        ino      inode number on the secondary; 0 while nothing stands there (a file without data yet)
        dirty    not 0: content is wanted, by the look of this number (meta: ticket)
        pino, pctime   inode number and ctime (ns) on the primary of the state that is here completely;
                 pctime 0: not complete, or not certain; below 0: its metadata is still to come, of a file that of
                 ctime -pctime, whose content is here
        listed   1: a complete listing of this directory was applied
        digest   of a directory's names and versions (digests.py); NULL: not computed
        limbo    NULL, or the stamp after which an inode without a name may be purged
        got      number of the latest look whose content came
        gen      number of the `sync` after which its content came: what a power cut may have undone
entry   which inode a name in a directory is. A directory is the child of one entry at most.
shadow  inode number of what stands at a name whose inode has no object yet: the old one, until then (shadows.py)
held    names that the primary has no more, and that stand here all the same (held.py): inode, when that was seen
        (the stamp of limbo), and since when it may be so (NULL: deletions are ignored)
removed what was taken away under a limit, to be counted: path, inode, names it stood for, when (ns)
inplace   files that are being written in place: inode, and its inode number here. While content is wanted they may be half old
departed  the last name of what is in limbo: where a promotion puts it back (promotion.py)
meta    key/value: format, index_id (random, made with the index), epoch, applied, current, crawl, state, next_id, gen, ticket, boot, displaced,
        asked (1: a person is asked whether what is held may go)
"""

from __future__ import annotations

FORMAT = "3"

PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    # Durable at a checkpoint; whatever came after the last `sync` is replayed by the primary.
    "PRAGMA synchronous=NORMAL",
    "PRAGMA wal_autocheckpoint=8192",  # pages: 32 MiB
    "PRAGMA journal_size_limit=67108864",
    "PRAGMA cache_size=-32768",  # KiB
    "PRAGMA busy_timeout=60000",
    "PRAGMA temp_store=FILE",
)

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS inode(
        id INTEGER PRIMARY KEY, gfid BLOB NOT NULL UNIQUE, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
        gid INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL, atime INTEGER NOT NULL,
        rdev INTEGER NOT NULL, ino INTEGER NOT NULL, dirty INTEGER NOT NULL, pino INTEGER NOT NULL,
        pctime INTEGER NOT NULL, listed INTEGER NOT NULL, digest BLOB, limbo INTEGER, gen INTEGER NOT NULL,
        got INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS entry(
        parent INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL,
        PRIMARY KEY(parent, name)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS shadow(
        parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL,
        PRIMARY KEY(parent, name)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS held(
        parent INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL, stamp INTEGER NOT NULL, since INTEGER,
        PRIMARY KEY(parent, name)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS removed(
        path BLOB NOT NULL, inode INTEGER NOT NULL, amount INTEGER NOT NULL, at INTEGER NOT NULL,
        PRIMARY KEY(path, inode)) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS inplace(inode INTEGER PRIMARY KEY, ino INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS departed(inode INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS held_since ON held(since)",
    "CREATE INDEX IF NOT EXISTS removed_inode ON removed(inode)",
    "CREATE INDEX IF NOT EXISTS entry_inode ON entry(inode)",
    "CREATE INDEX IF NOT EXISTS inode_dirty ON inode(id) WHERE dirty <> 0",
    "CREATE INDEX IF NOT EXISTS inode_undressed ON inode(id) WHERE pctime < 0 AND dirty = 0",
    "CREATE INDEX IF NOT EXISTS inode_unlisted ON inode(id) WHERE listed = 0 AND mode & 61440 = 16384",
    "CREATE INDEX IF NOT EXISTS inode_limbo ON inode(limbo) WHERE limbo IS NOT NULL",
)

# Names seen by a complete listing that comes in parts. Of this connection; a file, not memory.
SEEN = """CREATE TEMP TABLE IF NOT EXISTS seen(
    parent INTEGER, name BLOB, PRIMARY KEY(parent, name)) WITHOUT ROWID"""

META = "SELECT key, value FROM meta"
SET_META = "INSERT INTO meta(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"

COLUMNS = "id, gfid, mode, uid, gid, size, mtime, atime, rdev, ino, dirty, pino, pctime, listed, digest, limbo, gen, got"
_INODE = "SELECT " + COLUMNS + " FROM inode WHERE "
CHUNK = 500  # values in one IN (…); SQLite before 3.32 allows 999
_MARKS = ",".join("?" * CHUNK)
INODES_BY_GFID = _INODE + "gfid IN ({})".format(_MARKS)
INODES_BY_ID = _INODE + "id IN ({})".format(_MARKS)
INODE_BY_GFID = _INODE + "gfid = ?"
INODE_BY_ID = _INODE + "id = ?"
ENTRIES_BY_NAME = "SELECT name, inode FROM entry WHERE parent = ? AND name IN ({})".format(_MARKS)
ENTRY = "SELECT inode FROM entry WHERE parent = ? AND name = ?"
ENTRIES_OF = "SELECT name, inode FROM entry WHERE parent = ? LIMIT ?"
NAMES_BY_INODE = "SELECT inode, parent, name FROM entry WHERE inode IN ({})".format(_MARKS)
NAMES_OF = "SELECT parent, name FROM entry WHERE inode = ?"
UNSEEN = """SELECT name FROM entry WHERE parent = ?1
    AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.parent = ?1 AND seen.name = entry.name) LIMIT ?2"""
ADD_SEEN = "INSERT OR IGNORE INTO seen(parent, name) VALUES(?, ?)"
IS_SEEN = "SELECT 1 FROM seen WHERE parent = ? AND name = ?"
FORGET_SEEN = "DELETE FROM seen WHERE parent = ?"

SAVE_INODE = "INSERT INTO inode(" + COLUMNS + ") VALUES(" + ",".join("?" * 18) + ")"
UPDATE_INODE = """UPDATE inode SET mode=?, uid=?, gid=?, size=?, mtime=?, atime=?, rdev=?, ino=?, dirty=?, pino=?,
    pctime=?, listed=?, digest=?, limbo=?, gen=?, got=? WHERE id=?"""
SAVE_ENTRY = "INSERT OR REPLACE INTO entry(parent, name, inode) VALUES(?, ?, ?)"
DROP_ENTRY = "DELETE FROM entry WHERE parent = ? AND name = ?"
RESET_DIGEST = "UPDATE inode SET digest = NULL WHERE id = ? AND digest IS NOT NULL"

ANY_SHADOW = "SELECT 1 FROM shadow LIMIT 1"
SHADOW = "SELECT ino FROM shadow WHERE parent = ? AND name = ?"
SHADOW_OF = "SELECT 1 FROM shadow WHERE ino = ? LIMIT 1"
SAVE_SHADOW = "INSERT OR REPLACE INTO shadow(parent, name, ino) VALUES(?, ?, ?)"
DROP_SHADOW = "DELETE FROM shadow WHERE parent = ? AND name = ?"
DROP_SHADOWS_OF = "DELETE FROM shadow WHERE parent = ?"
# With the inode number that the name's own object has; NULL: no entry.
SHADOWS = """SELECT shadow.parent, shadow.name, shadow.ino, inode.ino FROM shadow
    LEFT JOIN entry ON entry.parent = shadow.parent AND entry.name = shadow.name
    LEFT JOIN inode ON inode.id = entry.inode"""

# Every directory below ?, itself included.
_SUBTREE = """WITH RECURSIVE sub(id) AS (SELECT ? UNION
    SELECT inode.id FROM sub JOIN entry ON entry.parent = sub.id JOIN inode ON inode.id = entry.inode
    WHERE inode.mode & 61440 = 16384) """
UNLIST_BELOW = _SUBTREE + "UPDATE inode SET listed = 0, digest = NULL WHERE id IN (SELECT id FROM sub)"
# The same with everything in them, of which nothing is taken for granted any more. But for the root, which no
# name leads to, and so no look.
_EVERYTHING = """WITH RECURSIVE sub(id) AS (SELECT ?1 UNION
    SELECT entry.inode FROM sub JOIN entry ON entry.parent = sub.id) """
DOUBT = (
    _EVERYTHING
    + """UPDATE inode SET pctime = min(pctime, 0), listed = 0, digest = NULL,
    dirty = CASE WHEN mode & 61440 = 32768 THEN max(dirty, 1) ELSE dirty END
    WHERE id IN (SELECT id FROM sub) AND id <> 1"""
)
# Versions only: content is compared when it is looked at, and not wanted before.
DOUBT_VERSIONS = (
    _EVERYTHING + "UPDATE inode SET pctime = 0 WHERE id IN (SELECT id FROM sub) AND id <> 1 AND pctime > 0"
)
DOUBT_ONE = """UPDATE inode SET pctime = 0,
    dirty = CASE WHEN mode & 61440 = 32768 THEN max(dirty, 1) ELSE dirty END WHERE id = ?"""
DOUBT_NAMES = (
    _EVERYTHING
    + """UPDATE inode SET digest = NULL
    WHERE id IN (SELECT entry.parent FROM entry JOIN sub ON entry.inode = sub.id)"""
)
DOUBTED = (
    _EVERYTHING
    + """SELECT count(*) FROM inode WHERE id IN (SELECT id FROM sub) AND id <> 1
    AND (dirty <> 0 OR (mode & 61440 = 16384 AND listed = 0))"""
)
DIRECTORIES_BELOW = _SUBTREE + "SELECT id FROM sub"
CHILDREN = "SELECT inode FROM entry WHERE parent = ?"
DROP_ENTRIES_OF = "DELETE FROM entry WHERE parent = ?"
DROP_NAMELESS = "DELETE FROM inode WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM entry WHERE inode = ?1)"
NAMELESS = """SELECT hex(gfid) FROM inode WHERE limbo IS NULL AND id <> 1
    AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.inode = inode.id)"""

# name, pino, pctime of everything in a directory; what is dirty counts as of no version.
VERSIONS = """SELECT entry.name, inode.pino, CASE WHEN inode.dirty THEN 0 ELSE max(inode.pctime, 0) END
    FROM entry JOIN inode ON inode.id = entry.inode WHERE entry.parent = ? ORDER BY entry.name"""
# The same without names that are held: the primary does not have them.
VERSIONS_THERE = VERSIONS.replace(
    "ORDER BY",
    """AND NOT EXISTS (SELECT 1 FROM held WHERE held.parent = entry.parent AND held.name = entry.name
        AND held.inode = entry.inode) ORDER BY""",
)
UNLIST = "UPDATE inode SET listed = 0, digest = NULL WHERE gfid = ?"
SET_DIGEST = "UPDATE inode SET digest = ? WHERE id = ?"

DIRTY = "SELECT " + COLUMNS + " FROM inode WHERE id > ? AND dirty <> 0 ORDER BY id LIMIT ?"
UNDRESSED = "SELECT " + COLUMNS + " FROM inode WHERE id > ? AND pctime < 0 AND dirty = 0 ORDER BY id LIMIT ?"
UNLISTED = (
    "SELECT "
    + COLUMNS
    + " FROM inode WHERE id > max(1, ?) AND listed = 0 AND mode & 61440 = 16384 ORDER BY id LIMIT ?"
)
# Without those in such ones, which are listed with them. (The root is listed by whoever looks at the tree.)
UNLISTED_TOPS = UNLISTED.replace(
    "ORDER BY",
    """AND NOT EXISTS (SELECT 1 FROM entry JOIN inode AS above ON above.id = entry.parent
        WHERE entry.inode = inode.id AND above.listed = 0 AND above.id <> 1) ORDER BY""",
)
IN_LIMBO = "SELECT " + COLUMNS + " FROM inode WHERE limbo IS NOT NULL AND limbo <= ? ORDER BY limbo LIMIT ?"
SAVE_IN_PLACE = "INSERT OR REPLACE INTO inplace(inode, ino) VALUES(?, ?)"
_HALF = """SELECT inode.id FROM inplace JOIN inode ON inode.id = inplace.inode
    WHERE inode.ino = inplace.ino AND inode.dirty <> 0"""
TORN = "SELECT entry.parent, entry.name FROM entry WHERE entry.inode IN ({}) LIMIT ?".format(_HALF)
FORGET_WHOLE = "DELETE FROM inplace WHERE inode NOT IN ({})".format(_HALF)
SAVE_DEPARTED = "INSERT OR REPLACE INTO departed(inode, parent, name) VALUES(?, ?, ?)"
DEPARTED = "SELECT parent, name FROM departed WHERE inode = ?"
FORGET_DEPARTED = "DELETE FROM departed"
LIMBO_LEFT = "SELECT count(*) FROM inode WHERE limbo IS NOT NULL"
AFTER_POWER_CUT = "UPDATE inode SET dirty = 1 WHERE gen >= ? AND mode & 61440 = 32768"
DIGESTS_AFTER_POWER_CUT = "UPDATE inode SET digest = NULL WHERE digest IS NOT NULL"
STATISTICS = """SELECT count(*), coalesce(sum(mode & 61440 = 32768), 0), coalesce(sum(mode & 61440 = 16384), 0),
    coalesce(sum(dirty <> 0), 0), coalesce(sum(limbo IS NOT NULL), 0),
    coalesce(sum(CASE WHEN mode & 61440 = 32768 THEN size ELSE 0 END), 0) FROM inode"""

ANY_HELD = "SELECT 1 FROM held LIMIT 1"
IS_HELD = "SELECT stamp FROM held WHERE parent = ? AND name = ?"
# What was seen first stands; of a name that stands for something else by now, that.
HOLD = """INSERT INTO held(parent, name, inode, stamp, since) VALUES(?, ?, ?, ?, ?)
    ON CONFLICT(parent, name) DO UPDATE SET inode = excluded.inode,
    stamp = CASE WHEN inode = excluded.inode THEN stamp ELSE excluded.stamp END,
    since = CASE WHEN inode = excluded.inode AND excluded.since IS NOT NULL THEN coalesce(since, excluded.since)
        ELSE excluded.since END"""
IGNORE_HELD = "UPDATE held SET since = NULL WHERE since IS NOT NULL"
RELEASE = "DELETE FROM held WHERE parent = ? AND name = ?"
_STANDS = " JOIN entry ON entry.parent = held.parent AND entry.name = held.name AND entry.inode = held.inode "
HELD = "SELECT held.parent, held.name, held.inode FROM held" + _STANDS + "WHERE held.stamp <= ? LIMIT ?"
ALL_HELD = "SELECT held.parent, held.name, held.stamp, held.since FROM held" + _STANDS + "LIMIT ?"
HELD_SINCE = "SELECT min(since) FROM held WHERE since IS NOT NULL"
COUNT_HELD = (
    "WITH RECURSIVE sub(id) AS (SELECT held.inode FROM held"
    + _STANDS
    + """WHERE held.stamp <= ? UNION SELECT entry.inode FROM sub JOIN entry ON entry.parent = sub.id)
    SELECT count(*) FROM (SELECT 1 FROM sub LIMIT ?)"""
)
DROP_STALE_HELD = """DELETE FROM held WHERE NOT EXISTS (SELECT 1 FROM entry
    WHERE entry.parent = held.parent AND entry.name = held.name AND entry.inode = held.inode)"""
WANT_NOTHING = "UPDATE inode SET dirty = 0, pctime = 0 WHERE id = ? AND (dirty <> 0 OR pctime < 0)"
ANY_OBJECT = "SELECT 1 FROM inode WHERE id <> 1 LIMIT 1"
ANY_REMOVED = "SELECT 1 FROM removed LIMIT 1"
NOTE_REMOVED = "INSERT OR REPLACE INTO removed(inode, path, amount, at) VALUES(?, ?, ?, ?)"
COUNT_REMOVED = "SELECT coalesce(sum(amount), 0) FROM removed"
FORGET_REMOVED = """DELETE FROM removed WHERE at <= ? AND (amount > 0
    OR NOT EXISTS (SELECT 1 FROM inode WHERE inode.id = removed.inode))"""
BACK_IN_PATH = "DELETE FROM removed WHERE path = ? AND amount > 0"
BACK_BY_INODE = "DELETE FROM removed WHERE inode = ?"
REMOVED = "SELECT path, amount FROM removed WHERE inode = ? ORDER BY amount LIMIT 1"
COUNT_INODES = "SELECT count(*) FROM inode"
DIRECTORIES_AMONG = "SELECT id FROM inode WHERE id IN ({}) AND mode & 61440 = 16384".format(_MARKS)
SOME_ENTRIES = """SELECT entry.name, inode.id, inode.ino FROM entry JOIN inode ON inode.id = entry.inode
WHERE entry.parent = ? AND inode.ino <> 0 LIMIT ?"""
COUNT_ENTRIES = "SELECT count(*) FROM entry"
# While rebuilding: whose object stands here?
INDEX_INO = "CREATE INDEX IF NOT EXISTS inode_ino ON inode(ino)"
DROP_INDEX_INO = "DROP INDEX IF EXISTS inode_ino"
BY_INO = "SELECT id FROM inode WHERE ino = ? LIMIT 1"

# A copy of the index: what its inodes are called in the copy of the tree (mirror.py). -1: not met there.
ATTACH_COPIED = "ATTACH DATABASE ? AS mirror"
COPIED = "SELECT new FROM mirror.copied WHERE ino = ?"
RENUMBER_INODES = """UPDATE inode SET ino = coalesce((SELECT new FROM mirror.copied WHERE copied.ino = inode.ino), -1)
    WHERE ino <> 0"""
RENUMBER_SHADOWS = """UPDATE shadow SET ino = coalesce((SELECT new FROM mirror.copied WHERE copied.ino = shadow.ino), -1)
    WHERE ino <> 0"""
