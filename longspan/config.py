"""What every group of settings is, and how a folder of files becomes the choices of a recipe."""

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field

from longspan.utils.errors import ConfigError
from longspan.utils.values import nearest


class Settings(BaseModel):
    """Frozen, strict, no unknown keys, no NaN or infinity: what a recipe says is what it means."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def kinds(package: str) -> tuple[str, ...]:
    """Names of the kinds in a package: one public file, one kind.

    Files that start with an underscore, and `base`, hold what kinds share and are no kinds.
    """
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return tuple(sorted(m.name for m in found if not m.name.startswith("_") and m.name != "base"))


@cache
def kind_class(package: str, kind: str) -> type[Settings]:
    """The settings class of one kind: the only `Settings` subclass that its file defines.

    Raises `ConfigError` with a suggestion when there is no such file.
    """
    have = kinds(package)
    if kind not in have:
        near = nearest(kind, have)
        raise ConfigError(
            "recipe.unknown-kind",
            f"no {kind!r} in {package} (have: {', '.join(have)})",
            fix=f"did you mean {near!r}?" if near else "choose one of these",
        )
    module = importlib.import_module(f"{package}.{kind}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Settings)
        and value.__module__ == module.__name__
        and "kind" in value.model_fields
    ]
    assert len(classes) == 1, f"{module.__name__} must define exactly one settings class with a kind"
    return classes[0]


def any_kind(package: str) -> Any:
    """The pydantic type "one of the kinds in this package", told apart by the field `kind`."""
    choices = tuple(kind_class(package, kind) for kind in kinds(package))
    return Annotated[Union[choices], Field(discriminator="kind")]  # noqa: UP007 - the choices are known at run time only
