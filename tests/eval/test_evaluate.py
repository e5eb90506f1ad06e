"""One evaluation end to end on a tiny random decoder: findings, resume, refusals."""

import itertools
import json

import pytest
from eval_toys import material, stuff, toy_decoder

from longspan.engine.kept import Keep
from longspan.eval.evaluate import check, evaluate, packed_minus_single
from longspan.eval.tasks.grid import Grid
from longspan.eval.tasks.position_loss import PositionLoss
from longspan.eval.tasks.recall import Recall
from longspan.probes.needle import Needle
from longspan.probes.passkey import Passkey
from longspan.records import Evaluation, TaskScore
from longspan.utils.errors import ConfigError, DataError, Interrupted

TASKS = (
    Grid(probe=Needle(), lengths=(400, 600), depths=2, trials=2, pack=True),
    Grid(probe=Passkey(), lengths=(256,), depths=2, trials=1),
    PositionLoss(length=300, windows=2),
)


def run(path, *, stop=lambda: False, seen=None, model_id="weights", tasks=TASKS, decoder=None):
    return evaluate(
        decoder or toy_decoder(),
        tasks,
        name="before",
        material=material(),
        model_id=model_id,
        rows_path=path / "rows.jsonl",
        progress=lambda done, total: (seen if seen is not None else []).append((done, total)),
        stop=stop,
    )


def test_findings_are_complete_and_read_back_from_json(tmp_path):
    seen: list[tuple[int, int]] = []
    found = run(tmp_path, seen=seen)
    assert [(cell.probe, cell.length, cell.trials) for cell in found.cells] == [
        *[("pack/needle", length, 2) for length in (400, 400, 600, 600)],
        *[("passkey", 256, 1)] * 2,
    ]
    assert [(entry.low, entry.high) for entry in found.bins] == [(0, 128), (128, 256), (256, 300)]
    assert (found.name, found.model) == ("before", "weights")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2 + 2 + 2
    assert found.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert found.seconds > 0
    assert {row["model"] for row in rows} == {"weights/float32"}
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    total = 2 * (400 + 600) + 2 * 256 + 2 * (300 + (256 - 128 + 44) + 44)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_stopped_anywhere_it_ends_with_the_findings_of_an_unbroken_run(tmp_path):
    unbroken = run(tmp_path / "whole")
    polls = 0

    def count() -> bool:
        nonlocal polls
        polls += 1
        return False

    run(tmp_path / "count", stop=count)
    assert polls == 4 + 2 + 2
    for stops in itertools.count():  # noqa: B007 - read after the loop
        budget = iter([False])  # one more context in every attempt
        try:
            resumed = run(tmp_path / "cut", stop=lambda budget=budget: next(budget, True))
            break
        except Interrupted:
            continue
    assert stops == polls - 1
    assert (resumed.cells, resumed.bins) == (unbroken.cells, unbroken.bins)
    kept = [
        [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for rows in kept:
        for row in rows:
            row.pop("read_seconds", None)
            del row["seconds"]
    assert kept[0] == kept[1]


def test_another_model_shares_the_file_but_no_row(tmp_path):
    run(tmp_path, model_id="before")
    run(tmp_path, model_id="after")
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 2 * 12


def test_two_tasks_that_measure_the_same_are_refused(tmp_path):
    twice = (*TASKS, Grid(probe=Needle(digits=4), lengths=(600, 700), pack=True))
    with pytest.raises(ConfigError, match="two tasks measure") as caught:
        run(tmp_path, tasks=twice)
    assert caught.value.what == "two tasks measure grid/pack/needle/600"
    assert not (tmp_path / "rows.jsonl").exists()


def test_too_little_text_is_refused_before_the_model_reads(tmp_path):
    with pytest.raises(DataError):
        check(TASKS, stuff("a" * 100))
    with pytest.raises(DataError):
        run(tmp_path, tasks=(TASKS[0], PositionLoss(length=10**6)))
    assert not (tmp_path / "rows.jsonl").exists()


def test_scores_and_facts_of_an_evaluation(tmp_path):
    tasks = (Grid(probe=Needle(), lengths=(400,), depths=2, trials=2), TASKS[0], Recall(length=600, trials=2))
    found = run(tmp_path, tasks=tasks)
    assert [(s.task, s.length, s.trials, s.contexts) for s in found.scores] == [
        ("needle", 400, 4, 4),
        ("pack/needle", 400, 4, 2),
        ("pack/needle", 600, 4, 2),
    ]
    assert [entry.distance for entry in found.recalls] == [128, 256]
    assert all(entry.low <= entry.logprob <= entry.high < 0 for entry in found.recalls)
    assert found.facts["attention"] == "exact"
    assert found.facts["branch_difference"] < 1e-4
    assert found.facts["packed_minus_single_needle_400"].startswith("+0 points [")
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["kv_dtype"] for row in rows} == {"float32"}
    assert all(row["spec"]["text"] == "texts" for row in rows)
    foils = [row for row in rows if row["task"] == "recall"][1::2]
    assert all(row["gold"] != row["prediction"] for row in foils)


def test_keys_kept_as_fp8_share_no_row_with_exact_ones(tmp_path):
    arguments = {"name": "x", "material": material(), "model_id": "m", "rows_path": tmp_path / "rows.jsonl"}
    for keep, kept in ((Keep(codes=True), "fp8"), (None, "float32")):
        found = evaluate(toy_decoder(), TASKS[:1], progress=lambda *_: None, stop=lambda: False, keep=keep, **arguments)
        assert found.facts["kv_dtype"] == kept
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["key"] for row in rows}) == len(rows) == 16


def test_what_sharing_a_context_costs_by_hand():
    def score(task, value, half):
        numbers = {"value": value, "low": value - half, "high": value + half}
        return TaskScore(task=task, length=512, trials=40, contexts=8, **numbers)

    found = packed_minus_single([score("needle", 0.8, 0.03), score("pack/needle", 0.7, 0.04), score("graph", 0.5, 0.1)])
    assert found == {"packed_minus_single_needle_512": "-10 points [-15, -5]"}
