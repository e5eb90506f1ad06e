"""Results to publish: every figure against one worked out by hand from a run folder made by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from longspan import cli
from longspan.pipeline.evidence import Prices, write_evidence
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder
from longspan.records import Cell, Evaluation, PositionBin, Recall, StepMetrics, TaskScore
from longspan.train.metrics import MetricsFile
from longspan.utils.errors import ConfigError
from longspan.utils.files import write_json

Z = 1.959963984540054


def score(task: str, value: float) -> TaskScore:
    return TaskScore(task=task, length=0, value=value, low=0.1, high=0.9, trials=40, contexts=40)


def evaluation(name: str, *, hits: int, nll: float, right: int) -> Evaluation:
    return Evaluation(
        name=name,
        model="m",
        cells=(
            Cell(probe="needle", length=8192, depth=0.5, hits=20, trials=20),
            Cell(probe="pack/needle", length=8192, depth=0.5, hits=hits, trials=100),
            Cell(probe="pack/uuid", length=8192, depth=0.5, hits=1, trials=10),
        ),
        bins=(PositionBin(low=0, high=128, nll_sum=nll * 50, tokens=50),),
        seconds=1.0,
        scores=(score("short/a", right / 40), score("short/b", 0.5)),
        recalls=(Recall(distance=128, logprob=-0.5, low=-1, high=0, floor=-3.0, trials=2),),
    )


def rows(path: Path, right: int) -> None:
    lines = []
    for task, hits in (("short/a", right), ("short/b", 20)):
        for n in range(40):
            lines.append({"key": f"{task}{n}", "task": task, "length": 0, "context": f"{task}{n}", "cluster": f"{n}"})
            lines[-1] |= {"score": float(n < hits), "hit": n < hits}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(micro: Path, tmp_path: Path) -> Path:
    place = RunFolder(tmp_path / "done")
    for when, hits, nll, right in (("before", 3, 4.0, 30), ("after", 99, 3.0, 28)):
        found = evaluation(when, hits=hits, nll=nll, right=right)
        place.evaluation(when).parent.mkdir(parents=True, exist_ok=True)
        write_json(place.evaluation(when), found.to_json())
        rows(place.evaluation(when).with_suffix(".rows.jsonl"), right)
    write_json(place.recipe, Recipe.read(micro).plain())
    write_json(place.versions, {"torch": "9"})
    place.gate(0).parent.mkdir()
    verdict = {"stage": 0, "try": 1, "verdict": "go", "findings": ["needle at 64: 9 of 9"], "failed": []}
    write_json(place.gate(0), verdict)
    for number in (2, 10):
        write_json(place.gate(number), verdict | {"stage": number})
    for phase, seconds in {"train": 1800.0, "after": 600.0, "prepare": 77.0}.items():
        write_json(place.path / "done" / f"{phase}.json", {"inputs": "x", "seconds": seconds, "done": True})
    metrics = MetricsFile(place.metrics)
    metrics.write(
        StepMetrics(
            step=1,
            stage=0,
            length=64,
            loss=2.0,
            gradient_norm=1.0,
            learning_rate=1e-3,
            tokens=4_000_000,
            targets=1.0,
            seconds=8.0,
        )
    )
    return place.path


def test_every_figure_is_the_one_worked_out_by_hand(run: Path, tmp_path: Path) -> None:
    prices = Prices(gpus=2, gpu_hour_dollars=3.0, gpu_watts=500.0, kwh_kg_co2=0.3)
    to = tmp_path / "results"
    beside = {"yarn": run / "eval" / "before.json"}
    write_evidence(run, to, prices=prices, beside=beside)
    summary = json.loads((to / "summary.json").read_text())

    p, n = 0.99, 100
    low = (p + Z**2 / (2 * n) - Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))) / (1 + Z**2 / n)
    entry = summary["needle"]["needle"]["8192"]
    assert entry == {"k": 99, "n": 100, "low": pytest.approx(low, abs=1e-6), "shared": True}
    assert summary["needle"]["uuid"]["8192"]["k"] == 1
    assert summary["beside"]["yarn"]["needle"]["8192"]["k"] == 3
    assert [summary["nll_by_position"][when][0]["nll"] for when in ("before", "after")] == [4.0, 3.0]

    panel: dict[str, Any] = summary["short_panel"]
    assert panel["a"]["before"] == 0.75
    assert panel["a"]["after"] == 0.7
    assert panel["a"]["low"] < -0.05 < panel["a"]["high"] <= 0
    assert panel["b"]["low"] == panel["b"]["high"] == 0
    assert panel["mean"]["before"] == pytest.approx(0.625)
    assert panel["mean"]["after"] == pytest.approx(0.6)
    assert panel["a"]["low"] < panel["mean"]["low"] < -0.025 < panel["mean"]["high"] <= 0

    # (1,800 + 600) s on two GPUs; preparing needs none.
    assert summary["gpu_seconds"] == 4800
    assert summary["cost"]["dollars"] == 4.0
    assert summary["cost"]["dollars_per_million_tokens"] == 0.75  # an hour of GPUs for four million tokens
    assert summary["cost"]["kwh"] == pytest.approx(4800 * 500 / 3.6e6, abs=1e-4)
    assert summary["cost"]["kg_co2"] == pytest.approx(0.2, abs=1e-4)

    page = (to / "README.md").read_text()
    assert "| 8K | 3 % (3/100; 1–9) | 99 % (99/100; 94–100) | 3 % (3/100; 1–9) |" in page
    assert "| a | 75.0% | 70.0% | -5.0% |" in page
    assert "gate after stage 0, try 1: go; needle at 64: 9 of 9" in page
    assert page.index("gate after stage 2,") < page.index("gate after stage 10,")
    assert "-0.500 (not there: -3.000)" in page
    assert {"summary.json", "gate-0.json", "recipe.json", "versions.json", "metrics.jsonl"} <= {
        path.name for path in to.iterdir()
    }


def test_a_base_model_of_another_run(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "base" / "before.json"
    other.parent.mkdir()
    (run / "eval" / "before.json").rename(other)
    (run / "eval" / "before.rows.jsonl").rename(other.with_suffix(".rows.jsonl"))
    assert write_evidence(run, tmp_path / "a", prices=Prices())["short_panel"] == {}
    found = write_evidence(run, tmp_path / "b", prices=Prices(), before=other)
    assert found["short_panel"]["a"]["before"] == 0.75


def test_the_verb_and_what_it_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = str(tmp_path / "results")
    words = ["evidence", str(run), "--to", to, "--gpus", "2", "--dollars", "3"]
    assert cli.main([*words, "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gpu_seconds"] == 4800
    for changed, told in (
        (words[:2], "needs --to"),
        ([*words, "--watts", "many"], "is no number"),
        ([*words, "--beside", "yarn"], "names no file"),
        ([*words, "--beside", f"yarn={tmp_path}/none.json"], "no such evaluation"),
    ):
        assert cli.main(changed) == cli.MISTAKE
        assert told in " ".join(capsys.readouterr().err.split())
    (run / "eval" / "after.json").unlink()
    with pytest.raises(ConfigError) as error:
        write_evidence(run, tmp_path / "x", prices=Prices())
    assert error.value.code == "evidence.not-evaluated"
