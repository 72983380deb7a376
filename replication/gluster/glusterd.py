"""What glusterd says of a volume, by way of gluster(8) on a node of its pool."""

from __future__ import annotations

import os
import shutil
import subprocess
from hashlib import blake2b
from typing import NamedTuple
from xml.etree import ElementTree as ET

from replication.errors import NotFoundError, SeamarkError, TemporaryError

_PATIENCE_S = 60.0
_SBIN = ("/usr/sbin", "/sbin")


class Brick(NamedTuple):
    """``host`` as the volume's information has it; ``local``: it is on this node."""

    host: str
    path: str
    local: bool
    arbiter: bool

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"


class VolumeInfo(NamedTuple):
    """``sets``: bricks that hold the same files (or pieces of the same files), in the order of the volume's information."""

    name: str
    id: str
    started: bool
    sets: tuple[tuple[Brick, ...], ...]
    options: dict[str, str]

    @property
    def bricks(self) -> list[Brick]:
        return [brick for each in self.sets for brick in each]


def program(name: str) -> str:
    """The path of gluster or glusterfs. Raises SeamarkError where it is not installed."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    if found is None:
        raise SeamarkError(f"{name} is not installed here: run Seamark on a node of the volume's pool")
    return found


def _ask(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Raises TemporaryError where glusterd does not answer in time."""
    command = [program("gluster"), "--mode=script", *words]
    try:
        return subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise TemporaryError(f"glusterd has not answered within {_PATIENCE_S:.0f} s") from None


def _silent(done: subprocess.CompletedProcess[bytes]) -> TemporaryError:
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return TemporaryError(f"glusterd does not answer: {said[-1] if said else 'it says nothing'}")


def gluster(*words: str) -> ET.Element:
    """One command of the local glusterd; its answer. Raises SeamarkError, with glusterd's own words."""
    done = _ask("--xml", *words)
    try:
        answer = ET.fromstring(done.stdout)  # noqa: S314 - of our own glusterd
    except ET.ParseError:
        raise _silent(done) from None
    if answer.findtext("opRet") != "0":
        raise SeamarkError(f"gluster {' '.join(words)}: {answer.findtext('opErrstr') or 'refused'}")
    return answer


def volume_info(name: str) -> VolumeInfo:
    """Raises SeamarkError: no such volume, no glusterd."""
    here = _own_uuid()
    try:
        found = gluster("volume", "info", name).find("volInfo/volumes/volume")
    except TemporaryError:
        raise
    except SeamarkError as error:
        raise NotFoundError(f"{error.message}: is {name} a volume of this node's pool?") from None
    if found is None:
        raise NotFoundError(f"there is no volume {name} in this node's pool")
    bricks = [_brick(each, here) for each in found.findall("bricks/brick")]
    size = max(_number(found, "replicaCount"), _number(found, "disperseCount"), 1)
    options = {
        each.findtext("name") or "": each.findtext("value") or "" for each in found.findall("options/option")
    }
    return VolumeInfo(
        name,
        found.findtext("id") or "",
        found.findtext("statusStr") == "Started",
        tuple(tuple(bricks[at : at + size]) for at in range(0, len(bricks), size)),
        options,
    )


def _number(volume: ET.Element, name: str) -> int:
    return int(volume.findtext(name) or 0)


def _brick(found: ET.Element, here: str) -> Brick:
    host, _, path = (found.findtext("name") or "").rpartition(":")
    return Brick(host, path, found.findtext("hostUuid") == here, found.findtext("isArbiter") == "1")


def _own_uuid() -> str:
    for peer in gluster("pool", "list").findall("peerStatus/peer"):
        if peer.findtext("hostname") == "localhost":
            return peer.findtext("uuid") or ""
    return ""


def volume_file(name: str) -> str:
    """A file that glusterd writes whenever the volume is changed. Raises SeamarkError."""
    done = _ask("system::", "getwd")
    directory = done.stdout.strip()
    if not directory.startswith(b"/"):
        raise _silent(done)
    return os.path.join(os.fsdecode(directory), "vols", name, "info")


def root_of_volume(name: str, gfid: str) -> str:
    """Identity of the directory ``gfid`` of a volume that is started. Every volume's root has the same gfid. Raises SeamarkError."""
    info = volume_info(name)
    if not info.started:
        raise TemporaryError(f"volume {name} is not started: gluster volume start {name}")
    return blake2b(f"{info.id}/{gfid}".encode(), digest_size=16).hexdigest()


def rebalance_runs(volume: str) -> bool:
    """Whether some node moves files of it at the moment. Raises SeamarkError where glusterd does not answer."""
    try:
        answer = gluster("volume", "rebalance", volume, "status")
    except TemporaryError:
        raise
    except SeamarkError:
        return False  # there is none
    return any(each.findtext("status") == "1" for each in answer.iter("node"))


def set_option(volume: str, option: str, value: str) -> None:
    """`gluster volume set`. Raises SeamarkError."""
    gluster("volume", "set", volume, option, value)
