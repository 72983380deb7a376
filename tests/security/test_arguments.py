"""Arguments of tasks, as somebody makes them up who can write to the broker: refused, and nothing is touched."""

from __future__ import annotations

import json
import os
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replication.session import Session, SessionDir
from tasks import context as contexts
from tasks.app import app, use
from tasks.servers import of_url

pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
NAME = "known"
TASKS = (
    "tasks.entry.sync_entries",
    "tasks.metadata.sync_metadata",
    "tasks.crawl.crawl_subtree",
    "tasks.data.sync_by_stream",
    "tasks.data.sync_by_rsync",
    "tasks.data.sync_by_tar",
    "tasks.mark.update_stime",
    "tasks.mark.publish_stime",
    "tasks.verify.compare",
    "tasks.verify.mend",
    "scheduler.jobs.crawl_tick",
    "scheduler.jobs.sweep",
    "scheduler.jobs.answer",
    "scheduler.jobs.ask_secondary",
    "scheduler.jobs.retry_failures",
    "scheduler.jobs.resync",
    "scheduler.jobs.verify_slice",
    "scheduler.jobs.check_checkpoints",
    "scheduler.jobs.take_snapshot",
    "scheduler.jobs.hold_drill",
    "scheduler.jobs.start_over",
)
_opened: list[str] | None = None


def _hear(event, arguments):
    if _opened is not None and event in (
        "open",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "subprocess.Popen",
        "os.system",
    ):
        _opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else "")


sys.addaudithook(_hear)


@pytest.fixture
def known(tmp_path, monkeypatch, redis_server):
    (tmp_path / "primary").mkdir()
    monkeypatch.setenv("SEAMARK_STATE_DIR", str(tmp_path / "state"))
    use(of_url(redis_server.url))
    app.loader.import_default_modules()
    place = SessionDir(tmp_path / "state", NAME)
    place.save_run(
        Session(
            name=NAME, id="i1", instance="i1", primary=str(tmp_path / "primary"),
            secondary=str(tmp_path / "secondary"),
        )
    )  # fmt: skip
    made = contexts.context(NAME)
    made.progress.brick()
    app.tasks[TASKS[0]].apply()  # which loads what Celery needs for it
    yield made
    made.progress.close()
    app.close()
    contexts._contexts.clear()


def test_every_task_is_here(known):
    assert {name for name in app.tasks if not name.startswith("celery.")} == set(TASKS)


text = st.text(max_size=20) | st.sampled_from(
    [
        "",
        "..",
        "../../etc",
        "/etc/passwd",
        "a/b",
        "known\n",
        "known\0",
        ".known",
        "known/",
        "KNOWN",
        "x" * 65,
        "-rsh",
    ]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
names = (
    st.sampled_from(["session", "epoch", "batch", "unit", "run", "why", "anew", "at_once", "self", "task"])
    | text
)
number = st.integers(0, 9)


def refused(known, task, args, kwargs):
    """Have a task run as a worker has it; what it says, and that nothing was touched."""
    global _opened
    mark = known.progress.brick()
    json.dumps([args, kwargs])
    _opened = []
    try:
        result = app.tasks[task].apply(args=args, kwargs=kwargs)
    finally:
        opened, _opened = _opened, None
    assert result.state == "SUCCESS", result.result
    assert result.result.startswith("refused: "), (task, args, kwargs, result.result)
    ours = str(known.place.path.parents[1])
    assert [path for path in opened if not path.startswith(ours)] == []
    assert known.progress.brick() == mark
    assert "\n" not in result.result


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    task=st.sampled_from(TASKS),
    args=st.lists(anything.filter(lambda value: value != NAME), max_size=5),
    kwargs=st.dictionaries(names, anything.filter(lambda value: value != NAME), max_size=6),
)
def test_of_no_session_that_is_known_here(known, task, args, kwargs):
    refused(known, task, args, kwargs)


wrong_number = anything.filter(lambda value: type(value) is not int or not 0 <= value < 2**63)
wrong_unit = anything | st.sampled_from(
    [
        "E:1:1\n",
        "D:stream:../x",
        "D:rsync:/etc",
        "C:",
        "E:1",
        "R:sh:1",
        "D:stream:1 -e sh",
        "",
        "E:-1:0",
        "C:０",
    ]
)
WRONG = st.sampled_from(["epoch", "batch", "unit", "run", "why", "anew", "at_once", "other"])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(task=st.sampled_from(TASKS), which=WRONG, data=st.data())
def test_of_a_known_session_with_one_that_is_wrong(known, task, which, data):
    wanted = {
        "epoch": number,
        "batch": number,
        "unit": st.just("E:1:0"),
        "run": st.just("a"),
        "why": st.just("w"),
    }
    takes = app.tasks[task].run.__code__.co_varnames[1 : app.tasks[task].run.__code__.co_argcount]
    kwargs = {name: data.draw(wanted[name]) for name in takes if name in wanted} | {"session": NAME}
    wrong = {
        "epoch": wrong_number, "batch": wrong_number, "run": anything.filter(lambda v: not isinstance(v, str)) | st.just("../x"),
        "unit": wrong_unit.filter(lambda v: not (isinstance(v, str) and v.isascii() and v.isdecimal())),
        "why": anything.filter(lambda v: not isinstance(v, str)),
        "anew": anything.filter(lambda v: not isinstance(v, bool)),
        "at_once": anything.filter(lambda v: not isinstance(v, bool)), "other": anything,
    }  # fmt: skip
    kwargs[which] = data.draw(wrong[which])
    refused(known, task, [], kwargs)


@pytest.mark.parametrize(
    "task", ["celery.map", "celery.chord_unlock", "celery.group", "celery.backend_cleanup"]
)
def test_tasks_of_celerys_own(known, task):
    refused(known, task, [], {})
    refused(known, task, [{"task": "scheduler.jobs.sweep"}, [NAME]], {})
