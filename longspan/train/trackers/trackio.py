"""Trackio: a local database with a local dashboard (`trackio show`), or a Hugging Face Space when one is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from longspan.train.trackers.base import Session, Tracker, optional_module


class Trackio(Tracker):
    """Log the numbers and the recipe into a `project` on this machine, or into the Space `space_id`.

    The key of a Space comes from the hub's login, never from a recipe. Gathering of machine figures is off.
    """

    kind: Literal["trackio"] = "trackio"
    project: str = "longspan"
    space_id: str | None = None

    def require(self) -> Any:
        """The package `trackio`."""
        return optional_module("trackio", extra="trackio")

    def open(self, folder: Path, *, name: str, recipe: Mapping[str, Any]) -> Session:  # noqa: ARG002 - see below
        """A run of that name, continued when there is one; trackio keeps its files in a place of its own."""
        trackio = self.require()
        run = trackio.init(
            project=self.project,
            name=name,
            space_id=self.space_id,
            config=dict(recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return _Run(run, trackio)


class _Run:
    def __init__(self, run: Any, trackio: Any) -> None:
        self._run, self._trackio = run, trackio

    def log(self, values: dict[str, float], *, step: int) -> None:
        self._run.log({f"train/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        self._trackio.finish()  # the run's own finish would be called once more when the process ends
