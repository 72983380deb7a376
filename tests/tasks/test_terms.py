"""What workers on other hosts are told: typed, of one epoch, and nothing that says where anything is."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.quantities import Timetable
from replication.session import Session
from replication.settings import SettingsError
from tasks.ledger import Ledger, StaleFence
from tasks.terms import Sending, Terms, decode_terms, encode_terms

SENDING = Sending(
    sync_method="auto", compression="on", bandwidth=Timetable.parse("08:00,1M 19:00,off"), timezone="Europe/Berlin",
    filters=("- *.tmp",),
)  # fmt: skip
TERMS = Terms(
    epoch=3, node="host.home.12ab", held=None, volume="ab" * 16, root_ino=77, index_id="x1", gen=4, boot="b",
    sending=SENDING,
)  # fmt: skip


def test_they_arrive_as_they_were_told():
    assert decode_terms(encode_terms(TERMS)) == TERMS


@pytest.mark.parametrize(
    "change",
    [
        {"node": "../x"},
        {"node": "a b"},
        {"volume": "/etc"},
        {"primary": "/etc"},
        {"epoch": "3"},
        {"sending": {**msgspec.to_builtins(SENDING, enc_hook=str), "sync_method": "scp"}},
        {"sending": {**msgspec.to_builtins(SENDING, enc_hook=str), "ssh": {"port": 1}}},
        {"sending": {**msgspec.to_builtins(SENDING, enc_hook=str), "bandwidth": "fast"}},
        {"sending": {**msgspec.to_builtins(SENDING, enc_hook=str), "filters": ["no rule"]}},
        {"sending": {**msgspec.to_builtins(SENDING, enc_hook=str), "timezone": "Mars/Base"}},
    ],
)
def test_what_is_not_of_their_shape_is_refused(change):
    raw = {**msgspec.json.decode(encode_terms(TERMS)), **change}
    with pytest.raises(SettingsError, match="what the primary's node tells"):
        decode_terms(msgspec.json.encode(raw))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(SettingsError) as error:
        decode_terms(text)
    assert "\n" not in error.value.message


def test_they_change_how_data_is_sent_and_nothing_else():
    session = Session(name="home", id="1", instance="2", primary="/mnt/home", secondary="backup@host:/x")
    told = SENDING.applied_to(session)
    assert (told.compression, told.filters, told.schedule.timezone) == ("on", ("- *.tmp",), "Europe/Berlin")
    assert (told.primary, told.secondary, told.ssh) == (session.primary, session.secondary, session.ssh)


def test_only_the_epoch_that_is_served_tells(redis_server):
    with redis_server.client() as client:
        ledger = Ledger(client, "i1")
        ledger.begin_epoch(3)
        ledger.tell(3, encode_terms(TERMS))
        with pytest.raises(StaleFence):
            ledger.tell(2, b"older")
        assert decode_terms(ledger.told() or b"") == TERMS
        ledger.begin_epoch(4)
        assert ledger.told() is None
