"""Tables of scores, lengths that hold, the recall chart and differences: every figure is that of the records."""

import dataclasses
import re

from report_samples import evaluation, report

from longspan.records import Cell, Recall, TaskScore
from longspan.report.heatmap import heatmap_svg
from longspan.report.page import write_report
from longspan.report.scores import difference_rows, recall_chart, score_tables
from longspan.report.tables import needle_tables


def score(length: int, value: float, low: float, high: float, task: str = "pack/needle") -> TaskScore:
    return TaskScore(task=task, length=length, value=value, low=low, high=high, trials=80, contexts=4)


SCORES = (
    score(4096, 0.97, 0.9, 1.0),
    score(8192, 0.95, 0.86, 0.99),
    score(16384, 0.8, 0.7, 0.87),
    score(32768, 0.5, 0.4, 0.6),
    score(4096, 0.5, 0.3, 0.7, task="graph"),
)
RECALLS = tuple(
    Recall(distance=d, logprob=-d / 1000, low=-d / 900, high=-d / 1100, floor=-2.0, trials=4) for d in (128, 256, 512)
)


def with_scores():
    return dataclasses.replace(
        evaluation("after", hits=9, nll=3.25), scores=SCORES, recalls=RECALLS, facts={"kv_dtype": "fp8"}
    )


def test_a_row_a_task_with_the_lengths_that_hold():
    (table,) = score_tables([evaluation("before", hits=1, nll=3.0), with_scores()])
    assert table.lengths == (4096, 8192, 16384, 32768)
    needle, graph = table.rows
    assert [cell.score for cell in needle[1]] == ["97.0", "95.0", "80.0", "50.0"]
    assert [cell.passes for cell in needle[1]] == [True, True, None, False]
    assert needle[1][1].interval == "86–99"
    assert needle[2] == "8K / 16K"
    assert needle[3] == "8K / 16K"  # 85 % of 97.0 is 82.45
    assert graph[1][1:] == (None, None, None)
    assert graph[2] == "– / –"


def test_a_share_of_nothing_is_no_bar():
    nothing = dataclasses.replace(with_scores(), scores=(score(4096, 0.0, 0.0, 0.2), score(8192, 0.0, 0.0, 0.2)))
    assert score_tables([nothing])[0].rows[0][3] == "– / –"


def test_the_page_shows_scores_recall_changes_and_how_it_was_measured(tmp_path):
    difference = {"task": "graph", "length": 4096, "difference": 0.125, "low": -0.05, "high": 0.3, "p_holm": 0.04}
    data = report(after=with_scores(), differences=({**difference, "contexts": 4},))
    write_report(tmp_path / "page.html", data)
    page = (tmp_path / "page.html").read_text()
    assert 'class="passes"><b>97.0</b>' in page
    assert re.search(r'"80 questions, 4 contexts"><b>50.0</b>', page)
    assert "+12.5 [-5.0, +30.0]" in page
    assert "Recall by distance" in page
    assert re.search(r"kv dtype</th><td>fp8", page)


def test_without_scores_nothing_is_shown(tmp_path):
    write_report(tmp_path / "page.html", report())
    page = (tmp_path / "page.html").read_text()
    assert not any(f'id="{part}"' in page for part in ("scores", "recall", "differences", "measured"))
    assert recall_chart([evaluation("a", hits=1, nll=1.0)], trained_length=512) is None
    assert difference_rows([]) == []


def test_a_cell_whose_trials_share_contexts_has_the_wider_interval():
    # 20 of 20 worth 4 independent trials: 51 % at least; Wilson's bound for 4 of 4 is 4 / (4 + 1.96²).
    cell = Cell(probe="pack/needle", length=512, depth=0.5, hits=20, trials=20, worth=4.0)
    assert round(cell.interval[0], 4) == round(4 / (4 + 1.959964**2), 4)
    drawn = str(heatmap_svg("map", [cell], lengths=[512], depths=[0.5]))
    assert "20/20" in drawn
    assert "51–100" in drawn


def test_short_benchmarks_have_a_table_of_their_own():
    short = dataclasses.replace(
        evaluation("after", hits=9, nll=3.25), scores=(*SCORES, score(0, 0.4, 0.3, 0.5, task="short/piqa/rc"))
    )
    long, own = score_tables([short])
    assert long.lengths == (4096, 8192, 16384, 32768)
    assert (own.name, own.lengths, own.rows[0][2:]) == ("after, short benchmarks", (0,), ("", ""))


def test_a_rate_whose_questions_share_contexts_has_the_interval_over_contexts():
    cells = tuple(Cell(probe="pack/needle", length=4096, depth=d, hits=39, trials=40, worth=9.0) for d in (0.25, 0.75))
    found = dataclasses.replace(evaluation("after", hits=9, nll=3.25), cells=cells)
    alone = found.interval("pack/needle", 4096)
    assert alone == dataclasses.replace(cells[0], hits=78, trials=80, worth=18.0).interval
    shared = dataclasses.replace(found, scores=(score(4096, 78 / 80, 0.9, 1.0),))
    assert shared.interval("pack/needle", 4096) == (0.9, 1.0)
    (table,) = needle_tables([shared])
    assert table.rows[0][1][0].interval == "90–100"
    partial = dataclasses.replace(found, scores=(score(4096, 0.99, 0.95, 1.0),))  # parts count there, whole hits here
    assert partial.interval("pack/needle", 4096) == alone
    assert found.interval("nothing", 4096) == (0.0, 1.0)
