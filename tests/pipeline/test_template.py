"""The recipe that `init` writes can be read back, whatever the model folder is called."""

import json
from pathlib import Path

import pytest

from longspan.pipeline.recipe import Recipe
from longspan.pipeline.template import write_recipe
from longspan.utils.errors import ConfigError, ModelError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("name", ["tiny", 'odd "name" {0} \\ ü', "…"])
def test_written_recipe_reads_back(tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    path = write_recipe(model, to=tmp_path / "jobs" / "a.toml")
    recipe = Recipe.read(path)
    assert recipe.model.folder == model
    assert [stage.length for stage in recipe.stages] == [1024, 2048]
    assert sum(line.lstrip().startswith("#") for line in path.read_text().splitlines()) >= 4


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "a.toml").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_recipe(tmp_path, to=tmp_path / "a.toml")
    assert caught.value.code == "init.exists"
    assert (tmp_path / "a.toml").read_text() == "mine"
    with pytest.raises(ConfigError) as caught:
        write_recipe(tmp_path, to=tmp_path / "a.yaml")
    assert caught.value.code == "init.format"
    with pytest.raises(ModelError):
        write_recipe(tmp_path / "gone", to=tmp_path / "b.toml")
