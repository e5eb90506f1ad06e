"""Weights & Biases: on its server when `mode` is "online", else in files that `wandb sync` uploads later."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from longspan.train.trackers.base import Session, Tracker, optional_module


class WeightsAndBiases(Tracker):
    """Send the numbers and the recipe to a `project`. The key comes from `wandb login`, never from a recipe.

    What wandb would gather beside that (source code, the git state, the terminal, the machine) is switched off.
    """

    kind: Literal["wandb"] = "wandb"
    project: str = "longspan"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"

    def require(self) -> Any:
        """The package `wandb`."""
        return optional_module("wandb", extra="wandb")

    def open(self, folder: Path, *, name: str, recipe: Mapping[str, Any]) -> Session:
        """A run whose id is its name, so that a resumed run goes on in the same place."""
        wandb = self.require()
        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
        )
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=str(folder),
            id=name,
            name=name,
            resume="allow",
            config=dict(recipe),
            settings=quiet,
        )
        return _Run(run)


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: dict[str, float], *, step: int) -> None:
        self._run.log({f"train/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()
