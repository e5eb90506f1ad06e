"""Runs over several ranks as a user starts them: one command, whole processes, gloo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longspan import cli
from longspan.parallel.mesh import Mesh
from longspan.pipeline import prepared, stages, verify
from longspan.pipeline.job import Job
from longspan.pipeline.launch import local_ranks
from longspan.pipeline.meshes import meshes
from longspan.pipeline.observer import SILENT, never
from longspan.pipeline.parity import Bounds, Comparison, Verdict
from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError, LongspanError

ENDING_SECONDS = 120


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "longspan", *map(str, words)]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spread(recipe: Path, *lines: str) -> Path:
    """The recipe with two ranks: rows apart in the first stage, tokens of a row apart in the second."""
    text = recipe.read_text().replace('rope = { kind = "yarn" }', 'rope = { kind = "yarn" }\nmesh = { ulysses = 2 }')
    path = recipe.with_name("spread.toml")
    path.write_text(text + "\n[parallel]\nranks = 2\n" + "\n".join(lines) + "\n")
    return path


def test_one_command_runs_the_whole_job_on_two_ranks(micro: Path) -> None:
    assert cli.main(["train", str(micro), "--output", str(micro.with_name("alone"))]) == cli.OK
    done = subprocess.run(command("run", spread(micro), "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["verb"] for answer in answers] == ["run"], "one rank answers for all"
    assert "stage 1" in done.stderr
    here, alone = losses(micro.with_name("run")), losses(micro.with_name("alone"))
    assert len(here) == len(alone) == 8
    assert here == pytest.approx(alone, rel=1e-5)


def test_a_run_goes_on_with_fewer_ranks(micro: Path) -> None:
    path = spread(micro)
    assert cli.main(["train", str(micro), "--output", str(micro.with_name("alone"))]) == cli.OK
    process = subprocess.Popen(command("train", path), stderr=subprocess.PIPE, text=True)
    metrics = micro.with_name("run") / "metrics.jsonl"
    until = time.monotonic() + ENDING_SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=ENDING_SECONDS)
    assert process.returncode in (cli.OK, cli.AGAIN), told
    assert cli.main(["train", str(micro)]) == cli.OK, "one rank"
    assert losses(micro.with_name("run")) == pytest.approx(losses(micro.with_name("alone")), rel=1e-5)


def test_a_killed_rank_ends_the_run_and_is_named(micro: Path) -> None:
    path = spread(micro, "deadline_seconds = 20")
    path.write_text(path.read_text().replace("tokens = 1024", "tokens = 1024000"))
    process = subprocess.Popen(command("train", path), stderr=subprocess.PIPE, text=True)
    metrics = micro.with_name("run") / "metrics.jsonl"
    until = time.monotonic() + ENDING_SECONDS
    while not (metrics.exists() and metrics.read_text().count("\n") >= 6) and time.monotonic() < until:
        time.sleep(0.02)
    ranks = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    _, told = process.communicate(timeout=ENDING_SECONDS)
    assert process.returncode not in (cli.OK, cli.BUG), told
    assert re.search(r"rank 1 (was ended by SIGKILL|is gone or stopped)", told), told


def test_meshes_are_verified_before_money_is_spent(micro: Path) -> None:
    done = subprocess.run(command("verify", spread(micro), "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compared"] == 4, "two meshes, each with and without a rank that has no target"
    assert "mesh shard 2, three documents: equal" in done.stderr
    assert "mesh ulysses 2, one rank without a target: equal" in done.stderr


def test_one_rank_has_nothing_to_verify(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(micro)]) == cli.MISTAKE
    assert "verify.one-rank" in capsys.readouterr().err


def test_a_mesh_that_differs_fails_with_its_table(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Comparison(case="planted", loss=2.0, mesh_loss=3.0, bounds=Bounds(1e-6, 1e-5), gradients=())
    monkeypatch.setattr(verify, "compare_mesh", lambda *_, **__: Verdict(False, (found,)))
    monkeypatch.setattr(verify, "scheme_of", lambda *_: None)
    with Job.opened(Recipe.read(micro), observer=SILENT, stop=never) as job:
        stages._prepare(job)
        object.__setattr__(job, "world", SimpleNamespace(device=torch.device("cpu")))
        with pytest.raises(LongspanError, match=r"(?s)planted: NOT equal.*off by 5.0e-01") as caught:
            verify.verify_here(job, prepared.stage_slots(job))
    assert caught.value.code == "verify.differs"


def test_ranks_that_a_recipe_asks_for(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.read(micro)
    assert local_ranks(recipe) == 1
    assert local_ranks(Recipe.read(spread(micro))) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    on_gpus = Recipe.model_validate_json(json.dumps(recipe.plain() | {"device": "auto"}))
    assert local_ranks(on_gpus) == 4
    asked = Recipe.model_validate_json(json.dumps(on_gpus.plain() | {"parallel": {"ranks": 8}}))
    with pytest.raises(ConfigError, match="8 ranks for 4 GPUs"):
        local_ranks(asked)


def test_meshes_that_do_not_fit_are_refused(micro: Path) -> None:
    recipe = Recipe.read(spread(micro))
    with pytest.raises(ConfigError) as caught:
        meshes(recipe, ranks=3, automatic=lambda _: Mesh(shard=3))
    assert caught.value.where == "recipe: stages.1.mesh"
    copies = recipe.plain()
    copies["parallel"]["mesh"] = {"replicate": 2}
    with pytest.raises(ConfigError, match="2 copies"):
        meshes(Recipe.model_validate_json(json.dumps(copies)), ranks=2, automatic=lambda _: Mesh(shard=2))
