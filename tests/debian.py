"""A base image for containers made of this host's own Debian packages: where no registry can be reached, or should be.

Only what belongs to the packages asked for, to what they depend on, and to what is essential; nothing of the host's own.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tarfile
from pathlib import Path

DPKG = Path("/var/lib/dpkg")
_DULL = re.compile(r"/usr/share/(doc|man|locale|info|lintian)/.")
# How this host reaches package archives and indexes, and whom it trusts there.
_HOW_TO_FETCH = ("/etc/apt", "/etc/pip.conf", "/etc/ssl/certs", "/usr/share/keyrings", "/etc/ld.so.cache")


def packages() -> dict[str, dict[str, str]]:
    """What is installed here, with the fields of its dpkg status(5) by their names."""
    found = {}
    for paragraph in (DPKG / "status").read_text(errors="replace").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = {**fields, "": paragraph}
    return found


def absent(*wanted: str) -> list[str]:
    """Those of these packages that are not installed here."""
    known = packages() if (DPKG / "status").exists() else {}
    return [name for name in wanted if name not in known]


def write_root(path: Path, *wanted: str) -> None:
    """A tar file with the root of a system that has these packages."""
    known = packages()
    chosen = _closure(known, wanted)
    with tarfile.open(path, "w") as tar:
        for place in sorted(_places(known, chosen)):
            tar.add(place, place.lstrip("/"), recursive=False)
        status = "\n\n".join(known[name][""].strip() for name in sorted(chosen)) + "\n"
        _text(tar, "var/lib/dpkg/status", status)
        _accounts(tar)


def _closure(known: dict[str, dict[str, str]], wanted: tuple[str, ...]) -> set[str]:
    provided: dict[str, str] = {}
    for name, fields in known.items():
        for virtual in re.findall(r"[a-z0-9][a-z0-9+.-]+(?= \(|,|$)", fields.get("Provides", "")):
            provided.setdefault(virtual, name)
    todo = [*wanted, *(name for name, fields in known.items() if fields.get("Essential") == "yes"), "apt"]
    chosen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in chosen:
            continue
        chosen.add(name)
        needs = ", ".join(filter(None, (known[name].get(key) for key in ("Depends", "Pre-Depends"))))
        for alternatives in filter(None, needs.split(", ")):
            names = [re.split(r"[ :(]", one.strip())[0] for one in alternatives.split("|")]
            found = next((one for one in names if one in known), None)
            todo.append(found or next(provided[one] for one in names if one in provided))
    return chosen


def _places(known: dict[str, dict[str, str]], chosen: set[str]) -> set[str]:
    """The paths of what these packages brought, each below its real directory, and of alternatives."""
    found = {str(DPKG / "info" / "format"), "/usr/local", "/usr/local/bin"}  # made when a system is installed
    for name in chosen:
        for info in (DPKG / "info" / name, DPKG / "info" / f"{name}:{known[name]['Architecture']}"):
            for file in info.parent.glob(f"{info.name}.*"):
                found.add(str(file))
            with contextlib.suppress(FileNotFoundError):
                listed = info.with_name(f"{info.name}.list").read_text().splitlines()
                found.update(_real(path) for path in listed if not _DULL.match(path))
    for place in _HOW_TO_FETCH:
        found.add(place)
        found.update(
            os.path.join(at, name) for at, folders, files in os.walk(place) for name in (*folders, *files)
        )
    for directory in ("/usr/bin", "/usr/sbin"):
        for entry in os.scandir(directory):
            if entry.is_symlink() and os.readlink(entry).startswith("/etc/alternatives/"):
                found.update((entry.path, os.readlink(entry)))
    return {path for path in found if path != "/." and os.path.lexists(path)}


def _real(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name)


def _accounts(tar: tarfile.TarFile) -> None:
    """The accounts of the system and of its packages, without passwords; no people."""
    people = range(1000, 65000)
    for kind in ("passwd", "group"):
        lines = [line.split(":") for line in Path("/etc", kind).read_text().splitlines()]
        kept = [fields for fields in lines if int(fields[2]) not in people]
        if kind == "group":
            kept = [[*fields[:3], ""] for fields in kept]
        else:
            _text(tar, "etc/shadow", "".join(f"{fields[0]}:*:19000:0:99999:7:::\n" for fields in kept), 0o600)
        _text(tar, f"etc/{kind}", "".join(":".join(fields) + "\n" for fields in kept))


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), mode
    tar.addfile(entry, io.BytesIO(text.encode()))
