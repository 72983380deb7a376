"""Every command that the README shows is run here, in its order, as it stands there but for paths and hosts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import need
from tests.sshd import ssh_server  # noqa: F401
from tests.test_architecture import ROOT

BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
LIVE = "bin/seamark run /srv/photos backup@host:/srv/photos\n"


def test_the_two_commands_come_first():
    assert BLOCKS[0] == LIVE
    assert BLOCKS[1] == "bin/test\n"
    assert "exec bin/test" in (ROOT / ".ci" / "run").read_text()  # that is how that one is tested


@pytest.fixture
def sandbox(tmp_path):
    """A directory which has the README's bin/, and state of its own."""
    place = tmp_path / "sandbox"
    place.mkdir()
    (place / "bin").symlink_to(ROOT / "bin")
    return place


def _environment(sandbox):
    places = {"STATE": "state", "CACHE": "cache", "CONFIG": "config"}
    return os.environ | {f"XDG_{name}_HOME": str(sandbox / where) for name, where in places.items()}


def _sh(block, sandbox):
    done = subprocess.run(
        ["sh", "-eu", "-c", block],
        cwd=sandbox,
        env=_environment(sandbox),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return done.stdout


def test_what_it_says_about_this_machine(sandbox):
    need("rsync")
    output = {}
    for block in BLOCKS:
        if "photos" not in block and "bin/test" not in block:
            output[block] = _sh(block, sandbox)
    (first, _dry_run, judge) = output
    assert output[first].endswith("Dear reader\n")
    assert "rsync -naHAXSi" in judge
    assert output[judge] == ""


def _over_ssh(block, sandbox, server):
    """The same command with our sshd as the host, and what ~/.ssh/config would say about it as options."""
    known = "" if "--accept-new-host-key" in block else " --accept-new-host-key"
    block = re.sub(r" --identity \S+", "", block)
    options = f"run --ssh-port {server.port} --identity {server.identity}{known}"
    block = block.replace("bin/seamark run", f"bin/seamark {options}")
    block = block.replace("backup@host:/srv/photos", f"{server.user}@{server.host}:{sandbox}/there")
    return block.replace(" /srv/photos", f" {sandbox}/here")


def test_what_it_says_about_ssh(sandbox, ssh_server):  # noqa: F811
    (block,) = [block for block in BLOCKS if "/srv/photos" in block and "--once" in block]
    (sandbox / "here").mkdir()
    (sandbox / "here" / "file").write_text("content")
    _sh(_over_ssh(block, sandbox, ssh_server), sandbox)
    assert (sandbox / "there" / "file").read_text() == "content"


def test_a_session_that_lives_on(sandbox, ssh_server):  # noqa: F811
    create, status = (block for block in BLOCKS if "create photos" in block or "status photos" in block)
    (sandbox / "here").mkdir()
    (sandbox / "here" / "file").write_text("content")
    options = f"create --ssh-port {ssh_server.port} --identity {ssh_server.identity} --accept-new-host-key"
    create = create.replace("bin/seamark create", f"bin/seamark {options}")
    create = create.replace("backup@host:/srv/photos", f"{ssh_server.user}@{ssh_server.host}:{sandbox}/there")
    create = create.replace(" /srv/photos", f" {sandbox}/here")
    said = _sh(create, sandbox)
    shown = (ROOT / "README.md").read_text().split("shows each check as it is made:")[1].split("```")[1]
    for line in shown.strip().splitlines():
        assert line.split(":")[0] in said, line  # each of the checks that are shown is made
    monitor = subprocess.Popen(
        ["bin/seamark", "monitor"], cwd=sandbox, env=_environment(sandbox), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while not (sandbox / "there" / "file").exists() or (
            "HEALTHY                    Yes" not in (said := _sh(status, sandbox))
        ):
            assert time.monotonic() < deadline, said
            time.sleep(1)
        assert "STATUS                     Active" in said
        assert (sandbox / "there" / "file").read_text() == "content"
    finally:
        monitor.terminate()
        assert monitor.wait(60) == 0


def test_the_first_command_follows_changes_until_ctrl_c(sandbox, ssh_server):  # noqa: F811
    (sandbox / "here").mkdir()
    (sandbox / "here" / "before").write_text("1")
    command = _over_ssh(LIVE, sandbox, ssh_server)
    log = sandbox / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=sandbox,
            env=_environment(sandbox),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait_for(sandbox / "there" / "before", "1", process, log)
        (sandbox / "here" / "later").write_text("2")
        _wait_for(sandbox / "there" / "later", "2", process, log)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all
        assert process.wait(45) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "Traceback" not in log.read_text()
    until = time.monotonic() + 20  # a child that was told to end may take a moment
    while left := subprocess.run(
        ["pgrep", "-as", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout:
        assert time.monotonic() < until, f"processes were left behind: {left}"
        time.sleep(0.1)


def _wait_for(path: Path, content: str, process, log, seconds=60):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text() == content):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{path.name} did not arrive\n{log.read_text()}"
        time.sleep(0.05)


def test_every_option_is_in_the_readme_and_the_other_way_round():
    from seamark.commands.run import run

    text = (ROOT / "README.md").read_text()
    table = text.split("## Options of `seamark run`")[1].split("\n## ")[0]
    told = set(re.findall(r"--[a-z][a-z-]+", table))
    real = {
        name for option in run.params for name in [*option.opts, *option.secondary_opts] if name[:2] == "--"
    }
    assert told == real


def test_every_link_leads_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_test_that_a_document_names_is_there():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for path, name in re.findall(r"`(tests/[\w./]+)(?:::(\w+))?", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name}: {path}"
            if name:
                assert f"def {name}(" in (ROOT / path).read_text(), f"{document.name}: {path}::{name}"
