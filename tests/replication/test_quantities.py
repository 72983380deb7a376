"""Durations, sizes, timetables and windows: as people write them, and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from replication.quantities import NO_DELETE_LIMIT, NO_LIMIT, DeleteLimit, Duration, Size, Timetable
from replication.windows import check_expression, next_window, window_at, zone

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (90, 90), ("30m", 1800), ("1.5h", 5400), ("2 d", 172800), ("1w", 604800), ("0", 0)],
)
def test_durations(text, seconds):
    assert Duration.parse(text) == seconds
    assert Duration.parse(str(Duration.parse(text))) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("8M", 8 << 20), ("1.5 GiB", 3 << 29), ("2kib", 2048), (7, 7)]
)
def test_sizes(text, size):
    assert Size.parse(text) == size
    assert Size.parse(str(Size.parse(text))) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1x", "1 2", "1e9", True, "ninety", "1mm"])
def test_what_is_no_quantity_is_refused(text):
    for kind in (Duration, Size):
        with pytest.raises(ValueError, match="will not do"):
            kind.parse(text)


@given(st.integers(0, 1 << 50))
def test_any_size_comes_back(size):
    assert Size.parse(str(Size(size))) == size


def test_a_plain_rate_is_in_kibibytes_as_rsyncs_and_rclones():
    assert Timetable.parse("512").rate_at(datetime.now(UTC)) == 512 << 10
    assert Timetable.parse("10M").rate_at(datetime.now(UTC)) == 10 << 20
    assert Timetable.parse("off").rate_at(datetime.now(UTC)) is None
    assert NO_LIMIT.rate_at(datetime.now(UTC)) is None


def test_a_timetable_of_the_day():
    table = Timetable.parse("08:00,512k 12:00,10M 13:00,512k 23:00,off")
    monday = datetime(2026, 11, 23, tzinfo=BERLIN)
    for hour, rate in [
        (0, None),
        (7, None),
        (8, 512 << 10),
        (12, 10 << 20),
        (13, 512 << 10),
        (22, 512 << 10),
        (23, None),
    ]:
        assert table.rate_at(monday + timedelta(hours=hour)) == rate, hour


def test_a_timetable_of_the_week():
    table = Timetable.parse("Mon-00:00,512 Fri-23:59,10M Sat-10:00,1M Sun-20:00,off")
    sunday = datetime(2026, 11, 22, 21, 0, tzinfo=BERLIN)
    assert table.rate_at(sunday) is None
    assert table.rate_at(sunday + timedelta(hours=3)) == 512 << 10
    assert table.rate_at(sunday + timedelta(days=6)) == 1 << 20
    assert (
        Timetable.parse("Tue-08:00,1M Wed-08:00,off").rate_at(datetime(2026, 11, 23, tzinfo=BERLIN)) is None
    )


@pytest.mark.parametrize(
    "text", ["", "fast", "25:00,1M", "08:60,1M", "08:00", "Foo-08:00,1M", "08:00,1M 10M", "0.0001", "-5"]
)
def test_what_is_no_timetable_is_refused(text):
    with pytest.raises(ValueError, match=r"will not do|no day"):
        Timetable.parse(text)


# ---- windows


def test_a_window_holds_for_as_long_as_it_lasts():
    at = datetime(2026, 11, 24, 22, 0, tzinfo=BERLIN)
    assert window_at(at, "0 22 * * *", 3600).start == at
    assert window_at(at + timedelta(minutes=59, seconds=59), "0 22 * * *", 3600).start == at
    assert window_at(at + timedelta(hours=1), "0 22 * * *", 3600) is None
    assert window_at(at - timedelta(seconds=1), "0 22 * * *", 3600) is None
    assert next_window(at, "0 22 * * *", 3600).start == at + timedelta(days=1)


def test_a_window_over_a_change_of_the_clocks_lasts_as_long_as_any_other():
    night = datetime(2026, 3, 28, 23, 0, tzinfo=BERLIN)  # at 02:00 it becomes 03:00
    window = window_at(night, "0 23 * * *", 6 * 3600)
    assert window.end.astimezone(UTC) - window.start.astimezone(UTC) == timedelta(hours=6)
    assert window.end.hour == 6


def test_an_hour_that_comes_twice_or_never_has_one_window():
    for day in (datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN)):
        starts = set()
        for minute in range(0, 24 * 60, 5):
            now = (day.astimezone(UTC) + timedelta(minutes=minute)).astimezone(BERLIN)
            if (found := window_at(now, "30 2 * * *", 600)) is not None:
                starts.add(found.start.astimezone(UTC))
        assert len(starts) == 1, day


@given(
    now=st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(BERLIN)),
    minutes=st.integers(1, 3000),
    expression=st.sampled_from(["0 22 * * *", "30 2 * * *", "*/20 * * * *", "0 3 * * 6", "15 1 1 * *"]),
)
@example(now=datetime(2026, 10, 25, 2, 0, fold=1, tzinfo=BERLIN), minutes=1, expression="30 2 * * *")
@example(now=datetime(2026, 3, 29, 2, 0, tzinfo=BERLIN), minutes=1, expression="30 2 * * *")
def test_now_is_in_the_window_that_it_is_in(now, minutes, expression):
    found = window_at(now, expression, minutes * 60)
    if found is not None:
        assert found.start.astimezone(UTC) <= now.astimezone(UTC) < found.end.astimezone(UTC)
    following = next_window(now, expression, minutes * 60)
    assert following.start.astimezone(UTC) > now.astimezone(UTC)


def test_what_cron_would_not_understand_is_refused():
    check_expression("0 22 * * 1-5")
    for text in ("", "22:00", "* * * *", "61 * * * *", "@daily"):
        with pytest.raises(ValueError, match="cron expression"):
            check_expression(text)
    assert datetime.now(zone("")).utcoffset() is not None
    assert zone("Europe/Berlin") == BERLIN
    for text in ("Mars/Olympus", "../etc/passwd", "\0"):
        with pytest.raises(ValueError, match="no time zone"):
            zone(text)


def test_a_limit_of_deletions_is_a_number_or_a_percentage():
    assert DeleteLimit.parse("1000").count == DeleteLimit.parse(1000).count == 1000
    assert DeleteLimit.parse("2.5 %").percent == 2.5
    assert DeleteLimit.parse("off") == NO_DELETE_LIMIT
    assert not NO_DELETE_LIMIT
    assert DeleteLimit.parse("0")
    for text in ("0", "1000", "10%", "2.5%", "off"):
        assert str(DeleteLimit.parse(text)) == text
    for text in ("", "-1", "101%", "1.5", "many", "10 %%"):
        with pytest.raises(ValueError, match="will not do"):
            DeleteLimit.parse(text)
