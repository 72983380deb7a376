"""What the pages are made of: plots, words for tasks, the password."""

from __future__ import annotations

import os
import stat
import threading
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.errors import SeamarkError
from scheduler.history import Sample
from seamark.pages import tasks
from seamark.pages.charts import SPANS, charts, default_span, sparkline
from seamark.pages.password import flower_dir, own_password_file, read_password
from seamark.pages.plot import HEIGHT, WIDTH, Point, area
from tasks.canvas import mark_signature, unit_signature

NOW = 1_800_000_000.0
numbers = st.none() | st.floats(0, 1e15)


@given(values=st.lists(numbers, max_size=50), says=st.text(max_size=20), target=numbers)
def test_a_plot_is_well_formed_and_stays_in_its_frame(values, says, target):
    said = "".join(c for c in says if c.isprintable())
    top = max((v for v in values if v is not None), default=1.0) or 1.0
    svg = area(
        [Point(value=v, says=said) for v in values], top, name="x", label='a "label" <b>', line_at=target
    )
    tree = ET.fromstring(svg)
    space = {"s": tree.tag[1:].partition("}")[0]} if tree.tag.startswith("{") else None
    assert space is None
    assert "style" not in svg
    known = sum(len(line.get("points").split()) for line in tree.iter("polyline"))
    assert known >= sum(v is not None for v in values)
    for line in tree.iter("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert -1 <= x <= WIDTH + 1
            assert 0 <= y <= HEIGHT
    assert [title.text or "" for title in tree.iter("title")] == ([said] * len(values) if said else [])


def test_an_unknown_value_is_a_gap():
    svg = area([Point(value=v) for v in (1, 2, None, 3, 4)], 4, name="x", label="x")
    assert len(ET.fromstring(svg).findall("polyline")) == 2


def sample(at, size=0.0, lag=0.0, rpo=None):
    return Sample(at, size, 1.0, lag, rpo, 0, 0)


def test_the_charts_of_a_span_say_what_the_samples_do():
    samples = [sample(NOW - 3000 + 10 * n, size=1024.0 * n, lag=float(n), rpo=60.0) for n in range(300)]
    found = charts(samples, "1h", now=NOW)
    assert not found.empty
    throughput, lag = found.charts
    assert throughput.ticks == ("500 KiB/s", "250 KiB/s", "0")
    assert throughput.about.startswith("149.5 KiB/s on average")
    assert lag.about == "4:59 at most, target 1:00"
    assert "plot-target" in lag.svg
    assert charts(samples, "1h", now=NOW + 10_000).empty
    assert ET.fromstring(sparkline(samples, now=NOW)).findall("polyline")
    assert [default_span(those, now=NOW) for those in ([], samples, [sample(NOW - 4000), *samples])] == [
        "6h",
        "1h",
        "6h",
    ]
    assert all(len(charts(samples, span, now=NOW).times) == 5 for span in SPANS)


# ---- tasks


def test_a_task_says_in_words_what_it_is_about():
    name = os.fsdecode(b"d/\xff<script>'")
    signature = unit_signature("photos", 7, 3, "D:stream:1", f"12 files, 4096 bytes, {name} …")
    assert signature.kwargs == {"session": "photos", "epoch": 7, "batch": 3, "unit": "D:stream:1"}
    shown = tasks.shown_task(
        SimpleNamespace(kwargs=signature.options["kwargsrepr"], result=repr("it's done"))
    )
    assert shown.kwargs == f"photos, batch 3, D:stream:1, 12 files, 4096 bytes, {name} …"
    assert shown.result == "it's done"
    assert tasks.about(mark_signature("photos", 7, 3).options["kwargsrepr"]) == "photos, batch 3"


@pytest.mark.parametrize("kwargs", [None, "", "{}", "{'a': 1}", "{'session'", "('x',)", "[" * 500, "…"])
def test_what_others_say_of_their_tasks_is_left_alone(kwargs):
    assert tasks.about(kwargs) == (kwargs or "")


# ---- password


def test_one_password_is_made_for_its_owner_alone(tmp_path):
    state = str(tmp_path / "state")
    found = []
    threads = [threading.Thread(target=lambda: found.append(own_password_file(state))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {tmp_path / "state" / "flower" / "password"}
    assert [p.name for p in flower_dir(state).iterdir()] == ["password"]
    assert stat.S_IMODE(found[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(flower_dir(state).stat().st_mode) == 0o700
    password = read_password(found[0])
    assert len(password) == 24
    assert read_password(own_password_file(state)) == password


def test_a_password_that_others_can_read_is_none(tmp_path):
    path = own_password_file(str(tmp_path))
    path.chmod(0o640)
    with pytest.raises(SeamarkError, match="others can read"):
        own_password_file(str(tmp_path))
    path.chmod(0o600)
    path.parent.chmod(0o750)
    with pytest.raises(SeamarkError, match="open to others"):
        own_password_file(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must be the password"),
        (b"\nx", "must be the password"),
        (b"\xff\xfe", "no text"),
        (b"x" * 1025, "1 to 1024"),
    ],
)
def test_a_file_without_a_password_is_one_clear_line(tmp_path, content, says):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SeamarkError, match=says):
        read_password(path)
    with pytest.raises(SeamarkError, match="cannot be read"):
        read_password(tmp_path / "missing")
    path.write_bytes(b"it is \xc3\xa9:1\r\nnot this\n")
    assert read_password(path) == "it is é:1"
