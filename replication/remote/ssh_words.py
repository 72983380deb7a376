"""Options of ssh_config(5) that a session may set: those that cannot run a command, or weaken whom we trust.

Both ways to the secondary obey them: the system's ssh, which rsync and tar use, and our own connection (ssh.py).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable

_NAMES = r"[A-Za-z0-9@._-]+"
_LIST = re.compile(rf"[+^-]?{_NAMES}(,{_NAMES})*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+")
_JUMP = rf"(ssh://)?({_NAMES}@)?(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._][A-Za-z0-9._-]*)(:[0-9]{{1,5}})?"
_SECONDS = re.compile(r"[1-9][0-9]{0,4}")
_QOS = re.compile(r"[a-z0-9]+( [a-z0-9]+)?")

# By the name in lower case: as ssh_config(5) writes it, and what it may be.
_ALLOWED = {
    "addressfamily": ("AddressFamily", re.compile("any|inet|inet6")),
    "bindaddress": ("BindAddress", _ADDRESS),
    "ciphers": ("Ciphers", _LIST),
    "compression": ("Compression", re.compile("yes|no")),
    "connecttimeout": ("ConnectTimeout", _SECONDS),
    "hostkeyalgorithms": ("HostKeyAlgorithms", _LIST),
    "ipqos": ("IPQoS", _QOS),
    "kexalgorithms": ("KexAlgorithms", _LIST),
    "macs": ("MACs", _LIST),
    "proxyjump": ("ProxyJump", re.compile(rf"none|{_JUMP}(,{_JUMP})*")),
    "serveralivecountmax": ("ServerAliveCountMax", _SECONDS),
    "serveraliveinterval": ("ServerAliveInterval", _SECONDS),
}
# ipqos_from name to DSCP, RFC 2474, 2597, 3246, 8622; or the older words of RFC 1349.
_CLASSES = {
    "ef": 0xB8, "le": 0x04, "lowdelay": 0x10, "throughput": 0x08, "reliability": 0x04,
    **{f"cs{n}": n << 5 for n in range(8)},
    **{f"af{c}{d}": (c << 5) | (d << 3) for c in range(1, 5) for d in range(1, 4)},
}  # fmt: skip


def check_options(texts: Iterable[str]) -> dict[str, str]:
    """``Keyword=value`` each, as {keyword in lower case: value}. Raises ValueError that says what would be right."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"{text!r} will not do: give Keyword=value, as in ssh_config")
        if name.lower() not in _ALLOWED:
            known = ", ".join(spelled for spelled, _ in _ALLOWED.values())
            raise ValueError(f"{name} may not be set here; what may is: {known}")
        spelled, pattern = _ALLOWED[name.lower()]
        if not pattern.fullmatch(value):
            raise ValueError(f"{value!r} will not do for {spelled}")
        found[name.lower()] = value
    return found


def as_arguments(texts: Iterable[str]) -> list[str]:
    """For the system's ssh. Raises ValueError."""
    return [f"-o{_ALLOWED[name][0]}={value}" for name, value in check_options(texts).items()]


def open_socket(where: tuple[str, int], timeout_s: float, said: dict[str, str]) -> socket.socket:
    """A connection by AddressFamily, BindAddress and IPQoS. Raises OSError."""
    family = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(
        said.get("addressfamily", ""), socket.AF_UNSPEC
    )
    if not said:
        return socket.create_connection(where, timeout_s)
    source = (said["bindaddress"], 0) if "bindaddress" in said else None
    failed: OSError = socket.gaierror(socket.EAI_NONAME, "no address of that family")
    for each, _, _, _, address in socket.getaddrinfo(*where, family, socket.SOCK_STREAM):
        try:
            sock = socket.create_connection((str(address[0]), int(address[1])), timeout_s, source)
        except OSError as error:
            failed = error
            continue
        mark = _mark(said.get("ipqos", ""))
        if mark is not None and each == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, mark)
        elif mark is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, mark)
        return sock
    raise failed


def _mark(words: str) -> int | None:
    """Of two words the second is for what is not interactive."""
    word = words.rsplit(" ", maxsplit=1)[-1]
    if not word or word == "none":
        return None
    return _CLASSES[word] if word in _CLASSES else int(word, 0) & 0xFF if word[:1].isdigit() else None
