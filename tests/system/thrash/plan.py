"""What a seed means: where the volumes lie, who works on the primary, and which fault comes when."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass

GENERATORS = {"own": "", "git": "git", "stress-ng": "stress-ng", "fs_mark": "fsmark", "dbench": "dbench"}
_OFTEN = ["own"] * 6 + ["git"] * 2 + ["stress-ng", "fs_mark", "dbench"]

_PROCESSES = [
    "agent", "worker control", "worker data", "pool child", "beat", "session", "monitor", "redis",
    "secondary agent",
]  # fmt: skip
_REMOTE = ["sshd", "connection"]
_LONGEST_S = 4.0


@dataclass(frozen=True)
class Fault:
    """One fault: ``at`` so many seconds after the beginning. ``lasts``: until it is taken back, where it can be."""

    at: float
    kind: str
    target: str = ""
    lasts: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.target}".strip()


@dataclass(frozen=True)
class Plan:
    """All that follows from a seed."""

    seed: int
    generator: str
    subvolume: bool  # the primary is a subvolume: directories are marked, not the file system
    secondary: str  # kind of file system
    remote: bool
    clock: bool  # the node's clock is one that jumps
    broker: bool  # a Redis that is not the monitor's, which can come back with an old dump
    early: bool  # faults begin with the first crawl; else when it is done
    sync_method: str
    seconds: float
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        words = [self.generator, f"btrfs{' subvolume' * self.subvolume} to {self.secondary}"]
        words += [word for word in ("remote", "clock", "broker", "early") if getattr(self, word)]
        return ", ".join([*words, self.sync_method])


def plan(seed: int, seconds: float) -> Plan:
    """The same for the same two numbers, always."""
    draw = random.Random(seed)
    remote, clock, broker = draw.random() < 0.4, draw.random() < 0.2, draw.random() < 0.3
    generator = draw.choice(_OFTEN)
    kinds = ["kill"] * 6 + ["stop"] * 4 + ["flush", "full", "read-only"]
    kinds += ["old dump"] * broker * 4 + ["clock"] * clock * 4 + ["cut", "cut", "slow"] * remote
    targets = _PROCESSES + _REMOTE * remote * 2
    faults, at = [], draw.uniform(0.2, 1.0)
    while at < seconds:
        kind = draw.choice(kinds)
        target = draw.choice(targets) if kind in ("kill", "stop") else ""
        lasts = draw.uniform(0.2, _LONGEST_S)
        faults.append(Fault(at, kind, target, lasts))
        at += draw.expovariate(1.2)
    return Plan(
        seed, generator, draw.random() < 0.3, draw.choice(["ext4", "xfs", "btrfs"]), remote, clock, broker,
        draw.random() < 0.4,
        draw.choice(["auto", "auto", "rsync", "tar", "stream"]), seconds, tuple(faults),
    )  # fmt: skip


def wanting(made: Plan) -> str:
    """What this seed needs and is not installed, with its package; empty if it can run."""
    package = GENERATORS[made.generator]
    if package and shutil.which(made.generator) is None:
        return f"{made.generator} is not installed (package {package})"
    if made.clock and shutil.which("cc") is None:
        return "cc is not installed (packages gcc, libc6-dev)"
    return ""
