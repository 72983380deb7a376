"""What a session leaves on disk, in processes, logs, Redis and Flower's pages: for its user alone, and without secrets."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest

from tests.judge import assert_same
from tests.servers import RedisServer, free_port
from tests.system.trees import many_small_files

PASSWORD, KEY, FLOWER = "s3cret-of-the-broker", "0f" * 32, "s3cret-of-flower"


def open_to_others(top):
    """Paths that somebody else could open: neither they nor a directory above them, from ``top`` on, forbid it."""
    found = []
    for directory, dirs, files in os.walk(top):
        for name in list(dirs):
            if not os.lstat(os.path.join(directory, name)).st_mode & 0o077:
                dirs.remove(name)
            else:
                found.append(os.path.join(directory, name))
        found += [
            os.path.join(directory, name)
            for name in files
            if os.lstat(os.path.join(directory, name)).st_mode & 0o077
        ]
    return found


@pytest.fixture
def any_mode():
    """Whoever starts it may have a umask that forbids nobody anything."""
    before = os.umask(0)
    yield
    os.umask(before)


def sockets_below(top):
    return [p for p in Path(top).rglob("*") if stat.S_ISSOCK(p.lstat().st_mode)]


def test_the_state_is_for_its_user_alone(place, any_mode):
    many_small_files(place.primary, 20, 2)
    with place.run() as run:
        run.wait_idle(60)
        assert place.state.stat().st_mode & 0o7777 == 0o700
        redis = place.state.glob("**/redis.sock")
        seen = 0
        for path in redis:
            seen += 1
            assert path.stat().st_mode & 0o7777 == 0o600
            assert path.parent.stat().st_mode & 0o7777 == 0o700
        assert seen or run.redis().connection_pool.connection_kwargs["path"].startswith(
            ("/tmp/seamark-", "/run")
        )
        for path in sockets_below(place.state):
            assert path.stat().st_mode & 0o077 == 0, path
        assert run.stop() == 0
    assert (place.secondary / ".seamark").stat().st_mode & 0o7777 == 0o700


def test_a_state_directory_of_ones_own_making_stays_as_it_is_and_what_is_in_it_is_closed(place, any_mode):
    place.state.mkdir(mode=0o755)
    many_small_files(place.primary, 20, 2)
    run = place.once()
    assert run.process.returncode == 0, run.report()
    assert place.state.stat().st_mode & 0o7777 == 0o755
    assert open_to_others(place.state) == []


def everything_in(client):
    """All keys of a Redis, and what they hold."""
    parts = []
    for key in client.scan_iter(count=1000):
        kind = client.type(key)
        read = {
            b"string": client.get, b"hash": client.hgetall, b"set": client.smembers,
            b"list": lambda k: client.lrange(k, 0, -1), b"zset": lambda k: client.zrange(k, 0, -1),
        }  # fmt: skip
        with contextlib.suppress(Exception):  # it may be gone, or another kind by now
            parts.append(f"{key} {read[kind](key)}")
    return "\n".join(parts)


def page(port, path):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Authorization", "Basic " + b64encode(f"seamark:{FLOWER}".encode()).decode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode(errors="replace")


def secrets_in(text):
    return [secret for secret in (PASSWORD, KEY, FLOWER) if secret in text or secret.encode().hex() in text]


@pytest.mark.timeout(240)
def test_secrets_are_nowhere_to_be_read(place, tmp_path):
    files = {}
    for name, secret in (("broker", PASSWORD), ("key", KEY)):
        files[name] = tmp_path / name
        files[name].write_text(secret + "\n")
        files[name].chmod(0o600)
    password = place.state / "flower" / "password"
    password.parent.mkdir(mode=0o700, parents=True)
    password.write_text(FLOWER + "\n")
    password.chmod(0o600)
    many_small_files(place.primary, 60, 4)
    environment = {
        "SEAMARK_BROKER_PASSWORD_FILE": str(files["broker"]), "SEAMARK_MESSAGE_KEY_FILE": str(files["key"]),
    }  # fmt: skip
    port = free_port()
    with RedisServer(tmp_path, f"requirepass {PASSWORD}") as server:
        broker = f"redis://127.0.0.1:{server.port}/0"
        seen, pages, kept = set(), "", ""
        with place.run("--broker", broker, f"--flower={port}", env=environment) as run:
            until = time.monotonic() + 90
            while not pages:
                assert time.monotonic() < until, run.report()
                for pid in [run.process.pid, *run.children()]:
                    with contextlib.suppress(OSError):
                        seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                        seen.add(Path(f"/proc/{pid}/environ").read_bytes())
                client = server.client(password=PASSWORD)
                kept += everything_in(client)
                with contextlib.suppress(OSError):
                    pages = "".join(
                        page(port, path) for path in ("/sessions", "/workers", "/tasks", "/broker")
                    )
                time.sleep(0.05)
            run.wait_idle(60)
            (place.primary / "later").write_text("x")
            run.wait_same(60)
            kept += everything_in(client)
            pages += "".join(page(port, path) for path in ("/sessions", "/tasks", "/broker", "/metrics"))
            assert run.stop() == 0
        assert_same(place.primary, place.secondary)
        assert "later" in os.listdir(place.secondary)
    assert len(seen) > 4 and len(pages) > 2000 and len(kept) > 2000
    assert secrets_in(" ".join(text.decode(errors="replace") for text in seen)) == []
    assert secrets_in(pages) == []
    assert secrets_in(kept) == []
    assert secrets_in(run.report() + str(run.messages)) == []
    for path in (path for path in place.state.rglob("*") if path.is_file() and path != password):
        assert secrets_in(path.read_bytes().decode(errors="replace")) == [], path
