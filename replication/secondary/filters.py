"""Which names are replicated: include and exclude rules with rsync's patterns.

Both sides use this: the primary sends nothing of what is excluded, and the secondary takes nothing of it
away. Source: rsync(1), INCLUDE/EXCLUDE PATTERN RULES; tests compare with rsync itself. Paths are bytes,
relative to the root.
"""

from __future__ import annotations

import re
from typing import Iterable, List, Pattern, Tuple

_KINDS = {"+": True, "include": True, "-": False, "exclude": False}
_ANYTHING, _ONLY_DIRS, _ALL_BELOW = range(
    3
)  # "a", "a/", "a/***": the last matches a directory with its slash
_WILD = re.compile(rb"[*?\[]")


class RuleError(ValueError):
    """A rule that is none."""


class Filters:
    """Rules, of which the first that matches decides. What no rule matches is included."""

    def __init__(self, rules: Iterable[str] = ()) -> None:
        """Raises RuleError."""
        self.texts = tuple(rules)
        self._rules: List[Tuple[bool, int, Pattern[bytes]]] = [_compile(text) for text in self.texts]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, path: bytes, is_dir: bool) -> bool:
        """Whether this very path is excluded, though all directories above it may be included."""
        path = b"/" + path
        for included, kind, pattern in self._rules:
            if kind != _ONLY_DIRS or is_dir:
                if pattern.search(path + b"/" if kind == _ALL_BELOW and is_dir else path):
                    return not included
        return False

    def excludes_dir(self, path: bytes) -> bool:
        """Whether a directory, or one that it lies in, is excluded: nothing below it is looked at."""
        if not self._rules or not path:
            return False
        parts = path.split(b"/")
        return any(self.excludes(b"/".join(parts[:depth]), True) for depth in range(1, len(parts) + 1))


def _compile(text: str) -> Tuple[bool, int, Pattern[bytes]]:
    word, _, rest = text.strip().partition(" ")
    included = _KINDS.get(word)
    pattern = rest.strip().encode("utf-8", "surrogateescape")
    if included is None or not pattern.strip(b"/"):
        raise RuleError(
            "{!r} is no rule: give '- PATTERN' to exclude, or '+ PATTERN' to include".format(text)
        )
    everything_below = pattern.endswith(b"/***")
    only_dirs = pattern.endswith(b"/") and not everything_below
    body = pattern[:-4] if everything_below else pattern.rstrip(b"/") if only_dirs else pattern
    if not body:  # "/***": the root, and all below it
        return included, _ANYTHING, re.compile(b"")
    anchored = body.startswith(b"/")
    whole_path = anchored or b"/" in body or b"**" in body or everything_below
    # What is searched begins with a slash. A pattern may match after any slash, but for one that begins with "**".
    start = b"\\A/" if anchored else b"\\A" if body.startswith(b"**") else b"(?<=/)"
    if not whole_path:
        start = b"(?<=/)(?=[^/]*\\Z)"
    end = b"/.*\\Z" if everything_below else b"\\Z"
    kind = _ALL_BELOW if everything_below else _ONLY_DIRS if only_dirs else _ANYTHING
    try:
        return included, kind, re.compile(start + _translate(body.lstrip(b"/")) + end, re.DOTALL)
    except re.error as error:
        raise RuleError("{!r}: {}".format(text, error)) from None


def _translate(pattern: bytes) -> bytes:
    """rsync's wildcards as a regular expression. A backslash means itself where there is no wildcard."""
    if not _WILD.search(pattern):
        return re.escape(pattern)
    made, at = [], 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        at += 1
        if byte == b"*":
            if pattern[at : at + 1] == b"*":
                at += len(pattern[at:]) - len(pattern[at:].lstrip(b"*"))
                made.append(b".*")
            else:
                made.append(b"[^/]*")
        elif byte == b"?":
            made.append(b"[^/]")
        elif byte == b"[":
            at, text = _bracket(pattern, at)
            made.append(text)
        elif byte == b"\\" and at < len(pattern):
            made.append(re.escape(pattern[at : at + 1]))
            at += 1
        else:
            made.append(re.escape(byte))
    return b"".join(made)


_CLASSES = {
    b"alnum": b"a-zA-Z0-9", b"alpha": b"a-zA-Z", b"blank": b" \\t", b"digit": b"0-9", b"lower": b"a-z", b"upper": b"A-Z",
    b"punct": b"!-/:-@\\[-`{-~", b"space": b" \\t-\\r", b"xdigit": b"0-9A-Fa-f", b"cntrl": b"\\x00-\\x1f\\x7f",
    b"print": b" -~", b"graph": b"!-~",
}  # fmt: skip


def _bracket(pattern: bytes, at: int) -> Tuple[int, bytes]:
    """A set of characters from just after its ``[``. Raises RuleError when it does not end."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    parts: List[bytes] = []
    first = True
    while True:
        if at >= len(pattern):
            raise RuleError("a '[' without its ']'")
        byte = pattern[at : at + 1]
        if byte == b"]" and not first:
            at += 1
            break
        first = False
        name = re.match(rb"\[:([a-z]+):\]", pattern[at:])
        if name and name[1] in _CLASSES:
            parts.append(_CLASSES[name[1]])
            at += name.end()
            continue
        if byte == b"\\" and at + 1 < len(pattern):
            at += 1
            byte = pattern[at : at + 1]
        at += 1
        if pattern[at : at + 1] == b"-" and pattern[at + 1 : at + 2] not in (b"]", b""):
            at += 1
            if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
                at += 1
            last = pattern[at : at + 1]
            at += 1
            if byte <= last:
                parts.append(re.escape(byte) + b"-" + re.escape(last))
            continue
        parts.append(re.escape(byte))
    inside = b"".join(parts)
    if not inside:
        return at, b"[^/]" if negated else b"(?!)"
    return at, b"(?!/)[" + (b"^" if negated else b"") + inside + b"]"


EVERYTHING = Filters()
