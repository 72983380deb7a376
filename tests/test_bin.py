"""bin/seamark and bin/test on a machine where nothing was prepared by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import need
from tests.test_architecture import ROOT

CODE = ["bin", "replication", "tasks", "scheduler", "seamark", "celeryconfig.py", "requirements.lock"]
SCRIPTS = ["bin/seamark", "bin/test", "bin/audit", "bin/environment.sh", ".ci/run"]
# What a plain system has; no Python of ours, no settings but where packages come from.
PLAIN = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}


@pytest.fixture
def checkout(tmp_path):
    """The code as a fresh clone has it, with an environment of its own to be made."""
    top = tmp_path / "a clone"
    top.mkdir()
    for name in CODE:
        source, target = ROOT / name, top / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return top


def _environment(**more):
    package_index = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    return PLAIN | package_index | more


def _run(command, *words, env=None, timeout=300):
    return subprocess.run(
        [str(command), *words],
        env=_environment() if env is None else env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd="/",
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_first_use_prepares_everything_and_the_next_is_quick(checkout, tmp_path):
    link = tmp_path / "seamark"  # as somebody would put it into their PATH
    link.symlink_to(checkout / "bin" / "seamark")
    both = [
        subprocess.Popen(
            [link, "version"],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        for _ in range(2)  # two at once: one prepares, the other waits for it
    ]
    results = [process.communicate(timeout=300) for process in both]
    for process, (out, err) in zip(both, results, strict=True):
        assert process.returncode == 0, err
        assert out.startswith("seamark ")
    began = time.monotonic()
    again = _run(link, "version")
    assert (again.returncode, again.stderr) == (0, "")
    assert time.monotonic() - began < 5
    # what the lock names is all that a run needs
    (tmp_path / "primary").mkdir()
    (tmp_path / "primary" / "file").write_text("content")
    ran = _run(
        link, "run", tmp_path / "primary", tmp_path / "secondary", "--once", "--state-dir", tmp_path / "state"
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "secondary" / "file").read_text() == "content"
    # a lock that changed is noticed
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    changed = _run(link, "version")
    assert changed.returncode == 0
    assert "preparing" in changed.stderr
    # a package that is not what the lock says is refused
    text = (checkout / "requirements.lock").read_text()
    (checkout / "requirements.lock").write_text(
        text.replace("rich==", "rich!=0,==").replace("sha256:", "sha256:0")
    )
    shutil.rmtree(checkout / ".venv")
    refused = _run(link, "version")
    assert refused.returncode == 1
    assert "seamark: cannot install what requirements.lock names" in refused.stderr


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with the tools of coreutils that the scripts use, and no Python."""
    folder = tmp_path / "path"
    folder.mkdir()
    for tool in (
        "sh",
        "dirname",
        "readlink",
        "sha256sum",
        "grep",
        "mkdir",
        "flock",
        "rm",
        "cat",
        "id",
        "env",
    ):
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def test_without_python_one_line_says_what_to_install(checkout, bare_path):
    done = _run(checkout / "bin/seamark", "version", env={"PATH": str(bare_path)})
    assert done.returncode == 1
    assert "seamark: needs Python 3.11 or newer; install it" in done.stderr.splitlines()[-1]


def test_a_python_that_is_too_old_is_passed_over(checkout, bare_path):
    old = bare_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _run(checkout / "bin/seamark", "version", env={"PATH": str(bare_path)})
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr


def _audit(tmp_path, answer, code):
    """bin/audit with something in the place of pip-audit, which writes this report."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "answer").write_text(answer)
    fake = tmp_path / "bin" / "pip-audit"
    fake.write_text(
        '#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = --output ] && out=$2; shift; done\n'
        f'cat "{tmp_path}/answer" >"$out"\necho "no way to its data" >&2\nexit {code}\n'
    )
    fake.chmod(0o755)
    (tmp_path / "bin" / "python").unlink(missing_ok=True)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return _run(ROOT / "bin" / "audit", env=_environment(SEAMARK_AUDIT_VENV=str(tmp_path)))


def test_an_audit_fails_for_what_is_known_and_for_nothing_else(tmp_path):
    good = {"name": "good", "version": "1", "vulns": []}
    bad = {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    skipped = {"name": "strange", "skip_reason": "not there"}
    for packages, code, words in (
        ([good, skipped], 0, "1 packages, no vulnerability is known; 1 could not be looked up"),
        ([good, bad], 1, "bad 2: CVE-1 (mended in 3)"),
        ([skipped], 0, "not audited: where packages come from here, nothing is known of any of them"),
    ):
        done = _audit(tmp_path, json.dumps({"dependencies": packages}), int(bool(code)))
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done
    done = _audit(tmp_path, "", 1)
    assert (done.returncode, done.stdout) == (0, "")
    assert "bin/audit: not audited: its data is out of reach (no way to its data)" in done.stderr


def test_scripts_are_plain_sh():
    need("dash")
    for script in SCRIPTS:
        done = subprocess.run(["dash", "-n", ROOT / script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if script != "bin/environment.sh":
            assert os.access(ROOT / script, os.X_OK)
            assert (ROOT / script).read_text().startswith("#!/bin/sh\n")


def test_scripts_of_containers_are_plain_sh():
    need("dash")
    for script in ("init", "primary", "worker"):
        path = ROOT / "deploy" / "compose" / script
        subprocess.run(["dash", "-n", path], check=True)
        assert os.access(path, os.X_OK)


def test_no_file_names_a_package_index_or_this_machine():
    here = [str(ROOT) + "/"]
    if str(Path.home()) != "/root":  # compose.yaml speaks of the home in the container
        here.append(str(Path.home()) + "/")
    for name in [
        "pyproject.toml",
        "compose.yaml",
        "Dockerfile",
        "deploy/secondary/Dockerfile",
        "README.md",
        *SCRIPTS,
    ]:
        text = (ROOT / name).read_text()
        for word in ["index-url", "pypi.org", "find-links", *here]:
            assert word not in text, f"{name}: {word}"
