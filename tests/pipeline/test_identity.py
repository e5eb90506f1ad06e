"""A run knows its texts and its model by what is in them: edits are noticed, moves are not."""

import os
import shutil
from pathlib import Path

import pytest

from longspan.pipeline import stages
from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError


class Phases:
    """Remembers which phases were skipped."""

    def __init__(self) -> None:
        self.skipped: dict[str, bool] = {}
        self.warnings: list[str] = []

    def phase(self, name: str, *, skipped: bool) -> None:
        self.skipped[name] = skipped

    def step(self, *_: object, **__: object) -> None:
        pass

    def progress(self, *_: object, **__: object) -> None:
        pass

    def tell(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_texts_edited_after_training_are_noticed(micro: Path) -> None:
    recipe, page = Recipe.read(micro), micro.parent / "texts" / "page-1.txt"
    stages.train(recipe)
    text = page.read_text()
    page.write_text(text.replace("river", "brook"))
    seen = Phases()
    with pytest.raises(ConfigError) as caught:
        stages.run(recipe, observer=seen)
    assert caught.value.code == "run.other-texts"
    assert "tokens: " in caught.value.what
    assert seen.skipped == {"prepare": False}
    with pytest.raises(ConfigError) as caught:  # and the verbs that prepare nothing refuse as well
        stages.export(recipe)
    assert caught.value.code == "run.other-texts"
    page.write_text(text)
    seen = Phases()
    assert stages.train(recipe, observer=seen)["step"] == 8
    assert seen.skipped == {"prepare": False, "train": True}


def test_other_times_and_hidden_files_change_nothing_of_a_trained_run(micro: Path) -> None:
    recipe = Recipe.read(micro)
    stages.train(recipe)
    os.utime(micro.parent / "texts" / "page-0.txt", ns=(1, 1))
    (micro.parent / "texts" / ".folder-view").write_text("of a file manager")
    seen = Phases()
    assert stages.train(recipe, observer=seen)["step"] == 8
    assert seen.skipped == {"prepare": False, "train": True}


def test_other_held_out_texts_are_evaluated_again(micro: Path) -> None:
    recipe = Recipe.read(micro)
    stages.run(recipe)
    page = micro.parent / "texts" / "page-3.txt"
    page.write_text(page.read_text().replace("river", "brook"))
    seen = Phases()
    stages.evaluate(recipe, "after", observer=seen)
    assert seen.skipped == {"prepare": False, "after": False}


def test_a_job_moved_with_its_texts_does_nothing_twice(micro: Path) -> None:
    before, after = micro.parent / "before", micro.parent / "after"
    before.mkdir()
    for name in (micro.name, "texts"):
        shutil.move(micro.parent / name, before / name)
    stages.run(Recipe.read(before / micro.name))
    before.rename(after)
    seen = Phases()
    stages.run(Recipe.read(after / micro.name), observer=seen)
    assert seen.skipped == {"prepare": True, "train": True, "after": True, "export": True, "report": False}


def test_another_model_in_the_same_place_is_refused(micro: Path) -> None:
    stages.run(Recipe.read(micro))
    shutil.copytree(micro.parent / "run" / "export", micro.parent / "model")
    text = micro.read_text()
    head, tail = text[: text.index("[model.new]")], text[text.index("[data]") :]
    micro.write_text(f'{head.replace("run", "longer")}[model]\nfolder = "model"\n{tail}')
    stages.train(Recipe.read(micro))
    other = text.replace("seed = 1", "seed = 2").replace('"run"', '"other"')
    micro.with_name("other.toml").write_text(other)
    stages.run(Recipe.read(micro.with_name("other.toml")))
    shutil.rmtree(micro.parent / "model")
    shutil.copytree(micro.parent / "other" / "export", micro.parent / "model")
    with pytest.raises(ConfigError) as caught:
        stages.train(Recipe.read(micro))
    assert caught.value.code == "run.other-texts"
    assert "base: " in caught.value.what


def test_a_corrected_recipe_goes_on_in_the_folder_of_the_failed_one(micro: Path) -> None:
    text = micro.read_text()
    micro.write_text(text.replace('held_out = ["page-3.txt"]', 'held_out = ["page-9.txt"]'))
    with pytest.raises(Exception, match=r"page-9\.txt"):
        stages.train(Recipe.read(micro))
    micro.write_text(text)
    assert stages.train(Recipe.read(micro))["step"] == 8
