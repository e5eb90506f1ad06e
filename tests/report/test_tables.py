"""The rows of the report's tables, against sums made by hand."""

import dataclasses

from report_samples import evaluation, step

from longspan.records import Cell, Evaluation, PositionBin
from longspan.report.tables import Rate, needle_tables, position_table, stage_table, tiles


def test_stage_table_adds_up_each_stage() -> None:
    first, second = stage_table([*(step(i) for i in range(1, 10)), step(10, event="skipped", loss=float("nan"))])
    assert (first.number, first.length, first.steps, first.skipped, first.tokens) == (1, 2048, 6, 0, 6 * 4096)
    assert (first.first_loss, first.last_loss, first.peak_rate) == ("4.900", "4.400", "1.00e-03")
    assert (first.seconds, first.tokens_per_second) == (3.0, "8,192")
    assert (second.number, second.length, second.steps, second.skipped, second.tokens) == (2, 8192, 4, 1, 4 * 4096)
    assert (second.first_loss, second.last_loss) == ("4.300", "4.100")


def test_stage_without_a_whole_step_has_no_loss() -> None:
    (row,) = stage_table([step(1, event="skipped", loss=float("nan"), seconds=0.0)])
    assert (row.first_loss, row.last_loss, row.tokens_per_second) == ("–", "–", "–")


def test_needle_table_leaves_a_gap_where_a_length_was_not_run() -> None:
    before = evaluation("before", hits=0, nll=4.0)
    short = dataclasses.replace(before, cells=tuple(cell for cell in before.cells if cell.length == 512))
    (table,) = needle_tables([short, evaluation("after", hits=10, nll=3.0)])
    assert table.columns == ("before", "after")
    assert [tokens for tokens, _ in table.rows] == [512, 2048, 8192]
    assert table.rows[0][1][0] == Rate(rate="0 %", hits="0/30", interval="0–12")
    assert table.rows[2][1] == (None, Rate(rate="100 %", hits="30/30", interval="88–100"))


def test_position_table_pairs_the_bins() -> None:
    before, after = evaluation("before", hits=0, nll=7.125), evaluation("after", hits=0, nll=3.25)
    longer = dataclasses.replace(after, bins=(*after.bins, PositionBin(low=8192, high=16384, nll_sum=10.0, tokens=4)))
    names, rows = position_table([before, longer])
    assert names == ["before", "after"]
    assert rows[0] == ("0–63", ["7.1250", "3.2500"], "64")
    assert rows[-1] == ("8,192–16,383", ["–", "2.5000"], "4")


def test_tiles_compare_the_same_length_and_the_same_positions() -> None:
    before, after = evaluation("before", hits=1, nll=7.125), evaluation("after", hits=9, nll=3.25)
    context, retrieval, loss, time = tiles(
        [before, after], trained_length=512, length=8192, seconds={"a": 60.0, "b": 1.0}
    )
    assert (context.was, context.value, context.remark) == ("512", "8,192", "16 times as long")
    assert (retrieval.was, retrieval.value) == ("10 %", "90 %")
    assert (loss.was, loss.value) == ("7.12", "3.25")
    assert time.value == "1 min 01 s"


def test_tiles_of_a_run_that_measured_nothing_and_kept_the_length() -> None:
    (context,) = tiles([], trained_length=512, length=512, seconds={})
    assert (context.was, context.value, context.remark) == ("512", "512", "")


def test_the_headline_speaks_of_the_main_probe_alone() -> None:
    cells = tuple(
        Cell(probe=probe, length=length, depth=0.5, hits=hits, trials=10)
        for probe, length, hits in (("pack/needle", 1024, 1), ("needle", 512, 9), ("needle", 1024, 8))
    )
    after = Evaluation(name="after", model="m", cells=cells, bins=(), seconds=1.0)
    tile = tiles([after], trained_length=512, length=1024, seconds={})[1]
    assert (tile.label, tile.value) == ("Needles found at 1,024", "80 %")
    assert tile.remark.startswith("8 of 10")
