"""Every cell of a grid stands at its length and depth, with its own count, and can be read."""

import dataclasses
import xml.etree.ElementTree as ET

from report_samples import evaluation

from longspan.records import Cell
from longspan.report import palette
from longspan.report.heatmap import heatmap_row, heatmap_svg, heatmaps_svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def grid(cells: list[Cell], **axes: list) -> ET.Element:
    return ET.fromstring(heatmap_svg("grid", cells, **axes))


def cell(length: int, depth: float, hits: int, trials: int = 10) -> Cell:
    return Cell(probe="p", length=length, depth=depth, hits=hits, trials=trials)


def test_cells_stand_at_their_length_and_depth() -> None:
    cells = [cell(n, d, 3 * i + j) for i, n in enumerate((512, 1024, 8192)) for j, d in enumerate((0.0, 0.5, 1.0))]
    root = grid(cells[::-1], lengths=[512, 1024, 8192], depths=[0.0, 0.5, 1.0])
    spots = {t.text: (float(t.get("x")), float(t.get("y"))) for t in root.iter("text")}
    for i, column in enumerate(("512", "1K", "8K")):
        for j, row in enumerate(("0 %", "50 %", "100 %")):
            x, y = spots[f"{3 * i + j}/10"]
            assert abs(x - spots[column][0]) <= 1
            assert -10 <= y - spots[row][1] <= 0  # the interval stands below
    assert spots["0 %"][1] < spots["50 %"][1] < spots["100 %"][1]  # the start of the text is at the top
    assert spots["512"][0] < spots["1K"][0] < spots["8K"][0]


def test_few_trials_are_hatched_and_unasked_cells_are_empty() -> None:
    root = grid([cell(512, 0.0, 4, 4), cell(512, 1.0, 5, 5)], lengths=[512, 1024], depths=[0.0, 1.0])
    groups = {g.findtext("text"): g for g in root.iter("g")}
    assert [r.get("fill") for r in groups["4/4"].iter("rect")] == [None, "url(#few)"]
    assert [r.get("fill") for r in groups["5/5"].iter("rect")] == [None]
    assert sum(r.get("class") == "untried" for r in root.iter("rect")) == 2


def test_grids_of_one_probe_share_their_axes() -> None:
    before = evaluation("before", hits=1, nll=4.0)
    after = dataclasses.replace(before, name="after", cells=before.cells[:3])
    first, second = (ET.fromstring(grid) for grid in heatmap_row("passkey", (before, after)))
    assert first.get("viewBox") == second.get("viewBox")


def test_standalone_file_is_well_formed_and_whole() -> None:
    odd = evaluation("<b>&\x00", hits=2, nll=4.0)
    runs = (evaluation("before", hits=1, nll=4.0), odd, evaluation("before", hits=3, nll=4.0, probe="needle"))
    root = ET.fromstring(heatmaps_svg(runs))
    titles = [t.text for t in root.iter(f"{NAMESPACE}text") if t.get("class") == "map-title"]
    assert titles == ["passkey, before", "passkey, <b>&\ufffd", "needle, before"]
    assert ".heat-20" in root.findtext(f"{NAMESPACE}style")
    width, height = float(root.get("width")), float(root.get("height"))
    for inner in root.findall(f"{NAMESPACE}svg"):
        box = inner[0]
        assert float(inner.get("x")) + float(box.get("width")) <= width
        assert float(inner.get("y")) + float(box.get("height")) <= height


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_lightness_alone_tells_the_rate() -> None:
    light = [luminance(shade) for shade in palette.shades(palette.LIGHT)]
    dark = [luminance(shade) for shade in palette.shades(palette.DARK)]
    assert light == sorted(light, reverse=True)
    assert dark == sorted(dark)
    assert len(set(light)) == len(set(dark)) == palette.LEVELS + 1


def test_anchors_of_the_scale_are_its_ends() -> None:
    for anchors in (palette.LIGHT, palette.DARK):
        shades = palette.shades(anchors)
        assert (shades[0], shades[-1]) == (anchors[0], anchors[-1])


def test_text_can_be_read_on_every_shade() -> None:
    for shade in (*palette.shades(palette.LIGHT), *palette.shades(palette.DARK)):
        low, high = sorted((luminance(shade), luminance(palette.ink(shade))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, shade  # WCAG 2.2, level AA


def test_ends_of_the_scale_mean_none_and_all() -> None:
    assert palette.level(0, 1000) == 0
    assert palette.level(1, 1000) == 1
    assert palette.level(999, 1000) == palette.LEVELS - 1
    assert palette.level(1000, 1000) == palette.LEVELS
    assert palette.level(5, 10) == palette.LEVELS // 2
