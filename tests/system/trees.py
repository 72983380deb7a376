"""Trees to replicate."""

from __future__ import annotations

import os
import random
import socket
import subprocess

ODD_NAMES = [b"new\nline", b"tab\t", b"cr\r", b"\xff\xfe", b" lead", b"trail ", b"%20", b"\\x", "ü".encode(), b"'\"$*?",
             b"-rf", b"\xc2\xa0", b"a" * 255]  # fmt: skip


def many_small_files(root, files, directories, seed=1):
    """``files`` files of 1 to 4 KiB, spread over ``directories``."""
    draw = random.Random(seed)
    for number in range(directories):
        (root / f"d{number}").mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (root / f"d{number % directories}" / f"f{number}").write_bytes(
            draw.randbytes(draw.randint(1024, 4096))
        )


def every_kind_of_thing(root):
    """One of each kind of thing that has to survive replication."""
    base = os.fsencode(root)
    (root / "dir" / "deep" / "deeper").mkdir(parents=True)
    (root / "empty dir").mkdir()
    (root / "file").write_bytes(b"content")
    (root / "empty file").touch()
    (root / "big").write_bytes(random.Random(3).randbytes(9_000_000))
    with open(root / "sparse", "wb") as file:
        file.seek(20_000_000)
        file.write(b"end")
        file.truncate(30_000_000)
    with open(root / "small sparse", "wb") as file:
        file.truncate(100_000)
    os.link(root / "file", root / "dir" / "hard link")
    os.link(root / "file", root / "dir" / "deep" / "another link")
    os.symlink("file", root / "symlink")
    os.symlink("nowhere", root / "dangling")
    os.symlink(b"\xff\n", os.path.join(base, b"odd target"))
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(root, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    for name in ODD_NAMES:
        with open(os.path.join(base, name), "wb") as file:
            file.write(name)
        os.mkdir(os.path.join(base, b"dir", name))
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o060660, os.makedev(7, 200))
        os.mknod(root / "character", 0o020666, os.makedev(1, 3))
        os.chown(root / "dir" / "deep", 1234, 5678)
        os.chown(root / "symlink", 77, 88, follow_symlinks=False)
        subprocess.run(["setcap", "cap_net_raw+ep", root / "file"], check=False)
        os.setxattr(root / "file", "trusted.test", b"t")
    os.setxattr(root / "file", "user.test", b"\0\xff")
    os.setxattr(root / "dir", "user.dir", b"d")
    subprocess.run(["setfacl", "-m", "u:1000:rwx,g:2000:r", root / "file"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rx", root / "dir"], check=True)
    os.chmod(root / "dir" / "deep", 0o3751)
    os.chmod(root / "big", 0o4755)
    os.utime(root / "file", ns=(1_111_111_111_123_456_789, 1_222_222_222_987_654_321))
    os.utime(root / "symlink", ns=(5, 1_000_000_007), follow_symlinks=False)
    os.utime(root / "fifo", ns=(5, 2_000_000_007))
    os.utime(root / "dir", ns=(1_333_333_333_000_000_001, 1_444_444_444_000_000_001))
