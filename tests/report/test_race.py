"""The picture of a race: every number it shows is that of the race, and a far-off method does not press the others."""

import re
from xml.etree import ElementTree

from longspan.report.race import race_chart, race_svg, read_race


def method(nll, *, formula, needle=0.25, spread=0.05):
    return {
        "formula": formula,
        "nll": nll,
        "interval": [nll - spread, nll + spread],
        "windows": [[nll, nll, nll]] * 2,
        "nll_by_bin": [nll + 0.2, nll + 0.1, nll],
        "needle": needle,
        "gpu_seconds": 12.34,
        "evaluations": 1344.0,
        "seeds": 2,
    }


DETAILS = {
    "4": {
        "length": 2048,
        "bins": [[0, 128], [128, 512], [512, 2048]],
        "unscaled": {"nll_by_bin": [3.1, 3.0, 9.9]},
        "methods": {
            "linear": method(9.0, formula=True),
            "yarn": method(3.2, formula=True),
            "ntk<b>": method(3.4, formula=True),
            "structured": method(3.1, formula=False, needle=0.5),
            "evolution": method(3.3, formula=False),
        },
    },
    "8": {
        "length": 4096,
        "bins": [[0, 128], [128, 512], [512, 4096]],
        "unscaled": {"nll_by_bin": [9.1, 9.2, 9.9]},
        "methods": {"yarn": method(3.5, formula=True)},
    },
}


def test_numbers_are_those_of_the_race():
    svg = race_svg("Settings", read_race(DETAILS))
    root = ElementTree.fromstring(svg)
    words = [element.text for element in root.iter() if element.text]
    for text in ("4 × = 2,048 tokens", "8 × = 4,096 tokens", "3.1000", "9.0000", "50%", "1,344", "12.3"):
        assert text in words, text
    assert "over 3 texts and 2 seeds" in svg
    assert any("3.0500 to 3.1500" in word for word in words)
    assert "ntk&lt;b&gt;" in svg
    assert "<b>" not in svg


def test_order_and_place_of_the_dots():
    chart, height = race_chart(read_race(DETAILS))
    assert 300 < height < 900
    panel = re.split(r'<g transform="translate', str(chart))[1]
    dots = [float(x) for x in re.findall(r'cx="([\d.]+)"', panel)]
    assert len(dots) == 4  # linear is beyond the edge, and shown by an arrow
    yarn, ntk, structured, evolution = dots
    assert structured < yarn < evolution < ntk
    assert "→" in panel


def test_nothing_to_show():
    assert race_chart(())[1] == 0
