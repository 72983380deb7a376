"""Ways to break the engine, each of which must turn a test red: what a promise in docs/reliability.md rests on.

A mutation replaces one piece of code, which stands in its file exactly once, by another. ``tests`` are what notices.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """``name`` says what is broken, ``invariant`` which promise that is (docs/reliability.md)."""

    name: str
    invariant: int
    path: str
    code: str
    instead: str
    tests: tuple[str, ...]


MUTATIONS = (
    # ---- 1: the mark never passes what is not there
    Mutation(
        "the mark passes failures", 1, "replication/marking.py",
        "coalesce((SELECT min(first_ns) - 1 FROM failure), front_ns)", "front_ns",
        ("tests/replication/test_progress.py",),
    ),
    Mutation(
        "the front passes batches with units left", 1, "tasks/ledger.lua",
        "  if units > 0 then break end\n", "",
        ("tests/tasks/test_ledger.py",),
    ),
    Mutation(
        "what a unit says has failed is not noted", 1, "tasks/ledger.lua",
        "      if ARGV[7] ~= '' then", "      if false then",
        ("tests/tasks/test_ledger.py",),
    ),
    Mutation(
        "attributes of what is below a renamed directory are left out", 1, "tasks/metadata.py",
        "[each for each in gone if known.get(each[0])]", "[]",
        ("tests/tasks/test_elsewhere.py",),
    ),
    Mutation(
        "a file that was renamed while it was to be read is called done", 1, "tasks/data.py",
        'return [_moved(r) if r.gfid in still and r.status == "vanished" else r for r in results]', "return results",
        ("tests/tasks/test_elsewhere.py",),
    ),
    Mutation(
        "files that nobody is going to send are forgotten", 1, "scheduler/settle.py",
        'left = as_moved(files, step="data")', "left: list[failures.Failure] = []",
        ("tests/system/test_mark_and_moves.py", "--slow", "-k", "file_is_killed"),
    ),
    Mutation(
        "only the ledger knows whose attributes a crawl has missed", 1, "tasks/crawl.py",
        "record(failures + as_moved(dressed.missed), [], work.since_ns())", "record(failures, [], work.since_ns())",
        ("tests/system/test_lost_ledger.py",),
    ),
    Mutation(
        "a crawl gives a mark whatever moved behind its back", 1, "replication/progress.py",
        "            if recorded:\n                unsettled.doubt_until_now(db, since_ns)\n            else:\n", "            if True:\n",
        ("tests/replication/test_progress.py", "tests/system/test_moved_while_looked_at.py"),
    ),
    Mutation(
        "a directory that a crawl does not find counts as looked at", 1, "tasks/crawl.py",
        "self._vanished[gfid] = path", "pass",
        ("tests/system/test_moved_while_looked_at.py", "--slow", "-k", "found_no_more or scan_that or moves_again"),
    ),
    Mutation(
        "a directory that is not found where it is to be listed counts as listed", 1, "tasks/entry.py",
        "observer.findings.astray[gfid] = path", "pass",
        ("tests/system/test_moved_while_looked_at.py",),
    ),
    Mutation(
        "the mark does not wait for a directory that is nowhere known", 1, "tasks/whereabouts.py",
        "observer.findings.missed.append((gfid, tried))", "pass",
        ("tests/system/test_moved_while_looked_at.py",),
    ),
    Mutation(
        "a directory that was missed counts as listed when all is applied that moved it", 1, "scheduler/settle.py",
        "if at is None or at.listed:\n            done", "if True:\n            done",
        ("tests/system/test_moved_while_looked_at.py",),
    ),
    Mutation(
        "what fails is as young as the segment that it is in", 1, "scheduler/crawl.py",
        "min(segments[0].start_ns, upto_ns + 1)", "segments[0].start_ns",
        ("tests/system/test_mark_and_moves.py",),
    ),
    Mutation(
        "what a unit that was killed had told of is nobody's", 1, "tasks/entry.py",
        "ledger.started(unit) > 1", "ledger.started(unit) > 9",
        ("tests/system/test_mark_and_moves.py", "--slow", "-k", "is_killed"),
    ),
    Mutation(
        "a directory that is missed again is as young as the record that had it looked for", 1, "replication/unsettled.py",
        "since_ns = min(since_ns, excluded.since_ns), upto = NULL", "since_ns = excluded.since_ns, upto = NULL",
        ("tests/replication/test_progress.py",),
    ),
    Mutation(
        "only the ledger knows whose metadata is to come from home", 1, "scheduler/crawl.py",
        "bare, more_bare = self._lacking(undressed=True)", "bare, more_bare = [], False",
        ("tests/tasks/test_elsewhere.py",),
    ),
    Mutation(
        "what is below a name that is held counts as gone", 1, "replication/secondary/lookups.py",
        "stamp is not None and stamp <= upto for stamp", "stamp is not None for stamp",
        ("tests/system/test_mark_waits.py", "-k", "is_held"),
    ),
    Mutation(
        "what came from outside and has another name is not waited for", 1, "replication/unsettled.py",
        "    if strayed:\n", "    if False:\n",
        ("tests/system/test_mark_waits.py", "--slow", "-k", "came_from_outside"),
    ),
    Mutation(
        "content that no look asked for is older than what is there", 1, "replication/secondary/lookups.py",
        "return max(row.dirty, row.got)", "return row.dirty",
        ("tests/secondary/test_agent.py",),
    ),
    Mutation(
        "of directories nobody knows whose attributes are to come", 1, "replication/secondary/observe.py",
        "if row.pctime != (awaited", "if row.is_file and row.pctime != (awaited",
        ("tests/system/test_mark_waits.py", "-k", "attributes"),
    ),
    Mutation(
        "attributes that nobody is going to send are forgotten", 1, "scheduler/settle.py",
        " + as_moved(bare)", "",
        ("tests/system/test_mark_waits.py", "-k", "attributes"),
    ),
    Mutation(
        "what the mark waits for is let go of before the first scan", 1, "scheduler/crawl.py",
        'if self.brick.crawl_ended < self.epoch or self.ctx.progress.scan_due("scan"):', "if self.brick.crawl_ended < self.epoch:",
        ("tests/system/test_mark_waits.py", "--slow", "-k", "recorder_is_lost"),
    ),
    Mutation(
        "what was seen to be right before it failed is right", 1, "replication/failures.py",
        "WHERE key = ? AND NOT last_ns BETWEEN ? AND ?", "WHERE key = ? AND 0 IN (0, ?, ?)",
        ("tests/replication/test_progress.py",),
    ),
    Mutation(
        "what is gone from its name is gone", 1, "replication/failures.py",
        "            unsettled.moved(db, found[0])\n", "",
        ("tests/replication/test_progress.py",),
    ),
    Mutation(
        "what is seen at a path is right in the directory that was there", 1, "replication/failures.py",
        'return f"{directory.hex()}//{os.fsdecode(name)}"', 'return f"{bytes(16).hex()}//{os.fsdecode(name)}"',
        ("tests/system/test_mark_and_failures.py", "-k", "made_again"),
    ),
    # ---- 2: it moves only after the secondary has everything on its disk
    Mutation(
        "nothing is written to the disk before the mark moves", 2, "replication/secondary/lookups.py",
        "        syncfs(agent.tree.root_fd)\n", "        pass\n",
        ("tests/secondary/test_durable.py",),
    ),
    Mutation(
        "a secondary that restarted before a batch was durable is believed", 2, "tasks/mark.py",
        "if any(b.rebooted or (b.boot and b.boot != boot) for b in done):", "if False:",
        ("tests/tasks/test_mark.py",),
    ),
    # ---- 3: Redis holds no truth
    Mutation(
        "a ledger that is gone is not missed", 3, "scheduler/crawl.py",
        "        if ledger.fence() != self.epoch:\n", "        if False:\n",
        ("tests/system/test_faults.py::test_killed_in_mid_batch[redis, emptied first]",),
    ),
    Mutation(
        "what has stopped moving is not submitted again", 3, "scheduler/sweep.py",
        "                signature.apply_async()\n", "                pass\n",
        ("tests/system/test_faults.py", "tests/system/test_bad_input.py"),
    ),
    # ---- 4: every task may run twice, late, or beside its twin
    Mutation(
        "a connection of an older epoch may write", 4, "replication/secondary/agent.py",
        'if check_epoch and self.index.meta.get("epoch", 0) != self.epoch:', "if False:",
        ("tests/secondary/test_agent.py",),
    ),
    Mutation(
        "an older epoch is greeted", 4, "replication/secondary/owner.py",
        '    if request["epoch"] < epoch:\n', "    if False:\n",
        ("tests/secondary/test_agent.py", "tests/system/test_standby.py"),
    ),
    Mutation(
        "segments are taken in any order", 4, "replication/secondary/admission.py",
        'if applied is not None and applied not in (position, request.get("after", position - 1)):', "if False:",
        ("tests/secondary/test_agent.py",),
    ),
    Mutation(
        "a twin settles what another one of its name is asked for", 4, "tasks/ledger.lua",
        "(ARGV[9] ~= '' and string.sub(payload, 1, 8) ~= ARGV[9])", "false",
        ("tests/tasks/test_ledger.py",),
    ),
    Mutation(
        "a promoted root is somebody's secondary all the same", 4, "replication/secondary/owner.py",
        "    if promoted is not None:\n        at =", "    if False:\n        at =",
        ("tests/secondary/test_promotion.py",),
    ),
    Mutation(
        "a promotion raises no epoch", 4, "replication/secondary/promotion.py",
        '"epoch": epoch + 1, "holder": HOLDER', '"epoch": epoch, "holder": found.get("holder")',
        ("tests/secondary/test_promotion.py",),
    ),
    Mutation(
        "a side that was promoted earlier takes one that was promoted later", 4, "replication/secondary/seeding.py",
        'if found is not None and term <= int(found.get("term", 0)):', "if False:",
        ("tests/secondary/test_seeding.py",),
    ),
    # ---- 5: at rest both sides are the same
    Mutation(
        "names that are gone are not observed", 5, "replication/observer.py",
        "            entries.append(entry)\n            if names[name] is Change.DATA:",
        "            if entry.inode is not None:\n                entries.append(entry)\n            if names[name] is Change.DATA:",
        ("tests/system/test_live.py",),
    ),
    Mutation(
        "what changes while it is read is called whole", 5, "replication/transfer/stream.py",
        "        still = after.ctime_ns == stat.ctime_ns and len(content) == stat.size\n", "        still = True\n",
        ("tests/transfer/test_movers.py", "tests/transfer/test_movers_and_agent.py", "tests/system/test_field.py"),
    ),
    Mutation(
        "a file of several links has one name", 5, "replication/secondary/reconcile.py",
        "if not row.is_dir and come[-1][1][NLINK] != 1:", "if not row.is_dir and come[-1][1][NLINK] == 0:",
        ("tests/secondary/test_agent.py", "tests/secondary/test_machine.py"),
    ),
    Mutation(
        "limbo is forgotten: what loses its last name is lost", 5, "replication/secondary/namespace.py",
        '        if row.is_dir:\n            tree.moved[row.id] = None\n        self.counts["limbo"] += 1\n',
        '        if not row.is_dir:\n            os.unlink(limbo_name(row), dir_fd=tree.limbo_fd)\n            self.lose(row)\n        self.counts["limbo"] += 1\n',
        ("tests/secondary/test_limbo.py",),
    ),
    Mutation(
        "an overflow of the kernel's queue is no gap", 5, "replication/changelog/filesystem.py",
        '        self._on_gap("overflow")\n', "",
        ("tests/changelog/test_recorder.py", "tests/changelog/test_agent.py"),
    ),
    Mutation(
        "what was outside of the volume is taken to be as it was", 5, "replication/changelog/filesystem.py",
        "                self._returned.add(came)\n", "                pass\n",
        ("tests/changelog/test_recorder.py", "-k", "was_outside"),
    ),
    Mutation(
        "nothing hides behind a ctime that says nothing", 5, "replication/secondary/reconcile.py",
        "        same = e[CTIME] and row.pctime", "        same = row.pctime",
        ("tests/secondary/test_index.py",),
    ),
    Mutation(
        "a damaged block of a segment is read", 5, "replication/changelog/segment.py",
        "        if crc32(data[start : start + length]) != checksum:\n", "        if False:\n",
        ("tests/changelog/test_segment.py",),
    ),
    Mutation(
        "an interrupted transaction is not looked after", 5, "replication/secondary/agent.py",
        "        self._dirty_journal = True\n        self.journal.write(lines, data)\n", "        self._dirty_journal = True\n",
        ("tests/secondary/test_crashes.py",),
    ),
    Mutation(
        "a replaced name is free until its new content comes", 5, "replication/secondary/reconcile.py",
        "        return taker is not None and not row.is_dir and not taker.is_dir\n", "        return False\n",
        ("tests/secondary/test_shadows.py",),
    ),
    Mutation(
        "what was seen empty is moved while it is empty", 5, "replication/secondary/reconcile.py",
        "    return bool(row.is_file and not row.size and e[SIZE])\n", "    return False\n",
        ("tests/secondary/test_shadows.py",),
    ),
    Mutation(
        "what changed under a name that is gone is not looked at under the others", 5, "tasks/entry.py",
        "if observer.findings.doubted and not ctx.place.witnesses_content():", "if False:",
        ("tests/system/test_other_names.py",),
    ),
    Mutation(
        "names that are on their way are forgotten with the directory that they leave", 5, "replication/secondary/namespace.py",
        "            self._lost.append(row.id)\n", "            self.tree.index.forget_below(row.id)\n",
        ("tests/secondary/test_index.py",),
    ),
    Mutation(
        "what was seen at two names is taken for the one that was seen last", 5, "replication/secondary/observe.py",
        "[key] if self.index.entry(*key) == row.id else self.index.names_of(row.id)", "[key]",
        ("tests/secondary/test_index.py",),
    ),
    Mutation(
        "a purge that is killed leaves names of what it has removed", 5, "replication/secondary/limbo.py",
        "    agent.announce([(child, keys) for child, keys in going if child.ino], [])\n", "",
        ("tests/secondary/test_index.py",),
    ),
    # ---- 6: nothing that is not ours is deleted
    Mutation(
        "what is in the way is removed", 6, "replication/secondary/displaced.py",
        "            rename_new(dir_fd, name, at, parts[-1])\n", "            os.unlink(name, dir_fd=dir_fd)\n",
        ("tests/secondary/test_agent.py", "tests/system/test_special.py"),
    ),
    Mutation(
        "content that has its old size and time is taken for what it was", 6, "replication/secondary/agreeing.py",
        "if stat.S_ISREG(mode) and (digest is None or self._digest((parent, name)) != digest):", "if False:",
        ("tests/secondary/test_seeding.py",),
    ),
    Mutation(
        "what waits in limbo when a secondary is promoted is dropped", 6, "replication/secondary/completion.py",
        "    while _put_back(agent, counts):\n        yield _AT_ONCE\n", "",
        ("tests/secondary/test_promotion.py",),
    ),
    Mutation(
        "what was changed here since the promotion is taken for agreed on", 5, "replication/failback/agreement.py",
        "ctime is not None and ctime < self.root.since_ns and self._times_count", "ctime is not None",
        ("tests/secondary/test_seeding.py",),
    ),
    Mutation(
        "failback ignores what was recorded", 5, "replication/failback/agreement.py",
        "and self._times_count and recorded is None", "and self._times_count",
        ("tests/secondary/test_recorded.py",),
    ),
    # ---- 7: what cannot be read deletes nothing
    Mutation(
        "a directory that was read in part is called read", 7, "replication/observer.py",
        "                    complete = False\n", "                    complete = True\n",
        ("tests/replication/test_observer.py",),
    ),
    Mutation(
        "a primary that is not there any more is believed", 7, "replication/volume/directory.py",
        "        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):\n", "        if False:\n",
        ("tests/system/test_bad_input.py", "-k", "unmounted or renamed_away"),
    ),
    # ---- 8: nothing outside of the root is touched
    Mutation(
        "another file is sent in the place of the one that was asked for", 8, "replication/volume/directory.py",
        "return (stat.ino, stat.ctime_ns) == expect[:2] or self.identify_fd(fd)[0] == gfid", "return True",
        ("tests/volume/test_directory.py", "tests/transfer/test_movers.py"),
    ),
    # ---- parts that are lost, several secondaries, chains
    Mutation(
        "what one consumer of a changelog has not applied is deleted", 1, "replication/agent.py",
        "upto = min(self._applied.get(name, 0) for name in names)", "upto = max(self._applied.values())",
        ("tests/changelog/test_sharing.py",),
    ),
    Mutation(
        "a segment that was dropped reads as one in which nothing happened", 1, "replication/changelog/store.py",
        "        if info is None or info.state is State.GAP:\n", "        if False:\n",
        ("tests/changelog/test_sharing.py",),
    ),
    Mutation(
        "positions of another changelog are believed", 1, "replication/sharing.py",
        "        if known != _id_of(store):\n", "        if not known:\n",
        ("tests/changelog/test_sharing.py",),
    ),
    Mutation(
        "an older secondary has the mark of a newer one", 1, "replication/progress.py",
        "                if mark_ns is not None:\n", "                if False:\n",
        ("tests/replication/test_progress.py",),
    ),
    Mutation(
        "an index that was copied is believed", 6, "replication/secondary/kept.py",
        "            if found.st_ino != ino:\n", "            if False:\n",
        ("tests/secondary/test_kept.py",),
    ),
    Mutation(
        "a ring of sessions is not seen", 5, "replication/secondary/lineage.py",
        "    if here in lineage:\n", "    if False:\n",
        ("tests/secondary/test_kept.py",),
    ),
    # ---- Gluster volumes
    Mutation(
        "what a brick records once only is looked at once only", 1, "replication/changelog/brickfollow.py",
        "            if before not in {-1, ctime}:\n", "            if False:\n",
        ("tests/system/gluster/test_recorder.py",),
    ),
    Mutation(
        "a brick that was started again is believed", 1, "replication/changelog/bricktail.py",
        "            if second not in self._listed:\n", "            if False:\n",
        ("tests/changelog/test_bricktail.py",),
    ),
    Mutation(
        "what a brick was doing when it was killed is not searched for", 1, "replication/changelog/brickrecorder.py",
        "            self.look_since(missing.since_ns - _UNDER_WAY_NS)\n", "            pass\n",
        ("tests/system/gluster/test_recorder.py", "-k", "ended_together"),
    ),
    Mutation(
        "what clients cannot see is searched for only since the recorder began", 1, "replication/changelog/bricksince.py",
        "            return 0\n", "            return self._began_ns\n",
        ("tests/changelog/test_bricksince.py", "-k", "clients_cannot_see"),
    ),
    Mutation(
        "a clock that was set tells since when", 1, "replication/changelog/brickplace.py",
        "return self._since_ns <= since_ns <= time.time_ns()", "return True",
        ("tests/changelog/test_bricktail.py", "-k", "clock"),
    ),
    Mutation(
        "what a reboot may have undone on a brick is not", 1, "replication/changelog/bricktail.py",
        "place.boot == self._boot", "True",
        ("tests/changelog/test_bricktail.py",),
    ),
    Mutation(
        "what bricks recorded while nobody listened is complete before it was read", 1, "replication/agent.py",
        "                self._complete_ns = last.end_ns\n", "                pass\n",
        ("tests/system/gluster/test_recorder.py", "-k", "meanwhile"),
    ),
    Mutation(
        "a node that cannot be asked is taken to have told all", 1, "replication/changelog/bricks.py",
        "            if silent := [each for each in mine if each.why]:\n", "            if silent := []:\n",
        ("tests/system/gluster/test_nodes.py", "--slow", "-k", "holds_the_mark"),
    ),
    Mutation(
        "a path of a request is believed to be a brick", 8, "replication/bricknode/server.py",
        "            if path not in self._local():\n", "            if not self._local():\n",
        ("tests/system/gluster/test_nodes.py", "--slow", "-k", "nothing_else"),
    ),
    Mutation(
        "a listing without what lies on a brick that is away is believed", 7, "replication/volume/gluster.py",
        "        if not all(self._parts()):\n", "        if False:\n",
        ("tests/system/gluster/test_mounts.py", "-k", "is_away"),
    ),
    Mutation(
        "a directory whose brick is away is believed to be root's", 7, "replication/volume/gluster.py",
        "        if st.S_ISDIR(stat.mode):\n", "        if False:\n",
        ("tests/system/gluster/test_mounts.py", "-k", "brick_is_away"),
    ),
    Mutation(
        "the directory that a volume is mounted on is taken for it while it is not", 7, "replication/volume/gluster.py",
"            raise OSError(errno.ENOTCONN, _UNMOUNTED) from None\n", "            return\n",
        ("tests/system/gluster/test_mounts.py", "-k", "mounted_on"),
    ),
    Mutation(
        "what a twin has just placed on a volume is fetched from its names", 4, "replication/secondary/through.py",
        "        if _is_here(agent, row):\n", "        if False:\n",
        ("tests/system/gluster/test_volumes.py", "-k", "twin_has"),
    ),
    Mutation(
        "a change of content is forgotten for a look that comes after it", 1, "replication/secondary/observe.py",
        "                e[CHANGE] = CHANGE_DATA", "                pass",
        ("tests/secondary/test_agent.py", "-k", "knows_nothing_of_it"),
    ),
    Mutation(
        "a file that comes twice becomes two objects of one gfid", 4, "replication/secondary/receiver.py",
        "latest = list({item.gfid: (item, content) for item, content in files}.values())", "latest = list(files)",
        ("tests/system/gluster/test_volumes.py", "-k", "comes_twice"),
    ),
    Mutation(
        "what comes along is placed as another object while a twin has its gfid", 4, "replication/secondary/along.py",
        "if agent.gfids is None or file.is_right}", "}",
        ("tests/system/gluster/test_volumes.py", "-k", "comes_along"),
    ),
    Mutation(
        "what is wanted anew while it is placed gets another gfid", 4, "replication/secondary/receiver.py",
        "                if agent.gfids is None or file.is_right:\n", "                if True:\n",
        ("tests/system/gluster/test_volumes.py", "-k", "wanted_again"),
    ),
    Mutation(
        "what a twin wrote into a file after it was read is believed", 4, "replication/secondary/comparing.py",
        "        return _state(agent, fd) == state\n", "        return True\n",
        ("tests/system/gluster/test_volumes.py", "-k", "is_compared"),
    ),
    Mutation(
        "a file under way that was placed before it was locked is gone on with", 4, "replication/secondary/leftovers.py",
        "        return found.st_nlink > 0 and os.path.samestat", "        return True or os.path.samestat",
        ("tests/system/gluster/test_volumes.py", "-k", "under_way_that"),
    ),
    Mutation(
        "a link of a file is put onto another one of its links", 4, "replication/secondary/receiver.py",
        "        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino == file.ino:\n", "        if False:\n",
        ("tests/system/gluster/test_volumes.py", "-k", "too_many"),
    ),
    Mutation(
        "what a killed worker has left of a unit stays", 4, "replication/secondary/leftovers.py",
        "                _remove_unlocked_unit(staging_fd, os.fsencode(name))\n", "",
        ("tests/system/gluster/test_volumes.py", "-k", "killed_worker_has_left"),
    ),
    Mutation(
        "what was done without the lock, which went with a brick, is kept", 4, "replication/secondary/agent.py",
        "                self._refuse_after_outage()\n", "",
        ("tests/system/gluster/test_volumes.py", "--slow", "-k", "locks_went"),
    ),
    Mutation(
        "a file is written to without its lock, which went with a brick", 4, "replication/secondary/through.py",
        "replace_content(source, target, agent.goes_on)", "replace_content(source, target, agent.says_alive)",
        ("tests/system/gluster/test_volumes.py", "--slow", "-k", "to_its_end"),
    ),
    Mutation(
        "another version of a large file is made anew while the one before may be open", 4, "replication/secondary/transfers.py",
        " and not _is_begun_anew(agent, fd, name, keep)", "",
        ("tests/system/gluster/test_volumes.py", "-k", "another_version"),
    ),
    Mutation(
        "a large file under way is removed while an agent of before may have it open", 4, "replication/secondary/leftovers.py",
        "                if not keeps_inodes or not _is_of", "                if True or not _is_of",
        ("tests/system/gluster/test_volumes.py", "-k", "lost_pages"),
    ),
    Mutation(
        "who reads files goes on with a client that was killed", 5, "replication/transfer/item.py",
        "    volume.check_answers(error)\n", "",
        ("tests/system/gluster/test_mounts.py", "-k", "client_that_was"),
    ),
    Mutation(
        "what cannot be looked at is taken for unchanged", 1, "replication/volume/since.py",
        "    volume.check_answers(error)\n    return True", "    return False",
        ("tests/system/gluster/test_mounts.py", "-k", "cannot_be_looked"),
    ),
    Mutation(
        "pages that the kernel kept are sent", 5, "replication/gluster/mount.py",
        '"--direct-io-mode=enable", ', "",
        ("tests/system/gluster/test_mounts.py",),
    ),
    # ---- failures and retries
    Mutation(
        "one file that cannot be sent holds up its unit", 1, "tasks/bisect.py",
        "    if len(items) > 1:\n", "    if False:\n",
        ("tests/system/test_poison.py",),
    ),
    Mutation(
        "each task tries a secondary that is away", 1, "tasks/link.py",
        "        if wait_s > 0:\n            raise LinkRests", "        if False:\n            raise LinkRests",
        ("tests/tasks/test_link.py",),
    ),
    # ---- copies of the secondary
    Mutation(
        "a copy is of several moments", 5, "replication/secondary/copies.py",
        "            yield from mirror.run(source.root_fd, root_fd, final=True)\n", "",
        ("tests/secondary/test_snapshots.py", "-k", "one_moment and xfs"),
    ),
    Mutation(
        "others write while a copy is made", 5, "replication/secondary/copies.py",
        "            fcntl.flock(fd, fcntl.LOCK_EX)\n", "            pass\n",
        ("tests/secondary/test_snapshots.py", "-k", "one_moment and xfs"),
    ),
    Mutation(
        "attributes that are gone stay on a copy's directories", 5, "replication/secondary/mirror.py",
        "                _strip(at.target)\n", "                pass\n",
        ("tests/secondary/test_snapshots.py", "-k", "second_pass"),
    ),
    Mutation(
        "the copied index speaks of the root's inodes", 5, "replication/secondary/copies.py",
        "        index.db.execute(sql.RENUMBER_INODES)\n", "",
        ("tests/secondary/test_snapshots.py", "-k", "speaks and xfs"),
    ),
    Mutation(
        "the session's own key removes snapshots that have to be kept", 6, "replication/secondary/snapshots.py",
        'request.get("force") and not gated', 'request.get("force")',
        ("tests/scheduler/test_drill.py", "-k", "gate"),
    ),
    Mutation(
        "the session's own key promotes again what was promoted", 6, "replication/secondary/promotion.py",
        "if gated and promoted is not None and not begun:", "if False:",
        ("tests/secondary/test_goback.py", "-k", "old_primary"),
    ),
    Mutation(
        "the index of a secondary without an owner is believed", 6, "replication/secondary/owner.py",
        "if owner is None and index.db", "if False and index.db",
        ("tests/secondary/test_adopted.py",),
    ),
    Mutation(
        "the session's own key runs commands", 8, "replication/secondary/views.py",
        "    if agent.gated:\n", "    if False:\n",
        ("tests/scheduler/test_drill.py", "-k", "gate"),
    ),
    Mutation(
        "who takes many snapshots pushes the good ones out", 6, "replication/secondary/retention.py",
        "found.setdefault(at // slot_ns, at)", "found[at // slot_ns] = at",
        ("tests/secondary/test_snapshots.py", "-k", "pushes_none_out"),
    ),
    Mutation(
        "rules that are said later hold for snapshots of earlier", 6, "replication/secondary/snapshots.py",
        "(own[name] or 0) > now or ", "",
        ("tests/secondary/test_snapshots.py", "-k", "how_long"),
    ),
    Mutation(
        "the mount of a drill is everybody's", 8, "replication/secondary/overlay.py",
        "        if not stays:\n", "        if False:\n",
        ("tests/secondary/test_views.py", "-k", "is_complete and ext4"),
    ),
    Mutation(
        "what killed processes leave of copies stays", 5, "replication/secondary/owner.py",
        "    sweep_aside(hidden_fd)\n", "",
        ("tests/secondary/test_views.py", "-k", "killed and xfs"),
    ),
    Mutation(
        "going back forgets how far it was", 6, "replication/secondary/goback.py",
        '            plan["step"] = "in"\n', "",
        ("tests/secondary/test_goback.py", "-k", "killed"),
    ),
)  # fmt: skip
