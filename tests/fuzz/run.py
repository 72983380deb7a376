"""One target under atheris (not among the packages of bin/test: pip install atheris):

    PYTHONPATH=. python tests/fuzz/run.py gate -max_total_time=60

What stands behind the target's name are libFuzzer's options; the seeds of targets.py are its first inputs. An input that
makes a target fail is written to the directory where you stand, and read again by giving its name as an option.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["replication", "tests.fuzz"]):
    from tests.fuzz.targets import TARGETS, seeds


def main() -> None:
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / str(number)).write_bytes(seed)
        given = any(not word.startswith("-") for word in sys.argv[2:])
        atheris.Setup([sys.argv[0], *sys.argv[2:], *([] if given else [corpus])], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
