"""Retrieval grids as pictures: length across, depth down, hits of trials in every cell."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from longspan.records import Cell, Evaluation
from longspan.report import numbers, palette
from longspan.report.svg import element, svg, text

CELL_WIDTH, CELL_HEIGHT, GAP = 64, 42, 2
LEFT, TOP, BOTTOM = 64, 34, 48
LEAST_WIDTH = 232  # room for a title and for the name of the axis
FEW_TRIALS = 5  # below this a cell is hatched: its interval is too wide to be read as a rate


def probes(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """Names of the probes in the order in which they were run."""
    return tuple(dict.fromkeys(cell.probe for evaluation in evaluations for cell in evaluation.cells))


def heatmap_svg(title: str, cells: Sequence[Cell], *, lengths: Sequence[int], depths: Sequence[float]) -> Markup:
    """One grid: a column for each length, a row for each depth, 0 at the top; a cell that was not run is empty.

    `lengths` and `depths` are passed so that the grids of a row share their axes.
    """
    found = {(cell.length, cell.depth): cell for cell in cells}
    parts = [text(LEFT, 16, title, class_="map-title")]
    for row, depth in enumerate(depths):
        y = TOP + row * CELL_HEIGHT
        label = f"{100 * depth:.3g} %"
        parts.append(text(LEFT - 10, y + CELL_HEIGHT / 2 + 4, label, class_="tick", text_anchor="end"))
        parts += [_cell(found.get((n, depth)), LEFT + i * CELL_WIDTH, y) for i, n in enumerate(lengths)]
    base = TOP + len(depths) * CELL_HEIGHT
    for column, tokens in enumerate(lengths):
        x = LEFT + (column + 0.5) * CELL_WIDTH
        parts.append(text(x, base + 17, numbers.length(tokens), class_="tick", text_anchor="middle"))
    middle = TOP + len(depths) * CELL_HEIGHT / 2
    parts.append(
        text(0, 0, "depth", class_="axis", transform=f"translate(11 {middle}) rotate(-90)", text_anchor="middle")
    )
    width, height = map_size(lengths, depths)
    parts.append(
        text(
            LEFT + len(lengths) * CELL_WIDTH / 2,
            base + 38,
            "context length, tokens",
            class_="axis",
            text_anchor="middle",
        )
    )
    return svg(width, height, _hatching(), *parts, label=title, class_="map")


def map_size(lengths: Sequence[int], depths: Sequence[float]) -> tuple[int, int]:
    """Width and height of one grid in pixels."""
    return max(LEAST_WIDTH, LEFT + len(lengths) * CELL_WIDTH + 8), TOP + len(depths) * CELL_HEIGHT + BOTTOM


def axes(probe: str, evaluations: Sequence[Evaluation]) -> tuple[list[int], list[float]]:
    """The lengths and the depths at which any of the evaluations ran a probe, in order."""
    cells = [cell for evaluation in evaluations for cell in evaluation.cells if cell.probe == probe]
    return sorted({cell.length for cell in cells}), sorted({cell.depth for cell in cells})


def heatmap_row(probe: str, evaluations: Sequence[Evaluation]) -> list[Markup]:
    """The grids of one probe, one for each evaluation that ran it, with the same axes."""
    lengths, depths = axes(probe, evaluations)
    ran = [(e, [cell for cell in e.cells if cell.probe == probe]) for e in evaluations]
    return [heatmap_svg(f"{probe}, {e.name}", cells, lengths=lengths, depths=depths) for e, cells in ran if cells]


def heatmaps_svg(evaluations: Sequence[Evaluation]) -> str:
    """A standalone SVG file with every grid: a row for each probe, a column for each evaluation, and the scale."""
    margin, gap, y = 20, 28, 16
    parts: list[Markup] = []
    right = 0
    for probe in probes(evaluations):
        x = margin
        width, height = map_size(*axes(probe, evaluations))
        for grid in heatmap_row(probe, evaluations):
            parts.append(element("svg", grid, x=x, y=y))
            x += width + gap
        right, y = max(right, x - gap), y + height + 8
    parts.append(element("svg", legend(), x=margin + LEFT, y=y))
    width, height = max(right + margin, 480), y + 38
    sheet = element("rect", width=width, height=height, rx=10, class_="sheet")
    style = Markup(f"<style>{chart_css()}</style>")
    return (
        str(
            svg(
                width,
                height,
                style,
                sheet,
                *parts,
                label="Needle accuracy by length and depth",
                xmlns="http://www.w3.org/2000/svg",
            )
        )
        + "\n"
    )


def legend() -> Markup:
    """The colour scale from 0 to 100 %, and what the hatching means."""
    step, y = 9, 4
    boxes = [
        element("rect", x=34 + i * step, y=y, width=step, height=12, class_=f"heat-{i}")
        for i in range(palette.LEVELS + 1)
    ]
    end = 34 + (palette.LEVELS + 1) * step
    few = element("rect", x=end + 66, y=y, width=20, height=12, class_="heat-6")
    lines = element("rect", x=end + 66, y=y, width=20, height=12, fill="url(#few)")
    words = text(end + 94, y + 10, f"fewer than {FEW_TRIALS} trials", class_="tick")
    ends = text(26, y + 10, "0 %", class_="tick", text_anchor="end"), text(end + 8, y + 10, "100 %", class_="tick")
    width, height = end + 210, 20
    return svg(width, height, _hatching(), *boxes, *ends, few, lines, words, label="Scale")


@cache
def chart_css() -> str:
    """The style rules that the pictures need, on the page and alone."""
    return (files("longspan.report") / "charts.css").read_text(encoding="utf-8") + palette.css()


def _cell(cell: Cell | None, x: float, y: float) -> Markup:
    box = {"x": x, "y": y, "width": CELL_WIDTH - GAP, "height": CELL_HEIGHT - GAP, "rx": 4}
    if cell is None:
        return element("rect", **box, class_="untried")
    step = palette.level(cell.hits, cell.trials)
    middle = x + (CELL_WIDTH - GAP) / 2
    words = f"{cell.hits}/{cell.trials}"
    interval = numbers.percents(*cell.interval)
    told = (
        f"{cell.probe}, {numbers.count(cell.length)} tokens, depth {100 * cell.depth:.3g} %: {words}, "
        f"95 % interval {interval} %"
    )
    parts = [element("title", told), element("rect", **box, class_=f"heat-{step}")]
    if cell.trials < FEW_TRIALS:
        parts.append(element("rect", **box, fill="url(#few)"))
    down = y + (CELL_HEIGHT - GAP) / 2
    parts.append(text(middle, down - 2, words, class_=f"cell on-{step}", text_anchor="middle"))
    parts.append(text(middle, down + 12, interval, class_=f"small on-{step}", text_anchor="middle"))
    return element("g", *parts)


def _hatching() -> Markup:
    """Dark lines beside light ones: one of the two shows on every shade."""
    lines = [
        element("line", x1=x, y1=0, x2=x, y2=7, stroke_width=1.5, class_=style)
        for x, style in ((1, "hatch-dark"), (2.5, "hatch-light"))
    ]
    turned = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return element("defs", element("pattern", *lines, id="few", width=7, height=7, **turned))
