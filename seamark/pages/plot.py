"""A plot as an SVG without text: labels stand beside it, so that they stay readable at any width.

What is drawn has classes and no styles; the style sheet gives it the colours of the theme.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 720, 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One column of a plot. ``value``: None where nothing is known. ``says``: shown when pointed at."""

    value: float | None
    says: str = ""


def area(points: Sequence[Point], top: float, *, name: str, label: str, line_at: float | None = None) -> str:
    """Values as a filled line; where they are unknown there is a gap. ``line_at``: a dashed line, as for a target."""

    def height(value: float) -> float:
        return round(HEIGHT - min(value / top, 1.0) * (HEIGHT - 4), 1)

    step = WIDTH / max(len(points), 1)
    parts = [
        (
            f'<svg class="plot plot-{name}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" '
            f'role="img" aria-label={quoteattr(label)}>'
        )
    ]
    parts += [
        f'<line class="plot-grid" x1="0" x2="{WIDTH}" y1="{height(top * share)}" y2="{height(top * share)}"/>'
        for share in (0, 0.5, 1)
    ]
    for run in _runs(points):
        at = [(round((index + 0.5) * step, 1), height(points[index].value or 0.0)) for index in run]
        if len(at) == 1:  # a line needs two ends
            at = [(at[0][0] - step / 2, at[0][1]), (at[0][0] + step / 2, at[0][1])]
        line = " ".join(f"{x:g},{y:g}" for x, y in at)
        parts.append(
            f'<polygon class="plot-area" points="{at[0][0]:g},{HEIGHT} {line} {at[-1][0]:g},{HEIGHT}"/>'
        )
        parts.append(f'<polyline class="plot-line" points="{line}"/>')
    if line_at is not None and line_at <= top:
        parts.append(
            f'<line class="plot-target" x1="0" x2="{WIDTH}" y1="{height(line_at)}" y2="{height(line_at)}"/>'
        )
    parts += [
        f'<rect class="plot-hit" x="{index * step:g}" y="0" width="{step:g}" height="{HEIGHT}">'
        f"<title>{escape(point.says)}</title></rect>"
        for index, point in enumerate(points)
        if point.says
    ]
    return "".join([*parts, "</svg>"])


def _runs(points: Sequence[Point]) -> Iterator[list[int]]:
    """Indexes of neighbours that are all known."""
    run: list[int] = []
    for index, point in enumerate(points):
        if point.value is not None:
            run.append(index)
        elif run:
            yield run
            run = []
    if run:
        yield run
