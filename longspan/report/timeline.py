"""Device memory over the time of one step, as a picture that stands alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from longspan.report.charts import WIDTH, Axis, Band, Curve, fitted, line_chart, thinned
from longspan.report.heatmap import chart_css
from longspan.report.svg import element, svg, text

GIB = 2**30
MARGIN, TITLE, HEIGHT = 20, 44, 320
HEADROOM = 1.15  # of the highest value: the names of phases stand above it


@dataclass(frozen=True, kw_only=True)
class MemoryTrace:
    """Samples of `(seconds, bytes)` in order, and where each phase began, by name."""

    samples: tuple[tuple[float, int], ...]
    phases: tuple[tuple[float, str], ...]


def memory_svg(title: str, trace: MemoryTrace, *, predicted_bytes: int | None = None) -> str:
    """The curve of allocated memory with its phases, and the predicted peak as a level of its own."""
    points = tuple((seconds, count / GIB) for seconds, count in trace.samples)
    end = max((seconds for seconds, _ in points), default=0.0) or 1.0
    starts = [*trace.phases, (end, "")]
    bands = [
        Band(low=low, high=high, caption=name, shaded=i % 2 == 1)
        for i, ((low, name), (high, _)) in enumerate(pairwise(starts))
        if high > low
    ]
    curves = [Curve(style="after", points=_peaks(points), label="in use")]
    if predicted_bytes is not None:
        level = predicted_bytes / GIB
        curves.append(Curve(style="before thin", points=((0.0, level), (end, level)), label="predicted"))
    heights = [value for curve in curves for _, value in curve.points]
    chart = line_chart(
        title,
        curves,
        x=Axis(label="seconds", low=0.0, high=end),
        y=fitted("memory, GiB", [*heights, HEADROOM * max(heights, default=0.0)], zero=True),
        bands=bands,
        height=HEIGHT,
    )
    return standalone(title, chart, height=HEIGHT)


def _peaks(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most as many points as a chart takes, each the highest of its group: a peak must not be averaged away."""
    group = -(-len(points) // max(1, len(thinned(points))))
    return tuple(max(points[i : i + group], key=lambda point: point[1]) for i in range(0, len(points), max(1, group)))


def standalone(title: str, chart: Markup, *, height: float) -> str:
    """A picture of its own around a chart of `height` pixels: style, sheet and title."""
    width, total = WIDTH + 2 * MARGIN, height + TITLE + MARGIN
    sheet = element("rect", width=width, height=total, rx=10, class_="sheet")
    inner = element("svg", chart, x=MARGIN, y=TITLE)
    style = Markup(f"<style>{chart_css()}</style>")
    heading = text(MARGIN, 28, title, class_="map-title")
    return str(svg(width, total, style, sheet, heading, inner, label=title, xmlns="http://www.w3.org/2000/svg")) + "\n"
