"""The whole job on a micro model: it ends, goes on after a stop with the same bits, and does nothing twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import longspan
from longspan import cli
from longspan.pipeline import stages
from longspan.pipeline.recipe import Recipe
from longspan.records import StepMetrics
from longspan.screen import Screen
from longspan.train.trackers.tensorboard import TensorBoard
from longspan.utils.errors import ConfigError, Interrupted, ModelError

ROOT = Path(__file__).parents[2]


class Listener:
    """Remembers what the pipeline tells."""

    def __init__(self) -> None:
        self.phases: dict[str, bool] = {}
        self.steps: list[int] = []
        self.warnings: list[str] = []
        self.told: list[str] = []

    def phase(self, name: str, *, skipped: bool) -> None:
        self.phases[name] = skipped

    def step(self, metrics: StepMetrics, *, step_tokens: int, total_tokens: int) -> None:
        assert total_tokens == 512 + 1024
        assert step_tokens == (128, 256)[metrics.stage]
        self.steps.append(metrics.step)

    def progress(self, done: int, *, total: int, what: str) -> None:
        assert 0 <= done <= total
        assert what

    def tell(self, text: str) -> None:
        self.told.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_run_from_python_then_again_then_extended(micro: Path) -> None:
    recipe, first = Recipe.read(micro), Listener()
    result = longspan.run(recipe, observer=first)
    run = micro.parent / "run"
    assert first.phases == dict.fromkeys(("prepare", "train", "after", "export", "report"), False)
    assert first.steps == list(range(1, 4 + 4 + 1))
    assert first.warnings == []
    summary = json.loads((run / "summary.json").read_text())
    assert result == {"run": str(run), **summary}
    assert summary["needle_before"] == {}
    assert summary["trials_after"]["needle"]["128"]["trials"] == 2
    assert summary["nll_by_position_after"][0]["nll"] == pytest.approx(5.7, abs=0.3)  # ln 300
    assert summary["export_max_logit_diff"] <= 1e-4
    assert summary["seconds"] == pytest.approx(sum(summary["phases"].values()), abs=0.01)
    assert (run / summary["report"]).read_text().startswith("<!")
    assert json.loads((run / "recipe.json").read_text()) == recipe.plain()

    before = {path: path.stat().st_mtime_ns for path in (run / "export").iterdir()}
    again = Listener()
    assert longspan.run(recipe, observer=again) == result
    assert all(again.phases.values())
    assert again.steps == []
    assert {path: path.stat().st_mtime_ns for path in (run / "export").iterdir()} == before

    _extends_what_was_exported(micro, run / summary["model"])


def _extends_what_was_exported(micro: Path, model: Path) -> None:
    """A model folder as start: it is evaluated before and after, and its own tokenizer travels with it."""
    value = tomllib.loads(micro.read_text())
    value |= {"model": {"folder": str(model)}, "output": "longer", "stages": value["stages"][1:]}
    value["stages"][0] |= {"length": 256, "rope": {"kind": "theta_law"}}
    value["stages"][0]["mix"][0]["reach"] = 512
    value["export"] = {"dtype": "bfloat16"}
    recipe, listener = Recipe.from_plain(value, folder=micro.parent, where="test"), Silent()
    result = stages.run(recipe, observer=listener)
    assert listener.phases["before"] is False
    assert result["needle_before"].keys() == result["needle_after"].keys() == {"128"}
    assert (result["start"]["trained_length"], result["start"]["length"]) == (128, 512)
    assert "Taken from 128 to 512 tokens" in (micro.parent / "longer" / "report.html").read_text()
    assert result["export_max_logit_diff"] <= 1e-3
    export = micro.parent / "longer" / "export"
    assert (export / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert json.loads((export / "config.json").read_text())["max_position_embeddings"] == 512
    assert {tensor.dtype for tensor in _weights(micro.parent / "longer").values()} == {torch.bfloat16}
    _refused_when_truncated(recipe, model)
    # The evaluation alone, and the export alone, find everything done.
    listener.phases.clear()
    assert stages.evaluate(recipe, "before", observer=listener)["needle_before"] == result["needle_before"]
    assert stages.export(recipe, observer=listener)["export_max_logit_diff"] == result["export_max_logit_diff"]
    assert set(listener.phases.values()) == {True}


def _refused_when_truncated(recipe: Recipe, model: Path) -> None:
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ModelError):
        stages.run(recipe)
    weights.write_bytes(content)


class Silent(Listener):
    """Takes steps of any recipe."""

    def step(self, metrics: StepMetrics, *, step_tokens: int, total_tokens: int) -> None:
        self.steps.append(metrics.step)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stopped_by_signal_and_resumed_is_the_same_run(
    micro: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert cli.main(["train", str(micro)]) == cli.OK
    stop_after = [3, 6]
    show = Screen.step

    def step(screen: Screen, metrics: StepMetrics, **counts: int) -> None:
        show(screen, metrics, **counts)
        if stop_after and metrics.step == stop_after[0]:
            stop_after.pop(0)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Screen, "step", step)
    command = ["train", str(micro), "--output", str(micro.parent / "stopped"), "--json"]
    for steps in (3, 6):
        capsys.readouterr()
        assert cli.main(command) == cli.AGAIN
        told = capsys.readouterr()
        assert "run the same command again" in told.err
        assert json.loads(told.out.splitlines()[-1]) == {"verb": "train", "status": "interrupted"}
        assert len(_metrics(micro.parent / "stopped")) == steps
    assert cli.main(command) == cli.OK
    expected, found = (
        load_file(micro.parent / run / "checkpoints" / "step-000008" / "model.safetensors")
        for run in ("run", "stopped")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert _metrics(micro.parent / "run") == _metrics(micro.parent / "stopped")


def test_a_process_that_is_told_to_stop_exits_75(micro: Path) -> None:
    command = [sys.executable, "-m", "longspan", "train", str(micro), "--stages.1.tokens", "10_000_000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = micro.parent / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err.decode()
    assert list((micro.parent / "run" / "checkpoints").glob("step-*"))


def test_stop_between_phases_and_in_preparation(micro: Path) -> None:
    recipe = Recipe.read(micro)
    with pytest.raises(Interrupted):
        stages.run(recipe, stop=lambda: True)
    answers = iter([False, True])
    with pytest.raises(Interrupted):  # at the first document
        stages.train(recipe, stop=lambda: next(answers))
    assert not (micro.parent / "run" / "tokens").exists()


def test_export_and_evaluation_need_a_trained_model(micro: Path) -> None:
    recipe = Recipe.read(micro)
    for work in (lambda: stages.export(recipe), lambda: stages.evaluate(recipe, "after")):
        with pytest.raises(ConfigError) as caught:
            work()
        assert caught.value.code == "run.not-trained"
    with pytest.raises(ConfigError) as caught:
        stages.evaluate(recipe, "before")
    assert caught.value.code == "eval.new-model"


def test_lost_checkpoints_and_differing_exports_are_told(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.read(micro)
    assert stages.train(recipe)["step"] == 8
    report = stages.report(recipe)  # from what is there
    assert report["model"] is None
    monkeypatch.setattr(
        "longspan.pipeline.stages.round_weights", lambda decoder, dtype: decoder.norm.weight.data.mul_(2)
    )
    with pytest.raises(ModelError) as differs:
        stages.export(recipe)
    assert differs.value.code == "export.differs"
    assert not (micro.parent / "run" / "export").exists()
    listener = Silent()
    monkeypatch.setattr("longspan.pipeline.stages.can_prove", lambda: False)
    assert stages.export(recipe, observer=listener)["export_max_logit_diff"] is None
    assert "transformers" in listener.warnings[0]
    checkpoints = micro.parent / "run" / "checkpoints"
    shutil.rmtree(micro.parent / "run" / "export")
    # An older checkpoint is no trained model, even when the newest is damaged.
    (checkpoints / "step-000008" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError) as lost:
        stages.export(recipe)
    assert lost.value.code == "run.lost-checkpoint"
    shutil.rmtree(checkpoints)
    with pytest.raises(ConfigError) as lost:
        stages.export(recipe)
    assert lost.value.code == "run.no-checkpoint"


def test_what_is_not_there_is_told_before_training(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = tomllib.loads(micro.read_text())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for changes, code in (
        ({"device": "cuda"}, "run.no-gpu"),
        ({"tracking": {"kind": "tensorboard"}}, "tracker.missing"),
        ({"data": {"sources": value["data"]["sources"]}}, "eval.no-text"),
    ):
        recipe = Recipe.from_plain({**value, **changes}, folder=micro.parent, where="test")
        with pytest.raises(ConfigError) as caught:
            stages.run(recipe)
        assert caught.value.code == code
        assert not (micro.parent / "run" / "metrics.jsonl").exists()


def test_a_tracker_sees_every_step_and_its_failure_stops_nothing(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self) -> None:
            self.seen: list[int] = []
            self.closed = False

        def log(self, values: dict[str, float], *, step: int) -> None:
            assert values["loss"] > 0
            self.seen.append(step)

        def close(self) -> None:
            self.closed = True
            raise RuntimeError("the network is gone")

    session, listener = Session(), Listener()
    monkeypatch.setattr(TensorBoard, "require", lambda self: None)
    monkeypatch.setattr(TensorBoard, "open", lambda self, folder, *, name, recipe: session)
    value = tomllib.loads(micro.read_text()) | {"tracking": {"kind": "tensorboard"}}
    stages.train(Recipe.from_plain(value, folder=micro.parent, where="test"), observer=listener)
    assert session.seen == list(range(1, 9))
    assert session.closed
    assert "the network is gone" in listener.warnings[0]
