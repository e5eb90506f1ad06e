"""A job with LoRA: only what the recipe names is trained, stops change no bit, and both exports say the same."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import longspan
from longspan import cli
from longspan.model.peft import load_adapter
from longspan.pipeline import stages
from longspan.pipeline.observer import Silent
from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError, Interrupted

LORA = {"rank": 4, "alpha": 8.0, "projections": ["q", "v", "down"], "also_train": ["norms"]}


def recipe_on(micro: Path, output: str, **changes: Any) -> Recipe:
    """A job of one stage at 256 tokens on the model that the micro job made."""
    value = tomllib.loads(micro.read_text())
    value |= {"model": {"folder": "run/export"}, "output": output, "lora": LORA, "stages": value["stages"][1:]}
    value["stages"][0] |= {"length": 256, "learning_rate": 1e-2, "rope": {"kind": "theta_law"}}
    return Recipe.from_plain(value | changes, folder=micro.parent, where="test")


def test_a_job_with_adapters_from_start_to_export(micro: Path) -> None:
    longspan.run(Recipe.read(micro))
    recipe, run, base = recipe_on(micro, "adapted"), micro.parent / "adapted", micro.parent / "run" / "export"
    result = longspan.run(recipe)
    assert result["export_max_logit_diff"] <= 1e-4
    assert result["needle_before"].keys() == {"128"}

    before, after = (load_file(folder / "model.safetensors") for folder in (base, run / "export"))
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    layer = "model.layers.0"
    assert changed == {
        "model.norm.weight",
        f"{layer}.input_layernorm.weight",
        f"{layer}.post_attention_layernorm.weight",
    } | {f"{layer}.{name}.weight" for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")}
    merged, adapted = longspan.load(run / "export"), longspan.load(base)
    load_adapter(adapted, run / "adapter")
    tokens = torch.arange(200)[None]
    assert (merged(tokens) - adapted(tokens)).abs().max() <= 1e-5
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == ["q_proj", "v_proj", "down_proj"]

    saved = load_file(run / "checkpoints" / "step-000004" / "model.safetensors")
    assert saved.keys() == {name for name, weight in adapted.named_parameters() if weight.requires_grad}

    told = stages.export(recipe)
    assert told["adapter"] == str(run / "adapter")
    _stopped_is_the_same(micro, run)
    with pytest.raises(ConfigError) as error:
        stages.train(recipe_on(micro, "adapted", lora=LORA | {"rank": 5}))
    assert error.value.code == "run.other-recipe"
    assert "lora.rank: 4, now 5" in error.value.what
    with pytest.raises(ConfigError) as error:
        stages.train(recipe_on(micro, "never", lora=LORA | {"also_train": ["head"]}))
    assert error.value.code == "lora.tied-head"


class Counter(Silent):
    """Counts the steps of training."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, *_: object, **__: object) -> None:
        self.steps += 1


def _stopped_is_the_same(micro: Path, whole: Path) -> None:
    recipe, seen = recipe_on(micro, "stopped"), Counter()
    with pytest.raises(Interrupted):
        stages.train(recipe, observer=seen, stop=lambda: seen.steps == 3)
    stages.train(recipe, observer=seen)
    assert seen.steps == 4
    stages.export(recipe)
    for file in ("adapter_model.safetensors", "adapter_config.json", "base_config.json"):
        assert (micro.parent / "stopped" / "adapter" / file).read_bytes() == (whole / "adapter" / file).read_bytes()


def test_a_new_model_has_nothing_to_adapt(micro: Path) -> None:
    value = tomllib.loads(micro.read_text()) | {"lora": LORA}
    with pytest.raises(ConfigError, match="trained already") as error:
        Recipe.from_plain(value, folder=micro.parent, where="test")
    assert error.value.code == "recipe.value"


def test_runs_without_adapters_keep_the_identity_that_they_had(micro: Path) -> None:
    assert "lora" not in Recipe.read(micro).shaping
    assert recipe_on(micro, "adapted").shaping["lora"]["projections"] == ["q", "v", "down"]


def test_every_key_can_be_changed_on_the_command_line(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = micro.with_name("adapted.toml")
    text = micro.read_text()
    head, tail = text[: text.index("[model.new]")], text[text.index("[data]") :]
    path.write_text(f'{head}[model]\nfolder = "nowhere"\n[lora]\nrank = 4\n{tail}')
    assert cli.main(["run", str(path), "--lora.rank", "0", "--json"]) == cli.MISTAKE
    assert "lora: rank" in json.loads(capsys.readouterr().out.splitlines()[-1])["where"]
