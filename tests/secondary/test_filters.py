"""Rules: rsync itself says what each of them means."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replication.secondary.filters import Filters, RuleError
from tests.conftest import need

# Names and patterns of few letters, so that they meet.
NAMES = ["a", "b", "ab", "a.o", "b.o", "[a]", "a*b", "x\\y", "foo", "Foo", "*", "a-b", "^", "é"]
PIECES = [
    "a",
    "b",
    ".o",
    "*",
    "**",
    "?",
    "[ab]",
    "[!a]",
    "[a-c]",
    "[^b]",
    "/",
    "foo",
    "\\*",
    "x\\y",
    "[[:upper:]]",
    "***",
    "-",
    "é",
]

patterns = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6)
    .map("".join)
    .filter(lambda p: p.strip("/") and "//" not in p and p != "!" and p.strip() == p)
)
rules = st.lists(st.tuples(st.sampled_from("+-"), patterns).map(" ".join), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    need("rsync")
    root = tmp_path_factory.mktemp("tree")
    for name in NAMES:
        (root / name).mkdir()
        for below in NAMES[:9]:
            if NAMES.index(name) % 2:
                (root / name / below).mkdir()
                (root / name / below / "a.o").touch()
                (root / name / below / "foo").touch()
            else:
                (root / name / below).touch()
    return root


def by_rsync(root, texts):
    # an empty directory to compare with: everything that is included is listed
    options = [f"--filter={text}" for text in texts]
    done = subprocess.run(
        ["rsync", "-rn", "--out-format=%n", "-8", *options, f"{root}/", "/nonexistent-target/"],
        capture_output=True, check=True,
    )  # fmt: skip
    return {line.rstrip(b"/") for line in done.stdout.splitlines()} - {
        b".",
        b"created directory /nonexistent-target",
    }


def by_us(root, filters, path=b""):
    found = set()
    for entry in os.scandir(os.path.join(os.fsencode(root), path)):
        below = os.path.join(path, entry.name)
        if filters.excludes(below, entry.is_dir()):
            continue
        found.add(below)
        if entry.is_dir():
            found |= by_us(root, filters, below)
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=rules)
@example(texts=["- *.o"])
@example(texts=["+ */", "+ *.o", "- *"])
@example(texts=["- /a/"])
@example(texts=["- a/***"])
@example(texts=["- foo/*"])
@example(texts=["- **/a.o"])
@example(texts=["+ foo*", "- /***"])
@example(texts=["- x\\y"])
@example(texts=["- x\\y*"])
@example(texts=["- [!a]"])
@example(texts=["- [[:upper:]]*"])
def test_rules_mean_what_they_mean_to_rsync(tree, texts):
    assert by_us(tree, Filters(texts)) == by_rsync(tree, texts)


@pytest.mark.parametrize("text", ["", "a", "- ", "-", "* a", "- /", "- [a", "P x"])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(RuleError):
        Filters([text])


def test_nothing_below_an_excluded_directory_is_looked_at():
    filters = Filters(["+ /keep/", "- cache/", "- *.tmp"])
    assert filters.excludes_dir(b"a/cache/b/c")
    assert not filters.excludes_dir(b"keep/a")
    assert not filters.excludes_dir(b"")
    assert filters.excludes(b"keep/a.tmp", False)
    assert not Filters()
