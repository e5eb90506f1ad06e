"""The engine of a run: chosen once and kept in the run folder, so that a run that was stopped goes on to the bit."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longspan.pipeline import engines, stages
from longspan.pipeline.job import Job
from longspan.pipeline.observer import Silent
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder
from longspan.plan.machine import Machine
from longspan.utils.errors import Interrupted

MACHINE = Machine(device="cuda test", device_bytes=2**40, host_bytes=2**40, disk_bytes=2**40)


class Ear(Silent):
    """Keeps what it is told, and counts steps."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.steps = 0

    def tell(self, text: str) -> None:
        self.told.append(text)

    def step(self, *_: object, **__: object) -> None:
        self.steps += 1


def recipe_on(micro: Path, output: str, engine: dict[str, Any]) -> Recipe:
    value = tomllib.loads(micro.read_text()) | {"output": output, "engine": engine}
    return Recipe.from_plain(value, folder=micro.parent, where="test")


def test_a_choice_is_kept_until_the_question_changes(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(machine: Machine, **engine: Any) -> tuple[tuple[Any, ...], list[str]]:
        monkeypatch.setattr(engines, "machine_of", lambda *_, **__: machine)
        ear = Ear()
        job = Job(recipe_on(micro, "run", engine), RunFolder(micro.parent / "run"), ear, lambda: False)
        return engines.choices(job), ear.told

    (micro.parent / "run").mkdir()
    first, told = asked(MACHINE, keep="attention")
    assert {choice.anchors for choice in first} == {("device",) * 2}
    assert sum(line.startswith("stage ") for line in told) == len(first) == 2
    # Less is free now: the choice stays, and nothing is told again. With other settings it is made anew.
    small = replace(MACHINE, device_bytes=100_000)
    assert asked(small, keep="attention") == (first, [])
    again, told = asked(replace(MACHINE, device="another"), keep="inputs")
    assert {choice.keep for choice in again} == {"inputs"}
    assert told


def test_a_run_on_the_engine_that_was_stopped_ends_with_the_same_bits(micro: Path) -> None:
    engine = {"keep": "attention", "tile_tokens": 48, "group": 1}  # the rows of this job would be left to autograd
    for output, stops in (("whole", ()), ("stopped", (1, 5))):
        recipe, ear = recipe_on(micro, output, engine), Ear()
        for stop in stops:
            with pytest.raises(Interrupted):
                stages.train(recipe, observer=ear, stop=lambda at=stop, ear=ear: ear.steps >= at)
        stages.train(recipe, observer=ear)
        kept = json.loads((micro.parent / output / "engine.json").read_text())
        assert [choice["keep"] for choice in kept["choices"]] == ["attention", "attention"]
    for file in ("model.safetensors", "optimizer.safetensors"):
        (one,), (other,) = (
            sorted((micro.parent / output / "checkpoints").glob(f"step-*/{file}"))[-1:]
            for output in ("whole", "stopped")
        )
        first, second = load_file(one), load_file(other)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
