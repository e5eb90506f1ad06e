"""Position settings compared, as a picture: held-out loss, needles and cost, a panel for each length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from longspan.report import numbers
from longspan.report.charts import WIDTH, Axis, Curve, Mark, fitted, line_chart
from longspan.report.svg import element, svg, text
from longspan.report.timeline import standalone

ROW, HEAD, FOOT = 22, 40, 40  # pixels: a method, a panel's title, its axis
LEFT, RIGHT = 92, 470  # of the axis
LOSS, NEEDLE, COUNT, SECONDS = 524, 588, 680, 756  # right edges of the columns
CHART = 320
FAR = 3.0  # losses beyond so many times the middle one's distance from the best are drawn at the edge


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method at one length: mean loss in nats with its interval, share of needles found, cost of one search."""

    name: str
    formula: bool
    nll: float
    low: float
    high: float
    needle: float
    evaluations: float
    seconds: float
    by_position: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All methods at one length; `unscaled` is the loss by position of the model as it came."""

    factor: str
    length: int
    texts: int
    seeds: int
    entries: tuple[Entry, ...]
    unscaled: tuple[tuple[float, float], ...]


def read_race(details: Mapping[str, Any]) -> tuple[Panel, ...]:
    """The panels of a race's details.json."""
    return tuple(_panel(factor, found) for factor, found in details.items())


def race_chart(panels: Sequence[Panel]) -> tuple[Markup, float]:
    """All panels, one below the other, and loss by position at the longest length; and its height in pixels."""
    parts, down = [], 0.0
    for panel in panels:
        parts.append(element("g", *_rows(panel), transform=f"translate(0 {down:g})"))
        down += HEAD + ROW * len(panel.entries) + FOOT
    if panels:
        longest = max(panels, key=lambda panel: panel.length)
        parts.append(element("svg", _by_position(longest), x=0, y=down))
        down += CHART
    return svg(WIDTH, down, *parts, label="Position settings compared", class_="chart"), down


def race_svg(title: str, panels: Sequence[Panel]) -> str:
    """The chart as a file of its own."""
    chart, height = race_chart(panels)
    return standalone(title, chart, height=height)


def _panel(factor: str, found: Mapping[str, Any]) -> Panel:
    bins = [math.sqrt((low or high / 2) * high) for low, high in found["bins"]]

    def curve(value: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
        return tuple(zip(bins, value["nll_by_bin"], strict=True))

    entries = tuple(
        Entry(
            name=name,
            formula=value["formula"],
            nll=value["nll"],
            low=value["interval"][0],
            high=value["interval"][1],
            needle=value["needle"],
            evaluations=value["evaluations"],
            seconds=value["gpu_seconds"],
            by_position=curve(value),
        )
        for name, value in found["methods"].items()
    )
    first = next(iter(found["methods"].values()))
    return Panel(
        factor=factor,
        length=found["length"],
        texts=len(first["windows"][0]),
        seeds=first["seeds"],
        entries=entries,
        unscaled=curve(found["unscaled"]),
    )


def _rows(panel: Panel) -> list[Markup]:
    entries, axis = panel.entries, _axis(panel.entries)
    base = HEAD + ROW * len(entries)

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * min(1.0, max(0.0, axis.place(value)))

    title = f"{panel.factor} × = {numbers.count(panel.length)} tokens"
    under = f"held-out loss, nats per token; mean and 95 % interval over {panel.texts} texts and {panel.seeds} seeds"
    parts = [text(0, 14, title, class_="map-title"), text(200, 14, under, class_="axis")]
    for right, word in ((LOSS, "loss"), (NEEDLE, "needles"), (COUNT, "evaluations"), (SECONDS, "seconds")):
        parts.append(text(right, 34, word, class_="tick", text_anchor="end"))
    for value in axis.ticks(6):
        x = across(value)
        parts.append(element("line", x1=x, x2=x, y1=HEAD, y2=base, class_="grid"))
        parts.append(text(x, base + 16, axis.words(value), class_="tick", text_anchor="middle"))
    for row, entry in enumerate(entries):
        parts += _entry(entry, y=HEAD + ROW * (row + 0.5), across=across, beyond=entry.nll > axis.high)
    return parts


def _entry(entry: Entry, *, y: float, across: Any, beyond: bool) -> list[Markup]:
    style = "before" if entry.formula else "after"
    parts = [text(LEFT - 10, y + 4, entry.name, class_=f"label {style}", text_anchor="end")]
    told = f"{entry.name}: {entry.nll:.4f} nats, 95 % interval {entry.low:.4f} to {entry.high:.4f}"
    x = across(entry.nll)
    if beyond:
        parts.append(text(x - 2, y + 4, "→", class_=f"label {style}", text_anchor="end"))
    else:
        line = {"x1": across(entry.low), "x2": across(entry.high), "y1": y, "y2": y}
        parts.append(element("line", **line, class_=f"curve {style}"))
        parts.append(element("circle", element("title", told), cx=x, cy=y, r=4, class_=style))
    cells = (
        (LOSS, f"{entry.nll:.4f}"),
        (NEEDLE, f"{entry.needle:.0%}"),
        (COUNT, numbers.count(entry.evaluations)),
        (SECONDS, f"{entry.seconds:.1f}"),
    )
    parts += [text(right, y + 4, words, text_anchor="end") for right, words in cells]
    return parts


def _axis(entries: Sequence[Entry]) -> Axis:
    """From the best to the worst, but what is far off the middle does not press the others together."""
    losses = sorted(entry.nll for entry in entries)
    best, middle = losses[0], losses[len(losses) // 2]
    far = max(best + FAR * (middle - best), middle)
    shown = [entry for entry in entries if entry.nll <= far]
    return fitted("", [value for entry in shown for value in (entry.low, entry.high)])


def _by_position(panel: Panel) -> Markup:
    """Loss over position, a curve a method; the model as it came is drawn as far as it keeps company."""
    best, *rest = sorted(panel.entries, key=lambda entry: entry.nll)
    formula = next((entry for entry in (best, *rest) if entry.formula), None)
    shown = [best] + ([formula] if formula is not None and formula is not best else [])
    shown += [entry for entry in rest if not entry.formula and entry is not best]
    curves = [
        Curve(
            style="before" if entry.formula else ("after" if entry is best else "third thin"),
            label=entry.name,
            points=entry.by_position,
        )
        for entry in shown
    ]
    top = max(loss for curve in curves for _, loss in curve.points) + 0.5
    kept = tuple(point for point in panel.unscaled if point[1] <= top)
    curves.append(Curve(style="fourth thin", label="unscaled" if kept else "", points=kept))
    low = min(place for place, _ in best.by_position)
    x = Axis(label="position in the text, tokens", low=low, high=float(panel.length), scale="log", unit="length")
    y = fitted(f"loss at {numbers.count(panel.length)} tokens", [v for c in curves for _, v in c.points])
    trained = panel.length / float(panel.factor)
    marks = [Mark(x=trained, caption=f"trained length, {numbers.count(trained)}")]
    return line_chart("Loss by position", curves, x=x, y=y, marks=marks, height=CHART)
