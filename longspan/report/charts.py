"""Line charts as SVG: axes, curves, bands and marks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from longspan.report import numbers
from longspan.report.svg import element, svg, text

Point = tuple[float, float]
WIDTH, LEFT, TOP = 760, 56, 32
LABEL_ROOM, NO_LABEL_ROOM = 76, 14  # right of the curves, with and without labels at their ends
CAPTION_ROOM, NO_CAPTION_ROOM = 46, 26  # below them, with and without a name of the x axis
MOST_POINTS = 600  # a curve with more is averaged in groups: a page of a million steps must still open
MOST_DOTS = 40  # a curve with fewer shows each of its points
LINE_PIXELS = 16  # the height that a label at the end of a curve needs


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: what it shows, from where to where, and on which scale. `log` is to the base 2, of positive values."""

    label: str
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    unit: Literal["length", "amount", "plain"] = "plain"

    def place(self, value: float) -> float:
        """Where a value lies between low (0) and high (1)."""
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round values within the axis, `most` at the most: powers of two, or round decimal steps."""
        if self.scale == "log":
            first, last = math.ceil(math.log2(self.low) - 1e-9), math.floor(math.log2(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first + 1) / most))
            return [2.0**exponent for exponent in range(last, first - 1, -stride)][::-1]
        step = _round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]

    def words(self, value: float) -> str:
        """A tick as text."""
        if self.unit == "length":
            return numbers.length(round(value))
        return numbers.amount(value) if self.unit == "amount" else f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points from left to right; `told` says each point in words, `label` stands at the end of the curve."""

    style: str
    points: tuple[Point, ...]
    label: str = ""
    told: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of the x axis with a caption."""

    low: float
    high: float
    caption: str
    shaded: bool


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line: dashed over the whole height with a caption, or a short stroke without one (a skipped step)."""

    x: float
    caption: str = ""


def fitted(
    label: str, values: Iterable[float], *, unit: Literal["amount", "plain"] = "plain", zero: bool = False
) -> Axis:
    """A linear axis that holds all finite values, ends on round numbers and is never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = (0.0 if zero else min(finite)), max(finite)
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / 5)
    return Axis(
        label=label, low=step * math.floor(low / step + 1e-9), high=step * math.ceil(high / step - 1e-9), unit=unit
    )


def thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most `MOST_POINTS` points: means of equal groups of the finite ones, in order."""
    finite = [point for point in points if math.isfinite(point[1])]
    group = max(1, math.ceil(len(finite) / MOST_POINTS))
    parts = (finite[i : i + group] for i in range(0, len(finite), group))
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)


def line_chart(
    label: str,
    curves: Sequence[Curve],
    *,
    x: Axis,
    y: Axis,
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
    height: int = 320,
) -> Markup:
    """A chart of curves over shared axes. The label of the y axis stands above it, so that it reads without turning."""
    labelled = [curve for curve in curves if curve.label and curve.points]
    frame = _Frame(x, y, height, labelled=bool(labelled))
    parts = [*(_band(frame, band) for band in bands), *_grid(frame)]
    parts += [_mark(frame, mark) for mark in marks]
    parts += [_curve(frame, curve) for curve in curves]
    parts += _labels(frame, labelled)
    return svg(WIDTH, height, *parts, label=label, class_="chart")


class _Frame:
    """From values to pixels."""

    def __init__(self, x: Axis, y: Axis, height: int, *, labelled: bool) -> None:
        self.x, self.y = x, y
        self.left, self.right = float(LEFT), float(WIDTH - (LABEL_ROOM if labelled else NO_LABEL_ROOM))
        self.top, self.bottom = float(TOP), float(height - (CAPTION_ROOM if x.label else NO_CAPTION_ROOM))

    def across(self, value: float) -> float:
        return self.left + (self.right - self.left) * min(1.0, max(0.0, self.x.place(value)))

    def down(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * self.y.place(value)


def _grid(frame: _Frame) -> list[Markup]:
    room = frame.bottom - frame.top
    parts = [text(0, 14, frame.y.label, class_="axis")]
    for value in frame.y.ticks(max(2, int(room // 30))):
        y = frame.down(value)
        parts.append(element("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(text(frame.left - 8, y + 4, frame.y.words(value), class_="tick", text_anchor="end"))
    for value in frame.x.ticks(12):
        x = frame.across(value)
        parts.append(text(x, frame.bottom + 18, frame.x.words(value), class_="tick", text_anchor="middle"))
    parts.append(element("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="frame"))
    if frame.x.label:
        middle = (frame.left + frame.right) / 2
        parts.append(text(middle, frame.bottom + 39, frame.x.label, class_="axis", text_anchor="middle"))
    return parts


def _band(frame: _Frame, band: Band) -> Markup:
    left, right = frame.across(band.low), frame.across(band.high)
    parts = [element("title", band.caption)] if band.caption else []
    if band.shaded:
        box = {"x": left, "y": frame.top, "width": right - left, "height": frame.bottom - frame.top}
        parts.append(element("rect", **box, class_="band"))
    if band.caption and right - left > 7 * len(band.caption):
        parts.append(text((left + right) / 2, frame.top + 16, band.caption, class_="tick", text_anchor="middle"))
    return element("g", *parts)


def _mark(frame: _Frame, mark: Mark) -> Markup:
    x = frame.across(mark.x)
    if not mark.caption:
        told = element("title", "skipped step")
        return element("line", told, x1=x, x2=x, y1=frame.bottom - 7, y2=frame.bottom, class_="skip")
    line = element("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, class_="mark")
    return element("g", line, text(x + 6, frame.top + 11, mark.caption, class_="tick"))


def _curve(frame: _Frame, curve: Curve) -> Markup:
    spots = [(frame.across(a), frame.down(b)) for a, b in curve.points]
    path = " ".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(spots))
    parts = [element("path", d=path, class_=f"curve {curve.style}")] if len(spots) > 1 else []
    if len(spots) <= MOST_DOTS:
        told = curve.told or ("",) * len(spots)
        for (a, b), words in zip(spots, told, strict=True):
            title = [element("title", words)] if words else []
            parts.append(element("circle", *title, cx=a, cy=b, r=3.5, class_=curve.style))
    return element("g", *parts)


def _labels(frame: _Frame, curves: Sequence[Curve]) -> list[Markup]:
    """A label at the right end of each curve, moved down where two would touch."""
    parts, free = [], -math.inf
    for curve in sorted(curves, key=lambda curve: frame.down(curve.points[-1][1])):
        across, down = frame.across(curve.points[-1][0]), frame.down(curve.points[-1][1])
        free = max(down, free + LINE_PIXELS)
        parts.append(text(across + 10, free + 4, curve.label, class_=f"label {curve.style}"))
    return parts


def _round_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
