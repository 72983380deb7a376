"""Sessions that a host has joined: what their files say, and what is wrong with them, in one line."""

from __future__ import annotations

import os

import pytest

from replication import session_file
from replication.errors import NotFoundError, SeamarkError
from replication.joined import JoinedConfig, JoinedDir, export, joined, joined_file, joined_names
from replication.session import Session, SessionDir
from replication.settings import SessionConfig, SettingsError, SshSettings

ID, INSTANCE = "ab" * 16, "12ab34cd56ef"


def a_session(**changes):
    settings = {"primary": "/srv/home", "secondary": "backup@host:/srv/home", **changes}
    return Session(name="home", id=ID, instance=INSTANCE, **settings)


def join(state, text):
    path = joined_file(state, "home")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return joined(state, "home")


def test_what_is_exported_joins(tmp_path):
    place = join(
        tmp_path, export(a_session(ssh=SshSettings(port=2222, identity="/root/.ssh/k")), tmp_path / "key")
    )
    session = place.load()
    assert (session.name, session.id, session.instance) == ("home", ID, INSTANCE)
    assert (session.primary, session.secondary) == ("/srv/home", "backup@host:/srv/home")
    assert (session.ssh.port, session.ssh.identity) == (2222, "/root/.ssh/k")
    assert joined_names(tmp_path) == ["home"]


def test_paths_of_any_bytes_are_exported(tmp_path):
    odd = os.fsdecode(b"/srv/\xff\n")
    assert join(tmp_path, export(a_session(primary=odd), tmp_path / "key")).load().primary == odd


def test_the_sessions_own_key_is_named_and_not_in_the_file(tmp_path):
    key = tmp_path / "id_ed25519"
    key.write_text("SECRET")
    text = export(a_session(ssh=SshSettings(identity=str(key))), key)
    assert "SECRET" not in text and "identity" not in text and str(key) in text
    place = join(tmp_path, text)
    assert place.load().ssh.identity is None
    place.path.mkdir(parents=True)
    before = place.stamp()
    place.key.write_text("copied")
    assert place.load().ssh.identity == str(place.key)
    assert place.stamp() != before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('primary = "relative"', "primary"),
        ('id = "short"', "id"),
        ("jobs = 3", "there is no key jobs"),
        ('sync_method = "rsync"', "there is no key sync_method"),
        ("primary = ", "line"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, line, words):
    good = session_file.text_of(
        JoinedConfig(primary="/p", secondary="/s", id=ID, instance=INSTANCE), "comment"
    )
    key = line.partition(" ")[0]
    kept = "\n".join(each for each in good.splitlines() if not each.startswith(f"{key} ="))
    place = join(tmp_path, f"{line}\n{kept}\n")
    with pytest.raises(SettingsError, match=words) as error:
        place.load()
    assert str(place.config) in error.value.message and "\n" not in error.value.message


def test_a_session_that_was_not_joined(tmp_path):
    with pytest.raises(NotFoundError, match="workers export home"):
        joined(tmp_path, "home")
    assert joined_names(tmp_path) == []


def test_a_name_that_is_this_hosts_own_is_refused(tmp_path):
    SessionDir(tmp_path, "home").save_run(a_session())
    with pytest.raises(SeamarkError, match="own"):
        join(tmp_path, export(a_session(), tmp_path / "key"))


def test_nothing_of_it_is_a_session_of_this_host(tmp_path):
    """`list` and the monitor know nothing of it."""
    from replication.session import session_names

    place = join(tmp_path, export(a_session(), tmp_path / "key"))
    place.path.mkdir(parents=True)
    assert session_names(tmp_path) == []
    assert isinstance(place, JoinedDir) and place.state() is None


def test_files_of_sessions_are_written_as_before(tmp_path):
    config = SessionConfig(primary="/a", secondary="/b", jobs=3)
    session_file.write_new(tmp_path / "x.toml", config, "said")
    assert session_file.read(tmp_path / "x.toml") == config
