"""Judges of a replica that nobody here wrote: rsync, and mtree."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

RSYNC = ("rsync", "-naHAXSi", "--delete", "--checksum", "--numeric-ids")
_MTREE_KEYS = "type,mode,uid,gid,size,link,time,nlink,sha256,device"
_VANISHED = 24  # rsync(1): partial transfer due to vanished source files
_NOT_OURS = (
    "--exclude=/.seamark",
    "--filter=-x system.*",  # as ever, but for whoever gives a filter of his own (ACLs are compared all the same)
    # Gluster's own, of hard links that waited to be moved: each mount shows them for good. The secondary has none.
    "--filter=-xs trusted.glusterfs.*",
    # A session's own, on both roots: written while it runs, to one of them first.
    "--filter=-x trusted.seamark.*.stime",
    "--filter=-x user.seamark.*.stime",
)


def rsync_differences(primary, secondary, *options) -> list[str]:
    """What rsync would change to make ``secondary`` equal to ``primary``; empty means equal."""
    done = subprocess.run(
        [*RSYNC, *_NOT_OURS, *options, f"{os.fspath(primary)}/", f"{os.fspath(secondary)}/"],
        capture_output=True, check=False,
    )  # fmt: skip
    errors = done.stderr.decode(errors="replace").splitlines()
    gone = errors and all("No such file" in line or line.startswith("rsync error:") for line in errors)
    if done.returncode == _VANISHED or gone:
        return [f"it changed while rsync looked: {errors[:1]}"]
    assert done.returncode == 0, f"rsync could not compare ({done.returncode}): {errors[:5]}"
    return done.stdout.decode(errors="backslashreplace").splitlines()


def mtree_differences(primary, secondary, keys=_MTREE_KEYS) -> list[str]:
    """What mtree (with nlink and sha256, or other ``keys``) says of ``secondary`` against a specification of ``primary``."""
    mtree = shutil.which("mtree", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin")
    assert mtree, "mtree is not installed (package mtree-netbsd)"
    exclude = os.path.join(os.path.dirname(__file__), "mtree.exclude")
    spec = subprocess.run(
        [mtree, "-c", "-k", keys, "-X", exclude, "-p", os.fspath(primary)],
        capture_output=True,
        check=True,
    ).stdout
    # mtree stumbles over names with a newline, even against the very tree it has just described.
    return sorted(
        set(_mtree_lines(mtree, exclude, spec, secondary)) - set(_mtree_lines(mtree, exclude, spec, primary))
    )


def _mtree_lines(mtree, exclude, spec, tree) -> list[str]:
    done = subprocess.run(
        [mtree, "-X", exclude, "-p", os.fspath(tree)], input=spec, capture_output=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="backslashreplace").splitlines()


def differences(primary, secondary) -> list[str]:
    """What either judge says: rsync, then, as it does not see a link too many, mtree."""
    return rsync_differences(primary, secondary) or mtree_differences(primary, secondary)


def details(found: list[str], *roots: str | os.PathLike[str]) -> list[str]:
    """What stands in each root at the paths of which a judge says that they differ."""
    lines = [line for line in found if not line.startswith("\t")]
    paths = [line.rstrip(": ") if line.rstrip().endswith(":") else line.partition(" ")[2] for line in lines]
    said = []
    for path in (path.partition(" => ")[0] for path in paths[:5]):
        for root in roots:
            with contextlib.suppress(OSError):
                where = os.path.join(root, path)
                at = os.lstat(where)
                values = {
                    name: os.getxattr(where, name, follow_symlinks=False)
                    for name in os.listxattr(where, follow_symlinks=False)
                }
                said.append(f"{where}: {at.st_mode:o}, {at.st_size} bytes, {at.st_nlink} links, {values}")
    return said


def differences_but_link_counts(primary, secondary) -> list[str]:
    """The same of a replicated Gluster volume: what was taken from its names while a brick was healed counts as a link of it.

    So which names are one file is compared instead.
    """
    keys = _MTREE_KEYS.replace("nlink,", "")
    return (
        rsync_differences(primary, secondary)
        or mtree_differences(primary, secondary, keys)
        or sorted(map(str, _linked(primary) ^ _linked(secondary)))
    )


def _linked(root) -> set[tuple[str, ...]]:
    """The names of each file that has several, below ``root``."""
    found: dict[int, list[str]] = {}
    for folder, folders, files in os.walk(root):
        if folder == os.fspath(root) and ".seamark" in folders:
            folders.remove(".seamark")
        for name in files:
            path = os.path.join(folder, name)
            found.setdefault(os.lstat(path).st_ino, []).append(os.path.relpath(path, root))
    return {tuple(sorted(names)) for names in found.values() if len(names) > 1}


def assert_same(primary, secondary) -> None:
    """Both judges agree that nothing differs."""
    by_rsync = rsync_differences(primary, secondary)
    assert not by_rsync, f"rsync: {len(by_rsync)} differences: {by_rsync[:20]}"
    by_mtree = mtree_differences(primary, secondary)
    assert not by_mtree, f"mtree: {len(by_mtree)} differences: {by_mtree[:20]}"
