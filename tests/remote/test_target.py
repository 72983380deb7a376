from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.errors import UsageError
from replication.gluster.address import parse_address
from replication.remote.target import Target, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/photos", Target(b"/srv/photos")),
        ("/srv//photos/./", Target(b"/srv/photos")),
        ("/a:b/c", Target(b"/a:b/c")),
        ("/x[1]:y", Target(b"/x[1]:y")),
        ("/", Target(b"/")),
        ("host:/srv/x", Target(b"/srv/x", "host")),
        ("host:/", Target(b"/", "host")),
        ("bob@host.example:/srv/x/", Target(b"/srv/x", "host.example", "bob")),
        ("bob@corp@host:/x", Target(b"/x", "host", "bob@corp")),
        ("[::1]:/x", Target(b"/x", "::1")),
        ("bob@[fe80::1%eth0]:/x y", Target(b"/x y", "fe80::1%eth0", "bob")),
        ("host:/a:b", Target(b"/a:b", "host")),
        ("host:/with\nnewline\udcff", Target(b"/with\nnewline\xff", "host")),
        ("10.0.0.1:/x", Target(b"/x", "10.0.0.1")),
    ],
)
def test_reads(text, expected):
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["a", "./a:b", "a/b:c", "../x"])
def test_relative_local_paths_are_taken_from_here(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    target = parse_target(text)
    assert not target.is_remote
    assert target.path.startswith(os.fsencode(tmp_path))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "[user@]host:/path"),
        ("host:photos", "host:/srv/photos"),
        ("host:", "must be absolute"),
        ("host:~/x", "must be absolute"),
        ("host::module/x", "rsync daemon"),
        ("rsync://host/x", "URL"),
        ("ssh://host/x", "URL"),
        ("-oProxyCommand=x:/x", "not a host name"),
        ("bob@-x:/x", "not a host name"),
        ("-l@host:/x", "not a user name"),
        ("a b:/x", "not a host name"),
        (":/x", "not a host name"),
        ("a\0b", "host:/path"),
        ("::1:/x", "neither a path|rsync daemon|brackets"),
        ("[nonsense!]:/x", "not a host name"),
    ],
)
def test_refuses_with_a_hint(text, hint):
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert any(part in caught.value.message for part in hint.split("|"))
    assert caught.value.exit_code == 2


@given(st.text(min_size=1, max_size=40))
def test_never_anything_but_a_target_or_a_usage_error(text):
    try:
        target = parse_target(text.encode("utf-8", "replace"))
    except UsageError:
        return
    assert target.path.startswith(b"/")
    if target.is_remote:
        assert not target.host.startswith("-")
        assert parse_target(str(target)) == target


PLACE = b"/run/seamark/gluster"


@pytest.mark.parametrize(
    ("text", "host", "user", "path"),
    [
        ("gluster://far.invalid/photos", "far.invalid", None, b"/far.invalid/photos"),
        ("gluster://root@far.invalid/photos/2024/", "far.invalid", "root", b"/far.invalid/photos/2024"),
        ("gluster://127.0.0.1/photos", None, None, b"/127.0.0.1/photos"),
        ("gluster://[::1]/photos", None, None, b"/[::1]/photos"),
        ("gluster://root@127.0.0.1/photos", "127.0.0.1", "root", b"/127.0.0.1/photos"),
        ("gluster://root@[::1]/photos", "::1", "root", b"/[::1]/photos"),
        ("gluster://far.invalid/v/a b/\udcff", "far.invalid", None, b"/far.invalid/v/a b/\xff"),
    ],
)
def test_a_volume_is_mounted_on_the_host_that_it_names(text, host, user, path):
    target = parse_target(text)
    assert (target.host, target.user, target.path) == (host, user, PLACE + path)
    assert str(target) == text.rstrip("/")
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "gluster://",
        "gluster://far",
        "gluster://far/",
        "gluster://-o/v",
        "gluster://a;b@far/v",
        "gluster://far/v/../w",
        "gluster://@@/v",
    ],
)
def test_no_address_of_a_volume(text):
    with pytest.raises(UsageError, match="gluster"):
        parse_target(text)


def test_nobody_logs_in_at_a_primary():
    with pytest.raises(UsageError, match="nobody logs in"):
        parse_address("gluster://root@far/photos")
