"""TensorBoard: event files in the run folder, read by `tensorboard --logdir`; nothing leaves the machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from longspan.train.trackers.base import Session, Tracker, optional_module


class TensorBoard(Tracker):
    """Write scalars as TensorBoard event files into `tensorboard/` of the run folder."""

    kind: Literal["tensorboard"] = "tensorboard"

    def require(self) -> Any:
        """PyTorch's own event writer, which needs the package `tensorboard`."""
        return optional_module("torch.utils.tensorboard", extra="tensorboard")

    def open(self, folder: Path, *, name: str, recipe: Mapping[str, Any]) -> Session:
        """Event files of the run, with the recipe as text beside the curves."""
        return _EventFiles(self.require(), folder / "tensorboard" / name, recipe)


class _EventFiles:
    """A writer that is made at the first step: a run that goes on makes TensorBoard drop the steps it repeats."""

    def __init__(self, module: Any, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._module, self._folder, self._recipe = module, folder, recipe
        self._writer: Any = None

    def log(self, values: dict[str, float], *, step: int) -> None:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self._folder), purge_step=step)
            self._writer.add_text("recipe", f"```json\n{json.dumps(self._recipe, indent=2)}\n```", step)
        for key, value in values.items():
            self._writer.add_scalar(f"train/{key}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
