"""A race of position settings, taken out of its run folder as a page for others."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder
from longspan.pipeline.words import taken
from longspan.report.race import race_svg, read_race
from longspan.report.racepage import race_page
from longspan.utils.errors import ConfigError
from longspan.utils.files import read_json, write_atomic, write_json

PAGE, SUMMARY, DETAILS, PICTURE = "README.md", "summary.json", "details.json", "race.svg"
KEYS = ("nll", "needle", "gpu_seconds", "evaluations", "seeds")


def summary_of(details: dict[str, Any]) -> dict[str, Any]:
    """{factor: {method: {nll, needle, gpu_seconds, evaluations, seeds}}} of a race's details."""
    return {
        factor: {name: {key: value[key] for key in KEYS} for name, value in found["methods"].items()}
        for factor, found in details.items()
    }


def write_race(folder: Path, details: dict[str, Any]) -> None:
    """Numbers and picture of what was raced so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DETAILS, details)
    write_json(folder / SUMMARY, summary_of(details))
    write_atomic(folder / PICTURE, race_svg("Position settings compared", read_race(details)).encode())


def page_words(words: Sequence[str], *, usage: str) -> tuple[Path, Path, list[str]]:
    """The recipe, the folder that --page names, and the overrides. Raises `ConfigError` when one is missing."""
    given, rest = taken(list(words), ("--page",), usage=usage)
    if not rest or rest[0].startswith("-"):
        raise ConfigError("cli.usage", "--page needs a recipe", where=usage, fix="RECIPE --page FOLDER")
    return Path(rest[0]), Path(given["--page"]), rest[1:]


def write_page(recipe: Recipe, folder: Path, *, path: Path, words: Sequence[str]) -> dict[str, Any]:
    """Numbers, picture and README.md of a recipe's race into a folder of their own; nothing is measured.

    `path` and `words` are the recipe and its overrides as typed: the page repeats them. Raises `ConfigError` when there
    was no race yet.
    """
    run = RunFolder(recipe.output)
    if not run.race.exists():
        raise ConfigError(
            "search.no-race",
            "the run folder holds no race",
            where=str(run.race),
            fix="run the same command with --compare instead of --page first",
        )
    details = read_json(run.race)
    write_race(folder, details)
    told = shlex.join(["longspan", "search", str(path), "--compare", *words])
    page = race_page(
        details,
        title=f"{recipe.name}: a race of position settings",
        commands=[told, shlex.join(["longspan", "search", str(path), "--page", str(folder), *words])],
        versions=read_json(run.versions),
        picture=PICTURE,
    )
    write_atomic(folder / PAGE, page.encode())
    return {"page": str(folder / PAGE), "summary": str(folder / SUMMARY)}
