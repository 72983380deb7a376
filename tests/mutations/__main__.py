"""Break the engine on purpose, one mutation after the other, and see a test turn red for each.

    python -m tests.mutations [--only WORDS] [--jobs N]

Each mutation is made in a copy of the tree. Ends with 0 when every one was caught, else with 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations.catalogue import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache")
_RED, _LONGEST_S = 1, 900


def apply(mutation, root):
    """Raises ValueError when the code is not there exactly once."""
    path = root / mutation.path
    text = path.read_text()
    if text.count(mutation.code) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.path} has its code {text.count(mutation.code)} times, not once"
        )
    path.write_text(text.replace(mutation.code, mutation.instead))


def caught(mutation):
    """(whether a test turned red, what pytest said last)"""
    with tempfile.TemporaryDirectory(prefix="mutation-") as base:
        tree = Path(base) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        apply(mutation, tree)
        command = [
            sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--basetemp", f"{base}/tests",
            *mutation.tests,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=_LONGEST_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False, "it did not end"
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return done.returncode == _RED and bool(lines), (lines or done.stdout.splitlines() or [done.stderr])[
            -1
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="mutations with these words in their names"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.only in mutation.name]

    def one(mutation):
        began = time.monotonic()
        red, said = caught(mutation)
        word = "caught " if red else "MISSED "
        print(f"{word} {time.monotonic() - began:5.0f} s  {mutation.name}\n         {said[:160]}", flush=True)
        return red

    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(one, chosen))
    print(f"{sum(found)} of {len(found)} mutations were caught")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
