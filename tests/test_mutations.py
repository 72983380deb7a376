"""The mutations can be made: their code is where they say. `python -m tests.mutations` makes them."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.mutations.__main__ import ROOT, apply
from tests.mutations.catalogue import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_can_be_made_and_the_code_is_still_code(mutation, tmp_path):
    copy = tmp_path / mutation.path
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutation.path, copy)
    apply(mutation, tmp_path)
    if copy.suffix == ".py":
        compile(copy.read_text(), mutation.path, "exec")
    for test in mutation.tests[: 1 if "-k" in mutation.tests else None]:
        assert (ROOT / test.partition("::")[0]).exists()


def test_every_invariant_is_among_what_is_broken():
    assert {mutation.invariant for mutation in MUTATIONS} >= {1, 2, 3, 4, 5, 6, 7, 8}
    assert len(MUTATIONS) >= 15
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_of_them_turns_a_test_red():
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutations"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
