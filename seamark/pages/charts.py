"""What is drawn of a session's history: throughput and lag over the last hours."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.history import KEPT_S, Sample
from seamark.pages.plot import Point, area
from seamark.progress import text

if TYPE_CHECKING:
    from collections.abc import Sequence

SPANS = {"1h": 3600, "6h": 21_600, "24h": KEPT_S}
_COLUMNS = 180
_SPARK_COLUMNS = 60
_BYTES = tuple(n * 1024**power for power in range(1, 6) for n in (1, 2, 5, 10, 20, 50, 100, 200, 500))
_SECONDS = (
    1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 2 * 86_400,
    7 * 86_400, 14 * 86_400, 30 * 86_400, 90 * 86_400, 365 * 86_400,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A plot with what stands beside it. ``svg`` is markup, the rest is text. ``ticks``: of the axis of values, from the top."""

    title: str
    about: str
    svg: str
    ticks: tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """All plots of a session over one span. ``times``: under each of them, from left to right."""

    span: str
    charts: tuple[Chart, ...]
    times: tuple[str, ...]
    empty: bool


def default_span(samples: Sequence[Sample], now: float | None = None) -> str:
    """The shortest that shows all there is, but six hours at most."""
    oldest = samples[0].time if samples else 0.0
    return "1h" if (time.time() if now is None else now) - oldest < SPANS["1h"] else "6h"


def charts(samples: Sequence[Sample], span: str, now: float | None = None) -> Charts:
    """The plots of a span (one of SPANS)."""
    until = time.time() if now is None else now
    since = until - SPANS[span]
    columns = _columns(samples, since, until, _COLUMNS)
    times = tuple(
        time.strftime("%H:%M", time.localtime(since + share * (until - since) / 4)) for share in range(5)
    )
    return Charts(
        span=span, charts=(_throughput(columns), _lag(columns)), times=times, empty=not any(columns)
    )


def sparkline(samples: Sequence[Sample], now: float | None = None) -> str:
    """The throughput of the last hour, as markup."""
    until = time.time() if now is None else now
    columns = _columns(samples, until - SPANS["1h"], until, _SPARK_COLUMNS)
    points = [Point(value=_mean([s.bytes_s for s in column])) for column in columns]
    top = _top(max((p.value or 0.0 for p in points), default=0.0), _BYTES)
    return area(points, top, name="spark", label="throughput of the last hour")


def _throughput(columns: list[list[Sample]]) -> Chart:
    means = [_mean([s.bytes_s for s in column]) for column in columns]
    files = [_mean([s.files_s for s in column]) for column in columns]
    points = [
        Point(
            value=size,
            says="" if size is None else f"{_when(column)}: {_rate(size)}, {count or 0:,.1f} files/s",
        )
        for column, size, count in zip(columns, means, files, strict=True)
    ]
    known = [size for size in means if size is not None]
    most = max(known, default=0.0)
    top = _top(most, _BYTES)
    average = _mean([s.bytes_s for column in columns for s in column]) or 0.0
    return Chart(
        title="Throughput", about=f"{_rate(average)} on average, {_rate(most)} at most",
        svg=area(points, top, name="throughput", label="throughput over time"),
        ticks=(_rate(top).replace(".0 ", " "), _rate(top / 2).replace(".0 ", " "), "0"),
    )  # fmt: skip


def _lag(columns: list[list[Sample]]) -> Chart:
    worst = [max((s.lag_s for s in column if s.lag_s is not None), default=None) for column in columns]
    targets = [s.rpo_s for column in columns for s in column if s.rpo_s is not None]
    target = targets[-1] if targets else None
    points = [
        Point(value=lag, says="" if lag is None else f"{_when(column)}: {text.duration(lag)} behind")
        for column, lag in zip(columns, worst, strict=True)
    ]
    most = max((lag for lag in worst if lag is not None), default=0.0)
    top = _top(max(most, target or 0.0), _SECONDS)
    about = f"{text.duration(most)} at most"
    return Chart(
        title="Lag", about=about if target is None else f"{about}, target {text.duration(target)}",
        svg=area(points, top, name="lag", label="lag over time", line_at=target),
        ticks=(text.duration(top), text.duration(top / 2), "0"),
    )  # fmt: skip


def _columns(samples: Sequence[Sample], since: float, until: float, count: int) -> list[list[Sample]]:
    """Samples by time, in columns of the same width."""
    found: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        index = int((sample.time - since) / (until - since) * count)
        if 0 <= index < count:
            found[index].append(sample)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _top(value: float, scale: Sequence[int]) -> float:
    """The end of the axis: the next mark of a scale."""
    return float(next((mark for mark in scale if mark >= value), value))


def _rate(value: float) -> str:
    return f"{text.size(value)}/s"


def _when(column: list[Sample]) -> str:
    return time.strftime("%H:%M", time.localtime(column[0].time))
