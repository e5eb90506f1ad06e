"""One part of a curation, in whatever process an executor gives it; torch is loaded only for a filter that scores."""

from pathlib import Path

from longspan.data.curate import Curation
from longspan.data.filters.base import Tools
from longspan.data.filters.dependency import Dependency
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder


def work_on_part(recipe_file: Path, number: int, part: int) -> None:
    """Do part `part` of pass `number` of the curation in the recipe's run folder.

    Raises `LongspanError` for what the user can mend.
    """
    recipe = Recipe.read(recipe_file)
    Curation(RunFolder(recipe.output).curated, recipe.data).work(number, part, filter_tools(recipe))


def filter_tools(recipe: Recipe) -> Tools:
    """What the filters of a recipe need; a model is loaded only when one of them scores with it."""
    assert recipe.data.curate is not None, "only asked of recipes with filters"
    found = next((entry for entry in recipe.data.curate.filters if isinstance(entry, Dependency)), None)
    if found is None:
        return Tools()
    from longspan.pipeline.scoring import scoring_tools  # noqa: PLC0415 - brings torch

    folder = found.model or recipe.model.folder
    assert folder is not None, "checked before"
    return scoring_tools(folder, gpu=recipe.device != "cpu")
