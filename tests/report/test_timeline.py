"""Memory over time as a picture: well-formed, with every phase and no peak lost."""

import xml.etree.ElementTree as ElementTree

from longspan.report.charts import MOST_POINTS
from longspan.report.timeline import MemoryTrace, memory_svg

GIB = 2**30


def words(picture: str) -> list[str]:
    return [text for node in ElementTree.fromstring(picture).iter() if (text := (node.text or "").strip())]


def test_phases_title_and_prediction_are_shown() -> None:
    trace = MemoryTrace(
        samples=((0.0, GIB), (1.0, 3 * GIB), (2.0, 2 * GIB)), phases=((0.0, "forward"), (1.2, "backward"))
    )
    told = words(memory_svg("one <step>", trace, predicted_bytes=4 * GIB))
    assert {"one <step>", "forward", "backward", "in use", "predicted", "seconds"} <= set(told)


def test_without_a_prediction() -> None:
    told = words(memory_svg("step", MemoryTrace(samples=((0.0, GIB), (1.0, GIB)), phases=())))
    assert "predicted" not in told


def test_nothing_was_sampled() -> None:
    assert "step" in words(memory_svg("step", MemoryTrace(samples=(), phases=((0.0, "forward"),))))


def test_a_short_peak_survives_thinning() -> None:
    samples = [(i / 1000, GIB) for i in range(20 * MOST_POINTS)]
    samples[7777] = (7.777, 9 * GIB)
    picture = memory_svg("step", MemoryTrace(samples=tuple(samples), phases=()))
    heights = {float(point.split()[1]) for point in picture.split(' d="M')[1].split('"')[0].split("L")}
    assert len(heights) == 2  # the level and the peak
    assert picture.count("L") < 3 * MOST_POINTS
