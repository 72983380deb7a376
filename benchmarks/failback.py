"""A failback: how much goes over the wire, and how long it takes, by how much was changed; beside rsync in the same direction.

20,000 files of 1 to 8 KiB were replicated from one site to another, which was promoted; then some of them were changed
there (`--files` says how many there are, for a trial). Bytes of both directions are counted by a relay in front of the old primary's sshd. rsync does what people do today: the
whole tree again, into a copy of the old primary. Rows: 0, 100, 2000.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from common import RSYNC, Report, Row, Series, arguments
from large import Relay

from tests.judge import rsync_differences
from tests.system.test_failover import NAME, Pair

_FILES = 20_000
_MIB = 1 << 20


def measured(base: Path, files: int, changed: int, seed: int) -> tuple[float, float, float, float, float]:
    """Seconds and MiB of ours, of rsync, and the MiB that were changed."""
    pair = Pair(base, files=files)
    relay = Relay(pair.a.ssh.port)
    try:
        pair.a.kill()
        pair.failover()
        draw = random.Random(seed)
        size = 0
        for number in draw.sample(range(files), changed):
            content = draw.randbytes(4096)
            (pair.b.root / f"d{number // 50:04}" / f"f{number}").write_bytes(content)
            size += len(content)
        copy = base / "copy"
        subprocess.run(["cp", "-a", pair.a.root, copy], check=True)
        pair.b.monitor()
        time.sleep(3)
        way = ["--ssh-port", relay.port, "--identity", pair.a.ssh.identity, "--accept-new-host-key"]
        before, began = relay.bytes, time.monotonic()
        pair.b.ok("failback", pair.b.root, "--to", pair.a.address, *way, "--yes", timeout=300)
        pair.in_sync(pair.b, NAME)
        ours, sent = time.monotonic() - began, relay.bytes - before
        assert rsync_differences(pair.b.root, pair.a.root) == []
        pair.b.kill()
        ssh = f"ssh -F none -p {relay.port} -i {pair.a.ssh.identity} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        before, began = relay.bytes, time.monotonic()
        subprocess.run(
            [*RSYNC, "--delete", "--exclude=/.seamark", "-e", ssh, f"{pair.b.root}/", f"{pair.a.ssh.user}@{pair.a.ssh.host}:{copy}/"],
            check=True, capture_output=True,
        )  # fmt: skip
        theirs, theirs_sent = time.monotonic() - began, relay.bytes - before
        return ours, sent / _MIB, theirs, theirs_sent / _MIB, size / _MIB
    finally:
        pair.close()
        relay.close()


def main() -> None:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--files", type=int, default=_FILES, help="how many there are (default %(default)s)")
    options = parser.parse_args()
    report = Report(options.json)
    for changed in (0, 100, 2000):
        if (options.only and str(changed) not in options.only) or changed > options.files:
            continue
        took, sent = (
            Series("seamark failback, until its checkpoint"),
            Series("seamark failback", "MiB on the wire"),
        )
        peer, peer_sent = (
            Series("rsync -aHAX --delete over ssh"),
            Series("rsync -aHAX --delete", "MiB on the wire"),
        )
        written = 0.0
        for turn in range(options.runs):
            base = Path(tempfile.mkdtemp(prefix="seamark-bench-", dir=options.base))
            try:
                a, b, c, d, written = measured(base, options.files, changed, turn)
            finally:
                shutil.rmtree(base, ignore_errors=True)
            for series, value in zip((took, sent, peer, peer_sent), (a, b, c, d), strict=True):
                series.values.append(value)
        report.add(
            Row(
                f"{changed} of {options.files} files changed ({written:.2f} MiB)",
                "bytes by what changed",
                [took, peer, sent, peer_sent],
            )
        )
    report.write()


if __name__ == "__main__":
    main()
