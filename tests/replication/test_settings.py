"""Settings: every key is explained, what is wrong is named, and files survive being changed."""

from __future__ import annotations

import os
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication import session_file, settings
from replication.session import Desired, SessionDir, SessionError, SessionState, known_session, session_names
from replication.settings import SessionConfig, SettingsError, SshSettings

PAIR = {"primary": "/a", "secondary": "host:/b"}


def test_every_key_is_explained_and_its_default_is_a_value():
    for key in settings.keys().values():
        assert len(key.meaning) > 10, key
        if key.default is not None:
            assert msgspec.convert(key.default, key.type) == key.default


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('primary = "/a"', "secondary is missing"),
        ("primary = 3\nsecondary = 'x'", "primary: expected str, got int"),
        ("primary = '/a'\nsecondary = 'x'\njobs = 0", "jobs: expected int >= 1"),
        ("primary = '/a'\nsecondary = 'x'\njbos = 3", "there is no key jbos; did you mean jobs?"),
        ("primary = '/a'\nsecondary = 'x'\nsync_method = 'ftp'", "one of auto, rsync, tar, stream"),
        (
            "primary = '/a'\nsecondary = 'x'\n[ssh]\nprot = 3",
            "there is no key ssh.prot; did you mean ssh.port?",
        ),
        ("primary = '/a'\nsecondary = 'x'\n[ssh]\nport = 70000", "ssh.port"),
        ("jobs = ", "Invalid value"),
        ("primary = '/a'\nsecondary = 'x'\nbandwidth = 'fast'", "bandwidth: 'fast' will not do: give a rate"),
        ("primary = '/a'\nsecondary = 'x'\nfilters = ['* x']", "'* x' is no rule"),
        (
            "primary = '/a'\nsecondary = 'x'\n[ssh]\noptions = ['ProxyCommand=x']",
            "ProxyCommand may not be set here",
        ),
        (
            "primary = '/a'\nsecondary = 'x'\n[ssh]\noptions = ['ProxyJump=-oProxyCommand=x']",
            "will not do for ProxyJump",
        ),
        (
            "primary = '/a'\nsecondary = 'x'\n[schedule]\nat = 'noon'",
            "schedule: 'noon' will not do: give a cron",
        ),
        ("primary = '/a'\nsecondary = 'x'\n[schedule]\ntimezone = 'Mars'", "no time zone"),
        (
            "primary = '/a'\nsecondary = 'x'\n[schedule]\nduration = '1s'",
            "schedule: duration: it must be from 1m to 7d",
        ),
        ("primary = '/a'\nsecondary = 'x'\n[schedule]\nduration = true", "schedule.duration"),
        ("encoding = 'rot13'\nprimary = '/a'\nsecondary = 'x'", "encoding"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, says):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        session_file.read(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "s.toml"
    path.write_bytes(b"\0\xff{garbage")
    with pytest.raises(SettingsError, match="s.toml"):
        session_file.read(path)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("jobs", "4", 4),
        ("sync-method", "tar", "tar"),
        ("ssh.port", "22", 22),
        ("ssh.accept-new-host-key", "true", True),
        ("bandwidth", "08:00,1M 19:00,off", "08:00,1M 19:00,off"),
        ("schedule.duration", " 2h ", "2h"),
        ("filters", "- *.o\n+ a, b", ["- *.o", "+ a, b"]),
        ("filters", "['- *.o']", ["- *.o"]),
        ("max-delete", "10%", "10%"),
        (
            "ssh.options",
            "ProxyJump=a@b:22,c\nciphers = aes128-gcm@openssh.com",
            ["ProxyJump=a@b:22,c", "ciphers = aes128-gcm@openssh.com"],
        ),
        ("log.agent", "debug", "debug"),
    ],
)
def test_words_become_values(name, text, value):
    key = settings.key_named(name)
    assert settings.parse(key, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jobs", "many"),
        ("jobs", "65"),
        ("ssh.port", "0"),
        ("sync_method", ""),
        ("filters", "[x"),
        ("max_delete", "many"),
        ("log.beat", "loud"),
        ("bandwidth", ""),
    ],
)
def test_words_that_will_not_do_are_refused(name, text):
    with pytest.raises(SettingsError, match=name):
        settings.parse(settings.key_named(name), text)


def test_the_pair_is_fixed():
    with pytest.raises(SettingsError, match="fixed"):
        settings.key_named("primary")


def test_comments_and_order_outlive_a_change(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(
        '# ours\nsecondary = "host:/b" # far\nprimary = "/a"\n\n# keys\n[ssh]\nport = 22 # usual\n'
    )
    session_file.set_key(path, settings.key_named("ssh.port"), 2222)
    session_file.set_key(path, settings.key_named("jobs"), 3)
    text = path.read_text()
    assert "# ours" in text
    assert "# far" in text
    assert "port = 2222 # usual" in text
    assert session_file.read(path) == SessionConfig(**PAIR, jobs=3, ssh=SshSettings(port=2222))
    session_file.reset_key(path, settings.key_named("ssh.port"))
    session_file.reset_key(path, settings.key_named("ssh.identity"))  # stood nowhere
    assert session_file.read(path) == SessionConfig(**PAIR, jobs=3)


def test_a_change_that_would_not_load_again_is_never_written(tmp_path):
    path = tmp_path / "s.toml"
    session_file.write_new(path, SessionConfig(**PAIR), "ours")
    before = path.read_bytes()
    with pytest.raises(SettingsError):
        session_file.set_key(path, settings.key_named("jobs"), 1000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.toml"]


texts = st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b).map(os.fsdecode)


@given(primary=texts, secondary=texts, jobs=st.integers(1, 64), port=st.none() | st.integers(1, 65535))
def test_any_configuration_comes_back(tmp_path_factory, primary, secondary, jobs, port):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    config = SessionConfig(primary=primary, secondary=secondary, jobs=jobs, ssh=SshSettings(port=port))
    session_file.write_new(path, config, "any")
    assert session_file.read(path) == config
    tomllib.loads(path.read_text(encoding="utf-8"))


# ---- where sessions live


def test_a_session_is_known_by_its_file_or_its_state(tmp_path):
    assert session_names(tmp_path) == []
    place = SessionDir(tmp_path, "photos")
    session_file.write_new(place.named_config, SessionConfig(**PAIR), "ours")
    SessionDir(tmp_path, "docs").save_state(SessionState(id="1"))
    assert session_names(tmp_path) == ["docs", "photos"]
    assert known_session(tmp_path, "docs").name == "docs"
    with pytest.raises(SessionError, match="there is no session docs"):
        known_session(tmp_path, "docs").load()


def test_state_is_remembered_and_its_damage_is_named(tmp_path):
    place = SessionDir(tmp_path, "photos")
    session_file.write_new(place.named_config, SessionConfig(**PAIR), "ours")
    assert place.state() is None
    assert place.load().id == place.change_state(desired=Desired.PAUSED).id
    assert place.state().desired is Desired.PAUSED
    assert place.change_state(adopt=True).desired is Desired.PAUSED
    assert place.load().adopt
    for text in ("", "{}", '{"id": 3}', "\0"):
        place.state_file.write_text(text)
        with pytest.raises(SessionError, match="state.json is damaged"):
            place.state()
