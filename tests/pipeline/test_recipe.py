"""A recipe says what it means, survives being written and read, and refuses what cannot be meant."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longspan.pipeline.recipe import Recipe, schema
from longspan.utils.errors import ConfigError


def test_paths_are_relative_to_the_file(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    recipe = Recipe.read(micro)
    assert recipe.output == micro.parent / "run"
    assert recipe.data.sources[0].path == micro.parent / "texts"


def test_toml_and_resolved_json_are_the_same_recipe(micro: Path) -> None:
    recipe = Recipe.read(micro)
    resolved = micro.with_name("resolved.json")
    resolved.write_text(json.dumps(recipe.plain()))
    assert Recipe.read(resolved) == recipe


@given(
    seed=st.integers(0, 2**63 - 1),
    rows=st.integers(1, 64),
    length=st.integers(2, 2**21),
    steps=st.integers(1, 1000),
    rate=st.floats(1e-12, 1.0),
    share=st.floats(0.01, 0.99),
    beta=st.floats(1.0, 64.0),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(
    micro: Path, seed: int, rows: int, length: int, steps: int, rate: float, share: float, beta: float, name: str
) -> None:
    value = tomllib.loads(micro.read_text())
    value |= {"seed": seed, "name": name}
    value["stages"][1] |= {
        "length": length,
        "batch_tokens": rows * length,
        "tokens": rows * length * steps,
        "learning_rate": rate,
        "rope": {"kind": "yarn", "beta_fast": beta},
        "mix": [{"share": share}, {"share": 1.0 - share, "probe": {"kind": "passkey"}}],
    }
    recipe = Recipe.from_plain(value, folder=micro.parent, where="test")
    stage = recipe.stages[1]
    assert (stage.steps, stage.rows_per_step, stage.learning_rate) == (steps, rows, rate)
    assert recipe.stages[1].rope.model_dump()["beta_fast"] == beta
    assert Recipe.from_plain(json.loads(json.dumps(recipe.plain())), folder=Path("/"), where="test") == recipe


def test_shaping_ignores_what_shapes_no_weight_and_where_things_lie(micro: Path) -> None:
    recipe, value = Recipe.read(micro), tomllib.loads(micro.read_text())

    def changed(folder: Path = micro.parent, **changes: object) -> dict[str, Any]:
        return Recipe.from_plain({**value, **changes}, folder=folder, where="test").shaping

    assert changed(output="other", name="other", device="auto", eval={"tasks": []}) == recipe.shaping
    assert changed(train={**value["train"], "save_every_steps": 7}) == recipe.shaping
    assert changed(data={**value["data"], "tokenizer": "elsewhere"}) == recipe.shaping
    assert changed(Path("/moved")) == recipe.shaping
    assert changed(model={"folder": "a"}) == changed(model={"folder": "b"}) != recipe.shaping
    assert changed(seed=2) != recipe.shaping
    assert changed(train={"weight_decay": 0.2}) != recipe.shaping
    assert changed(data={**value["data"], "held_out": ["page-2.txt"]}) != recipe.shaping


def test_schema_describes_every_kind() -> None:
    text = json.dumps(schema())
    assert json.loads(text)["properties"]["stages"]["type"] == "array"
    for kind in ("yarn", "theta_law", "needle", "grid", "position_loss", "trackio"):
        assert f'"const": "{kind}"' in text


def test_missing_paths_are_named_before_work(micro: Path) -> None:
    value = tomllib.loads(micro.read_text())

    def refused(**changes: object) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            Recipe.from_plain({**value, **changes}, folder=micro.parent, where="test").check_paths()
        assert caught.value.code == "recipe.path"
        return caught.value

    assert "model.folder is no folder" in refused(model={"folder": "nowhere"}).what
    assert "config.json" in refused(model={"folder": "texts"}).what
    assert "data.sources.0.path" in refused(data={"sources": [{"path": "gone"}]}).what
    assert "data.tokenizer" in refused(data={**value["data"], "tokenizer": "texts"}).what


def test_a_folder_is_no_recipe_and_size_is_limited(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.read(tmp_path)
    assert caught.value.code == "recipe.missing"
    large = tmp_path / "large.toml"
    large.write_text("# " + "x" * 2**20)
    with pytest.raises(ConfigError) as caught:
        Recipe.read(large)
    assert caught.value.code == "recipe.size"
    for name, content, code in (
        ("list.json", "[]", "recipe.json"),
        ("twice.json", '{"seed": 1, "seed": 2}', "recipe.json"),
        ("deep.toml", "a = " + "[" * 5000 + "]" * 5000, "recipe.toml"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError) as caught:
            Recipe.read(tmp_path / name)
        assert caught.value.code == code


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_every_example_is_a_recipe(path: Path) -> None:
    recipe = Recipe.read(path)
    ours = [source.path for source in recipe.data.sources if path.parent in source.path.resolve().parents]
    assert all(source.exists() for source in ours)  # others are fetched, or the reader's own
    assert all(stage.steps >= 1 for stage in recipe.stages)
