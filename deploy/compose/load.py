"""A primary that lives: some thousand small files, of which a few are made, changed, renamed and removed each second."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

FILES = 2000
DIRECTORIES = 40
LARGEST = 32 * 1024


def name(root: Path) -> Path:
    return root / f"d{random.randrange(DIRECTORIES):02}" / f"{random.randrange(16**8):08x}"


def change(root: Path, files: list[Path]) -> None:
    """One change, so that the number of files stays about what it is."""
    what = random.choice(["make", "append", "replace", "rename", "remove"])
    if what == "make" or len(files) < FILES:
        files.append(name(root))
        files[-1].write_bytes(os.urandom(random.randrange(LARGEST)))
        return
    at = random.randrange(len(files))
    path = files[at]
    if what == "append" and path.stat().st_size < LARGEST:
        with path.open("ab") as file:
            file.write(os.urandom(1024))
    elif what == "replace":
        aside = path.with_suffix(".new")
        aside.write_bytes(os.urandom(random.randrange(LARGEST)))
        aside.rename(path)
    elif what == "rename":
        files[at] = path.rename(name(root))
    else:
        path.unlink()
        files[at] = files[-1]
        files.pop()


def main(root: Path, each_second: float) -> None:
    for number in range(DIRECTORIES):
        (root / f"d{number:02}").mkdir(exist_ok=True)
    files = sorted(path for path in root.glob("d*/*") if path.is_file())
    while len(files) < FILES:
        change(root, files)
    sys.stderr.write(f"{len(files)} files; {each_second:g} changes a second\n")
    while True:
        change(root, files)
        time.sleep(1 / each_second)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if os.environ.get("SEAMARK_PRIMARY"):
        sys.stderr.write("the primary is a directory of yours: nothing is generated\n")
    else:
        main(Path(sys.argv[1]), float(os.environ.get("SEAMARK_LOAD", "5")))
