"""What gluster says of gsyncd's sessions (cli/src/cli-xml-output.c of GlusterFS writes it)."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from replication.errors import LockedError
from replication.gluster import gsyncd

ID = "92267da9-ccac-4bf3-b9fe-5ce95a4ddfd5"
SAID = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<cliOutput><opRet>0</opRet><opErrno>0</opErrno><opErrstr/><geoRep><volume><name>photos</name><sessions>
<session><session_secondary>5fa2d9dc-79a2-4b5c-8a2f-2a6e9b0b5d5f:ssh://far::photos:92267da9-ccac-4bf3-b9fe-5ce95a4ddfd5</session_secondary>
<pair><primary_node>gl1</primary_node><primary_brick>/b/1</primary_brick><secondary>ssh://far::photos</secondary><status>{}</status></pair>
<pair><primary_node>gl2</primary_node><primary_brick>/b/2</primary_brick><secondary>ssh://far::photos</secondary><status>{}</status></pair>
</session></sessions></volume></geoRep></cliOutput>"""


@pytest.fixture
def said(monkeypatch):
    def say(*statuses):
        workers = gsyncd.workers_in(ET.fromstring(SAID.format(*statuses)))
        monkeypatch.setattr(gsyncd, "workers_of", lambda _volume: workers)

    return say


def test_a_session_that_is_stopped_or_was_never_started_may_be_taken_over(said):
    said("Stopped", "Created")
    gsyncd.check_stopped("photos", ID)


@pytest.mark.parametrize("status", ["Active", "Passive", "Faulty", "Initializing...", "Paused", "Offline"])
def test_one_that_works_is_not(said, status):
    said("Stopped", status)
    with pytest.raises(LockedError, match="geo-replication photos far::photos stop"):
        gsyncd.check_stopped("photos", ID)


def test_one_to_another_secondary_is_no_matter(said):
    said("Active", "Active")
    gsyncd.check_stopped("photos", "00000000-0000-4000-8000-000000000000")
