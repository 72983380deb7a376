"""Metrics are scraped for real; promtool judges them and the alert rules; the dashboard uses what there is."""

from __future__ import annotations

import errno
import json
import re
import socket
import subprocess
import threading
import time
import urllib.request

import msgspec
import pytest

from scheduler.metrics import COUNTERS, GAUGES, STATUS, serve
from tests.conftest import need
from tests.grafana import Dashboard
from tests.scheduler.test_monitor import REPOSITORY, node  # noqa: F401

DEPLOY = REPOSITORY / "deploy"
NAMES = {name for name, _, _ in GAUGES} | {f"{name}_total" for name, _, _ in COUNTERS} | {STATUS[0]}


def promtool(*words, text=None):
    need("promtool")
    done = subprocess.run(
        ["promtool", *map(str, words)], input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.stdout, done.stderr)


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def values(text, name):
    found = re.findall(
        rf'^{name}\{{secondary="(?:[^"\\]|\\.)*",session="([^"]*)"\}} (\S+)$', text, re.MULTILINE
    )
    return {session: float(value) for session, value in found}


@pytest.mark.timeout(300)
def test_a_real_scrape(node):  # noqa: F811
    need("promtool")
    primary, copy = node.session("photos")
    odd = node.base / 'odd "copy" é\\'
    (node.base / "stopped").mkdir()
    node.ok("create", "stopped", node.base / "stopped", odd)
    port = free_port()
    node.monitor("--metrics", str(port))
    node.ok("start", "photos")
    (primary / "a").write_text("12345")
    (primary / "d").mkdir()
    node.wait_for_file(copy / "a", "12345")
    node.ok("config", "photos", "set", "rpo", "60")
    node.ok("checkpoint", "photos", "now")
    node.ok("checkpoint", "photos", "wait", "--timeout", "60")

    def done():
        text = scrape(port)
        told = (
            "photos" in values(text, "seamark_rpo_seconds")
            and values(text, "seamark_bytes_sent_total")["photos"]
        )
        return told and values(text, "seamark_healthy") == {
            "photos": 1
        }  # the status is written once a second

    node.wait_for(done, "healthy")
    text = scrape(port)
    promtool("check", "metrics", text=text)
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == NAMES
    assert values(text, "seamark_up") == {"photos": 1, "stopped": 0}
    assert values(text, "seamark_bytes_sent_total")["photos"] >= 5
    assert values(text, "seamark_files_created_total")["photos"] >= 1
    assert values(text, "seamark_rpo_seconds") == {"photos": 60}
    assert values(text, "seamark_checkpoint_completed") == {"photos": 1}
    assert 'session="photos",status="Active"} 1.0' in text
    assert 'session="stopped",status="Created"} 1.0' in text
    before = values(text, "seamark_files_renamed_total")["photos"]
    (primary / "a").rename(primary / "b")
    node.wait_for(lambda: values(scrape(port), "seamark_files_renamed_total")["photos"] > before, "a rename")
    assert node.stop() == 0


def test_the_address_is_one_of_a_choice(tmp_path):
    port, stop = free_port(), threading.Event()
    server = threading.Thread(target=serve, args=(str(tmp_path), ("127.0.0.2", port), stop))
    server.start()
    try:
        with socket.socket() as client:
            until = time.monotonic() + 30
            while client.connect_ex(("127.0.0.2", port)):
                assert time.monotonic() < until
        with socket.socket() as loopback:
            assert loopback.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    finally:
        stop.set()
        server.join()


def test_alert_rules():
    promtool("check", "config", DEPLOY / "prometheus" / "compose.yml")
    promtool("check", "rules", DEPLOY / "prometheus" / "alerts.yml")
    promtool("test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")


def used(text):
    return set(re.findall(r"\bseamark_[a-z_]+", text))


def test_rules_and_dashboard_use_what_is_exported():
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    assert used(rules) <= NAMES
    assert len(used(rules)) > 6
    dashboard = json.loads((DEPLOY / "grafana" / "seamark.json").read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [
        variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable
    ]
    assert used("\n".join(targets + queries)) <= NAMES
    assert len(used("\n".join(targets))) > 12


def test_the_dashboard_is_one_that_grafana_takes():
    text = (DEPLOY / "grafana" / "seamark.json").read_bytes()
    model = msgspec.json.decode(text, type=Dashboard)
    known = {variable.name for variable in model.templating.variables}
    assert set(re.findall(r"\$\{?([a-z]+)", text.decode())) - {"__all"} <= known
    for panel in model.panels:
        steps = panel.field_config.defaults.thresholds.steps if panel.field_config.defaults.thresholds else []
        assert [step.value for step in steps[:1]] in ([], [None])
        assert [step.value for step in steps[1:]] == sorted(step.value for step in steps[1:])
    for wrong in (b'"stat"', b'"legendFormat"', b'"browser"'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text.replace(wrong, b'"frobnicate"', 1), type=Dashboard)


def test_the_panels_of_the_dashboard_do_not_overlap():
    dashboard = json.loads((DEPLOY / "grafana" / "seamark.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
