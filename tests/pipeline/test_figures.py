"""The figures of a summary, counted by hand."""

from longspan.pipeline.figures import summary
from longspan.records import Cell, Evaluation, PositionBin


def _cell(probe: str, length: int, depth: float, hits: int) -> Cell:
    return Cell(probe=probe, length=length, depth=depth, hits=hits, trials=4)


AFTER = Evaluation(
    name="after",
    model="m",
    cells=(
        _cell("passkey", 512, 0.5, 1),
        _cell("needle", 1024, 0.25, 4),
        _cell("needle", 512, 0.25, 3),
        _cell("needle", 512, 0.75, 4),
    ),
    bins=(
        PositionBin(low=0, high=2, nll_sum=3.0, tokens=2),
        PositionBin(low=2, high=4, nll_sum=0.0, tokens=0),
    ),
    seconds=1.0,
)


def test_accuracy_by_length_is_that_of_the_needle() -> None:
    figures = summary(before=None, after=AFTER)
    assert figures["needle_after"] == {"512": 7 / 8, "1024": 1.0}
    assert figures["trials_after"]["needle"]["512"] == {"accuracy": 7 / 8, "hits": 7, "trials": 8}
    assert figures["trials_after"]["passkey"]["512"]["hits"] == 1
    assert figures["needle_before"] == {}


def test_empty_bins_are_left_out() -> None:
    assert summary(before=AFTER, after=None)["nll_by_position_before"] == [
        {"low": 0, "high": 2, "nll": 1.5, "tokens": 2}
    ]


def test_another_probe_stands_in_when_there_is_no_needle() -> None:
    only = Evaluation(name="after", model="m", cells=AFTER.cells[:1], bins=(), seconds=0.0)
    assert summary(before=None, after=only)["needle_after"] == {"512": 0.25}
