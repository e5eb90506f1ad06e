"""Gates between stages: a run that passes is the run without them, one that fails is repeated or stopped."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from longspan.pipeline import stages
from longspan.pipeline.evalrows import short_differences
from longspan.pipeline.gates import judged
from longspan.pipeline.gatesettings import Gate
from longspan.pipeline.recipe import Recipe
from longspan.records import Cell, Evaluation, StepMetrics, TaskScore
from longspan.utils.errors import Interrupted, LongspanError

NEEDLES = {"kind": "grid", "probe": {"kind": "needle"}, "lengths": [128], "depths": 1, "trials": 2}


def recipe(micro: Path, gate: dict[str, Any] | None, *, output: str = "run") -> Recipe:
    value = tomllib.loads(micro.read_text()) | {"output": output, "eval": {"tasks": []}}
    if gate is not None:
        value["stages"][0]["gate"] = {"tasks": [NEEDLES], **gate}
    return Recipe.from_plain(value, folder=micro.parent, where="test")


class Listener:
    """Stops after so many steps, and remembers what it heard."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.steps: list[tuple[int, int]] = []
        self.phases: list[tuple[str, bool]] = []
        self.told: list[str] = []
        self._left = stop_after

    def phase(self, name: str, *, skipped: bool) -> None:
        self.phases.append((name, skipped))

    def step(self, metrics: StepMetrics, *, step_tokens: int, total_tokens: int) -> None:
        assert metrics.tokens <= total_tokens
        self.steps.append((metrics.step, metrics.stage))
        self._left -= 1

    def stop(self) -> bool:
        return self._left <= 0

    def progress(self, done: int, *, total: int, what: str) -> None:
        pass

    def tell(self, text: str) -> None:
        self.told.append(text)

    def warn(self, text: str) -> None:
        raise AssertionError(text)


def trained(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states of the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = sorted(newest.rglob("*.safetensors"))
    assert files
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def equal(one: Path, two: Path) -> bool:
    first, second = trained(one), trained(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def verdict(micro: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((micro.parent / "run" / "gates" / f"{number}.json").read_text())
    return found


def test_a_gate_that_is_passed_changes_nothing(micro: Path) -> None:
    stages.train(recipe(micro, None, output="plain"))
    first = Listener()
    stages.train(recipe(micro, {"least_rate": 0.0}), observer=first)
    assert equal(micro.parent / "plain", micro.parent / "run")
    assert [name for name, _ in first.phases][-2:] == ["gate after stage 0", "train"], "steps go on under their name"
    assert verdict(micro, 0)["verdict"] == "go"
    assert verdict(micro, 0)["findings"] == ["needle at 128: 0 of 2, at least 0.0% (wanted: 0.0%)"]
    again = Listener()
    stages.train(recipe(micro, {"least_rate": 0.0}), observer=again)
    assert again.steps == []
    assert all(skipped for _, skipped in again.phases)


def test_a_stage_that_fails_is_repeated_and_then_the_run_stops(micro: Path) -> None:
    first = Listener()
    with pytest.raises(LongspanError, match="0 of 2, at least 0") as stopped:
        stages.train(recipe(micro, {"least_rate": 0.5, "repeats": 1}), observer=first)
    assert stopped.value.code == "train.gate"
    assert stopped.value.where == "recipe: stages.0.gate"
    assert first.steps == [(n, (n - 1) // 4) for n in range(1, 9)]  # four steps, and four again
    assert [verdict(micro, n)["verdict"] for n in (0, 1)] == ["repeat", "stop"]
    assert [verdict(micro, n)["try"] for n in (0, 1)] == [1, 2]

    again = Listener()
    with pytest.raises(LongspanError, match="0 of 2"):
        stages.train(recipe(micro, {"least_rate": 0.5, "repeats": 1}), observer=again)
    assert again.steps == []
    assert ("gate after stage 0", True) in again.phases, "it is not evaluated again"

    # A gate that asks for less judges the same weights, and the run goes on from them.
    last = Listener()
    stages.train(recipe(micro, {"least_rate": 0.0, "repeats": 1}), observer=last)
    assert last.steps == [(n, 2) for n in range(9, 13)]
    assert verdict(micro, 1)["verdict"] == "go"


def test_a_repeat_reads_other_rows_and_a_stop_in_it_loses_nothing(micro: Path) -> None:
    gate = {"least_rate": 0.5, "repeats": 1}
    with pytest.raises(LongspanError, match="gate"):
        stages.train(recipe(micro, gate, output="whole"))
    losses = [json.loads(line)["loss"] for line in (micro.parent / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 8
    for _ in range(3):
        listener = Listener(stop_after=2)
        with pytest.raises((Interrupted, LongspanError)):
            stages.train(recipe(micro, gate), observer=listener, stop=listener.stop)
    with pytest.raises(LongspanError, match="gate"):
        stages.train(recipe(micro, gate))
    assert equal(micro.parent / "whole", micro.parent / "run")
    found = [json.loads(line)["loss"] for line in (micro.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found == losses


def evaluation(hits: int, shorts: dict[str, float]) -> Evaluation:
    scores = tuple(
        TaskScore(task=f"short/{name}", length=0, value=value, low=0, high=1, trials=100, contexts=100)
        for name, value in shorts.items()
    )
    cell = Cell(probe="needle", length=1024, depth=0.5, hits=hits, trials=100)
    return Evaluation(name="x", model="m", cells=(cell,), bins=(), seconds=0.0, scores=scores)


def short_rows(path: Path, hits: int) -> Path:
    """A hundred questions of a short benchmark, of which the first `hits` are right."""
    lines = [
        {"key": f"{path.name}{n}", "task": "short/a", "length": 0, "context": f"c{n}", "score": float(n < hits)}
        | {"cluster": f"a/{n}", "hit": n < hits}
        for n in range(100)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_planted_regression_of_short_benchmarks_does_not_pass(tmp_path: Path) -> None:
    gate = Gate(tasks=({"kind": "short", "wheel": tmp_path / "w.whl"},), least_rate=0.93, most_drop=0.02)  # type: ignore[arg-type]
    rows = (short_rows(tmp_path / "one", 50), short_rows(tmp_path / "two", 47))
    before = evaluation(0, {"a": 0.50, "b": 0.70})
    findings, failed = judged(gate, before=before, after=evaluation(100, {"a": 0.47, "b": 0.70}), rows=rows)
    # Wilson of 100 of 100: 1 / (1 + 1.96²/100).
    assert findings[0].startswith("needle at 1,024: 100 of 100, at least 96.3%")
    assert "60.0% before, 58.5% after; question by question -3.0%" in findings[1]
    assert failed == []
    _, failed = judged(gate, before=before, after=evaluation(100, {"a": 0.47, "b": 0.68}), rows=rows)
    assert failed == [line for line in failed if line.startswith("short benchmarks")] != []
    _, failed = judged(gate, before=None, after=evaluation(97, {}), rows=rows)  # 97 of 100: at least 91.5 %
    assert len(failed) == 1


def test_answers_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    """Rows that another model left in the file: the same questions, answered before."""
    both = short_rows(tmp_path / "two", 47).read_text()
    short_rows(tmp_path / "two", 90)
    with (tmp_path / "two").open("a") as file:
        file.write(both.replace("two", "again"))
    found = short_differences(short_rows(tmp_path / "one", 50), tmp_path / "two")
    assert found["all"][0] == pytest.approx(-0.03)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tasks": [{"kind": "position_loss", "length": 128}]}, "none of kind position_loss"),
        ({"tasks": []}, "at least 1 item"),
    ],
)
def test_what_a_gate_cannot_judge_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Gate.model_validate_json(json.dumps(change))


def test_canaries_and_repeats_do_not_go_together(micro: Path) -> None:
    value = tomllib.loads(micro.read_text())
    value["stages"][0] |= {"canaries": {"pairs": 1}, "gate": {"tasks": [NEEDLES], "repeats": 1}}
    with pytest.raises(LongspanError, match="is not repeated"):
        Recipe.from_plain(value, folder=micro.parent, where="test")
