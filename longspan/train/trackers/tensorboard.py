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
        writer = self.require().SummaryWriter(str(folder / "tensorboard" / name))
        writer.add_text("recipe", f"```json\n{json.dumps(recipe, indent=2)}\n```")
        return _EventFiles(writer)


class _EventFiles:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, values: dict[str, float], *, step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"train/{key}", value, step)

    def close(self) -> None:
        self._writer.close()
