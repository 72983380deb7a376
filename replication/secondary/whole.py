"""Whole files, and observations that bring their content along: one request, and no question in between.

The primary sends it where it will almost certainly be wanted: what a changelog says was written, and what
stands in a directory that holds nothing here. The content is that of the observed state exactly, so it answers
the very look that it came with. What is not wanted, or could not be placed, is left to the answer of the look.
"""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Set, Tuple, Union

from replication.secondary import digests as versions
from replication.secondary import faults
from replication.secondary import observe as looking
from replication.secondary.agent import Agent
from replication.secondary.aside import Portion, portions
from replication.secondary.content_only import undress
from replication.secondary.metadata import Item
from replication.secondary.observed import ATIME, CTIME, GFID, GID, INO, MODE, MTIME, SIZE, UID, parse
from replication.secondary.protocol import AgentError, unpacked
from replication.secondary.receiver import place

if TYPE_CHECKING:
    from replication.secondary.onlooker import Onlooker


def observe(agent: Agent, request: Dict[str, Any], payload: bytes) -> Dict[str, Any]:
    """observe, and place what content came with it. See docs/formats.md."""
    if not request.get("content"):
        answer = looking.observe(agent, request, {})
        del answer["placed"]
    else:
        if request.get("parsed") is None:
            request["parsed"] = parse(request["listings"])
        with closing(portions(agent, _files(request, payload))) as aside:
            staged, errors = next(aside)
            faults.point("staged")
            answer = looking.observe(agent, request, {file.item.gfid: file for file in staged})
            _place_rest(agent, chain([(staged, errors)], aside), answer)
    answer["empty"] = _without_names(agent, answer["list"])
    return answer


def _files(request: Dict[str, Any], payload: bytes) -> List[Tuple[Item, memoryview]]:
    """Content in the order of the request's `content`: [gfid, xattrs] each, of the observed size."""
    entries = {e[GFID]: e for listing in request["parsed"] for e in listing.entries}
    content = unpacked(request, payload)
    files: List[Tuple[Item, memoryview]] = []
    offset = 0
    for gfid, xattrs in request["content"]:
        e = entries.get(bytes.fromhex(gfid))
        if e is None:
            raise AgentError("protocol", "content of what is not observed")
        piece = _piece(content, offset, e[SIZE])
        offset += e[SIZE]
        item = Item(gfid, e[SIZE], e[MODE], e[UID], e[GID], e[MTIME], e[ATIME], e[CTIME], e[INO], xattrs)
        files.append((item, piece))
    return files


def _place_rest(agent: Agent, aside: Iterator[Portion], answer: Dict[str, Any]) -> None:
    """Place what the look wants, and did not place itself; its answer then asks for the rest only."""
    placed: Set[bytes] = answer.pop("placed")
    wanted = {bytes.fromhex(gfid) for gfid, how in answer["need"] if how in ("new", "data")}
    came: Dict[bytes, int] = {}
    for staged, errors in aside:
        files = [file for file in staged if file.item.gfid in wanted]
        for file in files:
            file.item.ticket = answer["ticket"]
        place(agent, files, errors)
        failed = {error[0] for error in errors}
        placed.update(file.item.gfid for file in files if file.item.gfid.hex() not in failed)
        came.update((file.item.gfid, file.item.size) for file in staged if file.item.gfid in placed)
    answer["need"] = [need for need in answer["need"] if bytes.fromhex(need[0]) not in placed]
    answer["content"] = [len(came), sum(came.values())]


def data(agent: Agent, request: Dict[str, Any], payload: bytes) -> Dict[str, Any]:
    """Whole files. See docs/formats.md."""
    content = unpacked(request, payload)
    files: List[Tuple[Item, memoryview]] = []
    offset = 0
    items = [Item(*fields) for fields in request["items"]]
    undress(agent, items)
    for item in items:
        length = item.size if item.extents is None else sum(n for _, n in item.extents)
        files.append((item, _piece(content, offset, length)))
        offset += length
    problems: List[List[Any]] = []
    done = 0
    with closing(portions(agent, files)) as aside:
        for staged, errors in aside:
            faults.point("staged")
            done += place(agent, staged, errors)
            problems += errors
    return {"errors": problems, "done": done, "bytes": len(content)}


def _piece(content: memoryview, offset: int, length: int) -> memoryview:
    piece = content[offset : offset + length]
    if len(piece) < length:
        raise AgentError("protocol", "the payload is shorter than its items say")
    return piece


def digests(agent: Union[Agent, Onlooker], request: Dict[str, Any]) -> Dict[str, Any]:
    """digests, and which of those that differ hold nothing here, by their position too."""
    answer = versions.digests(agent, request)
    asked = [request["dirs"][i][0] for i in answer["differ"]]
    empty = set(_without_names(agent, asked))
    answer["empty"] = [i for i, gfid in zip(answer["differ"], asked) if gfid in empty]
    return answer


def _without_names(agent: Union[Agent, Onlooker], gfids: List[str]) -> List[str]:
    """Those of these directories of which nothing is known here."""
    if agent.rebuilding:
        return []  # what is here may be right already: it is found by path
    index = agent.index
    rows = index.inodes(bytes.fromhex(gfid) for gfid in gfids)
    known = {row.gfid.hex() for row in rows.values() if index.entries_of(row.id, 1)}
    return [gfid for gfid in gfids if gfid not in known]
