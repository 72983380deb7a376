"""Addresses of servers, as URLs that may hold a password: ``redis://user:password@host:6379/0``.

Several sentinels are divided by semicolons.
"""

from __future__ import annotations

import re

_IN_QUERY = re.compile(r"([?&]password=)[^&]*")


def scheme(url: str) -> str:
    return url.partition("://")[0]


def _user_and_rest(part: str) -> tuple[str, str]:
    """``user:password`` of one address, empty where there is none, and what comes after it."""
    rest = part.partition("://")[2]
    if rest.startswith("/"):  # a socket
        return "", rest
    user, _, after = rest.rpartition("@")
    return user, after


def shown(url: str) -> str:
    """An address as it may be shown and logged."""
    return ";".join(_shown(part) for part in url.split(";"))


def _shown(part: str) -> str:
    user, rest = _user_and_rest(part)
    hidden = f"{user.partition(':')[0]}:…@" if ":" in user else f"{user}@" if user else ""
    return f"{scheme(part)}://{hidden}" + _IN_QUERY.sub(r"\1…", rest)


def has_password(url: str) -> bool:
    return any(":" in _user_and_rest(part)[0] for part in url.split(";")) or bool(_IN_QUERY.search(url))


def with_password(part: str, password: str) -> str:
    """One address with this password, which is quoted already, in it."""
    user, rest = _user_and_rest(part)
    return f"{scheme(part)}://{user}:{password}@{rest}"
