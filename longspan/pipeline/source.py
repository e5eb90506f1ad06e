"""Reading the file of a recipe: TOML or JSON, small, plain, without surprises."""

import datetime
import tomllib
from pathlib import Path
from typing import Any

from longspan.utils.errors import ConfigError
from longspan.utils.files import read_json

MAX_RECIPE_BYTES = 2**20


def read_source(path: Path) -> dict[str, Any]:
    """The tables of a `.toml` or `.json` file as JSON values.

    Raises `ConfigError` for a file that is missing, too large, of another format, or no valid text.
    """
    where = str(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        fix = "name the recipe file itself" if path.is_dir() else "check the path, or write one with: longspan init"
        raise ConfigError("recipe.missing", f"the recipe {path.name} {what}", where=where, fix=fix)
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ConfigError(
            "recipe.size", f"larger than {MAX_RECIPE_BYTES} bytes", where=where, fix="a recipe is a short TOML file"
        )
    if path.suffix == ".json":
        value = read_json(path, error=ConfigError, code="recipe.json")
        if not isinstance(value, dict):
            raise ConfigError("recipe.json", "a recipe is a JSON object", where=where, fix="start it with {")
        return value
    if path.suffix != ".toml":
        raise ConfigError(
            "recipe.format",
            f"{path.suffix or 'a file without ending'} is no recipe format",
            where=where,
            fix="write the recipe as TOML in a file that ends in .toml (longspan init writes one)",
        )
    return _read_toml(path)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            "recipe.toml", f"byte {error.start} is no UTF-8", where=str(path), fix="save the file as UTF-8 text"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            "recipe.toml", f"this is no valid TOML: {error}", where=str(path), fix="mend that line"
        ) from None
    except RecursionError:
        raise ConfigError("recipe.toml", "nested too deeply", where=str(path), fix="a recipe is flat") from None
    _refuse_dates(value, (), where=str(path))
    return value


def _refuse_dates(value: Any, keys: tuple[str, ...], *, where: str) -> None:
    if isinstance(value, datetime.date | datetime.time):
        raise ConfigError(
            "recipe.type",
            f"{'.'.join(keys)} is a date or a time ({value})",
            where=where,
            fix="no setting takes one; put the value in quotes if a text was meant",
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_dates(item, (*keys, key), where=where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_dates(item, (*keys, str(index)), where=where)
