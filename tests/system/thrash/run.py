"""One seed, from new file systems to the verdict."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from replication import checkpoints
from tests.judge import differences
from tests.system.thrash.chaos import Chaos
from tests.system.thrash.plan import plan, wanting
from tests.system.thrash.stage import NAME, Stage
from tests.system.thrash.witness import Comparison
from tests.system.thrash.work import WORKERS

SAME_WITHIN_S = 240  # retries of what failed on a full disk wait up to a minute
_PASSED_WITHIN_S = 120
_PENDING = 3
_SLOW_WORK_S = 0.3


@dataclass
class Result:
    """What one seed came to. ``wrong``: why it failed, empty if it did not."""

    seed: int
    plan: str
    refused: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)
    looks: int = 0
    snapshots: int = 0
    unanswered: int = 0
    compared: int = 0
    monitor_starts: int = 0
    same_after_s: float = 0.0
    healthy_after_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    kept: str = ""

    def line(self):
        if self.refused:
            return f"seed {self.seed}: refused: {self.refused}"
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none"
        work = ", ".join(f"{count} {name}" for name, count in sorted(self.work.items()))
        return (
            f"seed {self.seed}: {'FAILED' if self.wrong else 'ok'} ({self.plan}); faults: {faults}; did: {work}; "
            f"{self.looks} marks and {self.snapshots} snapshots checked, {self.compared} objects compared, {self.unanswered} not reached in time; "
            f"identical after {self.same_after_s:.1f} s, healthy after {self.healthy_after_s:.1f} s"
        )


class _Pending:
    """A snapshot that waits for the mark, or for a checkpoint that was asked for after it."""

    def __init__(self, path, before_ns, checkpoint):
        self.path, self.before_ns, self.checkpoint = path, before_ns, checkpoint
        self.since = time.monotonic()


class Run:
    """Plays a seed. ``base`` is an empty directory."""

    def __init__(self, base, made):
        self.stage, self.plan = Stage(base, made), made
        self.result = Result(made.seed, str(made))
        self.chaos = Chaos(self.stage)
        self.work = WORKERS[made.generator](self.stage.primary, made.seed, base)
        self._draw = random.Random(made.seed + 2)
        self._pending = []
        self._number = 0
        self._mark_ns = 0

    def play(self):
        self.work.prepare()
        self.stage.begin()
        if not self.plan.early:
            self._wait_for_mark()
        self.work.start()
        self.chaos.start()
        try:
            self._watch()
        finally:
            self.chaos.join()
            self.work.end()
        self._settle()
        result = self.result
        result.faults, result.missed = dict(self.chaos.done), dict(self.chaos.missed)
        result.work = dict(self.work.done)
        result.monitor_starts = self.stage.monitor_starts
        if self.chaos.error is not None:
            result.wrong.append(f"the thrasher itself: {self.chaos.error!r}")

    def _wait_for_mark(self):
        until = time.monotonic() + _PASSED_WITHIN_S
        while not self.stage.mark_ns():
            self.stage.keep_up()
            assert time.monotonic() < until, "no first mark"
            time.sleep(0.1)

    # ---- while it goes on

    def _watch(self):
        due = time.monotonic() + self._draw.uniform(0, 1)
        while self.chaos.is_alive() or self._pending:
            if not self.chaos.is_alive() and self.work.is_alive():
                self.work.end()
            if self.chaos.is_alive() and time.monotonic() >= due and len(self._pending) < _PENDING:
                self._take()
                due = time.monotonic() + self._draw.uniform(0.2, 1.5)
            self.stage.keep_up()
            self._look_now()
            for pending in list(self._pending):
                self._look(pending)
            time.sleep(0.02)

    def _look_now(self):
        """Is all there that is older than the mark? A clock that jumps says nothing of that."""
        mark_ns = 0 if self.plan.clock else self.stage.mark_ns()
        if mark_ns == self._mark_ns:
            return
        self._mark_ns = mark_ns
        primary = self.stage.primary
        self.result.looks += 1
        self._judge(Comparison(primary, primary, self.stage.secondary, mark_ns), f"the mark is {mark_ns}")

    def _judge(self, comparison, what):
        found = comparison.run()
        self.result.compared += found.compared + found.names
        self.result.wrong += [f"{what}: {mismatch}" for mismatch in found.mismatches[:20]]

    def _take(self):
        self._number += 1
        with self.work.still:
            before_ns = time.time_ns()
            path = self.stage.snapshot(f"s{self._number}")
            self.work.turn()
        by_checkpoint = self.plan.clock or self._draw.random() < 0.3
        checkpoint = self._ask() if by_checkpoint else 0
        if checkpoint is None:
            self.result.unanswered += 1
            self.stage.drop(path)
        else:
            self._pending.append(_Pending(path, before_ns, checkpoint))

    def _ask(self):
        """The id of a checkpoint that says more than what a clock that jumps says; None if there is no answer."""
        done = self.stage.node.command("checkpoint", NAME, "now", "--json")
        if done.returncode:
            return None
        number = json.loads(done.stdout.splitlines()[0])["id"]
        found = [
            each for each in checkpoints.read(self.stage.session / "progress.sqlite") if each.id == number
        ]
        return number if found and not (self.plan.clock and found[0].by_time) else None

    def _passed(self, pending):
        if not pending.checkpoint:
            return self.stage.mark_ns() >= pending.before_ns
        known = checkpoints.read(self.stage.session / "progress.sqlite")
        return any(each.id == pending.checkpoint and each.reached_ns is not None for each in known)

    def _look(self, pending):
        result = self.result
        if self._passed(pending):
            how = f"checkpoint {pending.checkpoint}" if pending.checkpoint else "the mark"
            result.snapshots += 1
            self._judge(
                Comparison(pending.path, self.stage.primary, self.stage.secondary, pending.before_ns),
                f"{how} passed {pending.before_ns}",
            )
        elif time.monotonic() - pending.since < _PASSED_WITHIN_S:
            return
        else:
            result.unanswered += 1
            if not pending.checkpoint:
                result.wrong.append(f"the mark did not pass {pending.before_ns} within {_PASSED_WITHIN_S} s")
        self.stage.drop(pending.path)
        self._pending.remove(pending)

    # ---- the end

    def _settle(self):
        began, told = time.monotonic(), ""
        while problem := self._not_yet():
            self.stage.keep_up()
            if problem.startswith("status") and not self.result.same_after_s:
                self.result.same_after_s = time.monotonic() - began
            if problem[:99] != told:
                self.chaos.log.append(f"{time.time():.2f} {problem}")
                told = problem[:99]
            if time.monotonic() - began > SAME_WITHIN_S:
                self.result.wrong.append(f"not by itself within {SAME_WITHIN_S} s: {problem}")
                return
            time.sleep(0.3)
        self.result.healthy_after_s = time.monotonic() - began
        self.result.same_after_s = self.result.same_after_s or self.result.healthy_after_s

    def _not_yet(self):
        try:
            found = differences(self.stage.primary, self.stage.secondary)
        except (AssertionError, subprocess.CalledProcessError) as error:
            return str(error)
        if found:
            return str(found[:10])
        done = self.stage.node.command("status", NAME, "--json")
        if done.returncode:
            return done.stderr
        report = json.loads(done.stdout.splitlines()[0])
        # A clock that was hours ahead leaves the mark there, which status has to say until it is over.
        healthy = report["healthy"] or (
            self.plan.clock and {r["code"] for r in report["reasons"]} == {"clock"}
        )
        return "" if healthy and not report["failures"] else f"status: {report['reason']}, {report}"


def play(seed, seconds, where=None, *, keep_all=False):
    """One seed in a directory of its own, which stays if it fails, or if ``keep_all``."""
    made = plan(seed, seconds)
    if reason := wanting(made):
        return Result(seed, str(made), refused=reason)
    base = Path(tempfile.mkdtemp(prefix=f"seamark-thrash-{seed}-", dir=where))
    run = None
    try:
        run = Run(base, made)
        run.play()
        result = run.result
    except BaseException as error:
        if run is None:
            raise
        run.result.wrong.append(f"{type(error).__name__}: {error}")
        result = run.result
        if not isinstance(error, Exception):
            raise
    finally:
        if run is not None:
            run.chaos.join(60) if run.chaos.is_alive() else None
            if run.result.wrong:
                run.stage.list_all()
            run.stage.close()
    (base / "thrash.log").write_text("\n".join([*run.chaos.log, "", *result.wrong, ""]))
    if result.wrong or keep_all:
        result.kept = str(base)
    else:
        shutil.rmtree(base)
    return result


def replay(seed, seconds):
    """What to type to play it again."""
    return f"{sys.executable} -m tests.system.thrash --seed {seed} --seconds {seconds:g}"
