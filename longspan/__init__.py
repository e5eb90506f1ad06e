"""longspan takes a language model trained on a short context and gives back one that works on a long one.

The public API: `load(folder) -> Decoder`, `save(decoder, folder)`, `Recipe.read(path)`, `run(recipe)`. Each is
imported when it is first used, so that `import longspan` and `longspan --help` answer at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.model.weights import load, save
    from longspan.pipeline.recipe import Recipe
    from longspan.pipeline.stages import run

__all__ = ["Recipe", "__version__", "load", "run", "save"]
__version__ = "0.1.0"

_HOMES = {
    "load": "longspan.model.weights",
    "save": "longspan.model.weights",
    "Recipe": "longspan.pipeline.recipe",
    "run": "longspan.pipeline.stages",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home. Raises `AttributeError` for any other name."""
    if name not in _HOMES:
        raise AttributeError(f"longspan has no {name!r} (have: {', '.join(__all__)})")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
