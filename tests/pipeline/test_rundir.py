"""A run folder belongs to one recipe and one process, and knows what is done."""

import json
import tomllib
from pathlib import Path

import pytest

from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder, versions
from longspan.utils.errors import ConfigError


def _changed(micro: Path, **changes: object) -> Recipe:
    return Recipe.from_plain({**tomllib.loads(micro.read_text()), **changes}, folder=micro.parent, where="test")


def test_another_recipe_is_refused_with_its_differences(micro: Path) -> None:
    recipe = Recipe.read(micro)
    folder = RunFolder(recipe.output)
    with folder.opened(recipe):
        (folder.checkpoints / "step-000002").mkdir(parents=True)
    stages = tomllib.loads(micro.read_text())["stages"]
    stages[1]["learning_rate"] = 5e-4
    with pytest.raises(ConfigError) as caught, folder.opened(_changed(micro, seed=9, stages=stages)):
        pass
    assert caught.value.code == "run.other-recipe"
    assert "seed: 1, now 9" in caught.value.what
    assert "stages.1.learning_rate: 0.001, now 0.0005" in caught.value.what


def test_a_corrected_recipe_takes_over_what_holds_no_checkpoint(micro: Path) -> None:
    folder = RunFolder(Recipe.read(micro).output)
    stale = (folder.metrics, folder.evaluation("before"), folder.evaluation("after"), folder.gate(0), folder.gate(1))
    with folder.opened(Recipe.read(micro)):
        for path in (folder.evaluation("before"), folder.gate(0)):
            path.parent.mkdir()
        for path in stale:
            path.write_text("of the first attempt")
    with folder.opened(Recipe.read(micro)):
        assert all(path.exists() for path in stale)
    with folder.opened(_changed(micro, seed=9)):
        assert json.loads(folder.recipe.read_text())["seed"] == 9
    assert not any(path.exists() for path in stale)


def test_harmless_changes_are_taken_and_written(micro: Path) -> None:
    recipe = Recipe.read(micro)
    folder = RunFolder(recipe.output)
    with folder.opened(recipe):
        pass
    with folder.opened(_changed(micro, name="renamed", eval={"tasks": []})):
        assert json.loads(folder.recipe.read_text())["name"] == "renamed"
        assert json.loads(folder.versions.read_text()) == versions()
    assert {"python", "torch", "machine"} <= versions().keys()


def test_two_processes_cannot_hold_one_folder(micro: Path) -> None:
    recipe = Recipe.read(micro)
    with (
        RunFolder(recipe.output).opened(recipe),
        pytest.raises(ConfigError) as caught,
        RunFolder(recipe.output).opened(recipe),
    ):
        pass
    assert caught.value.code == "run.locked"
    with RunFolder(recipe.output).opened(recipe):  # free again
        pass


def test_foreign_folders_are_left_alone(micro: Path) -> None:
    recipe = Recipe.read(micro)
    for output in (micro.parent / "texts", micro):
        with pytest.raises(ConfigError) as caught, RunFolder(output).opened(recipe):
            pass
        assert caught.value.code == "run.not-a-run"
    assert sorted(path.name for path in (micro.parent / "texts").iterdir())[0] == "page-0.txt"


def test_work_is_done_once_and_again_for_other_inputs(tmp_path: Path) -> None:
    folder, output, calls = RunFolder(tmp_path), tmp_path / "result", []

    def work() -> None:
        calls.append(1)
        output.write_text("x")

    for inputs, expected in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 1}, 3)):
        folder.once("train", inputs, work=work, outputs=(output,))
        assert len(calls) == expected
    output.unlink()
    folder.once("train", {"a": 1}, work=work, outputs=(output,))
    assert len(calls) == 4


def test_interrupted_work_is_not_done_and_its_seconds_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clock = RunFolder(tmp_path), iter([10.0, 13.0, 100.0, 104.0])
    monkeypatch.setattr("longspan.pipeline.rundir.time.monotonic", lambda: next(clock))

    def fail() -> None:
        assert not folder.done("train", 1)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        folder.once("train", 1, work=fail)
    assert not folder.done("train", 1)
    folder.once("train", 1, work=lambda: None)
    assert folder.done("train", 1)
    assert folder.seconds() == {"train": 7.0}


def test_a_mark_of_older_inputs_does_not_survive_a_kill(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.once("train", "old", work=lambda: None)

    def killed() -> None:  # what a kill leaves behind is what is on disk while the work runs
        assert not RunFolder(tmp_path).done("train", "old")

    folder.once("train", "new", work=killed)
