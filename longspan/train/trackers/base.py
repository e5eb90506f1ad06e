"""What every tracker is, and the guard that keeps a failing tracker away from training."""

import contextlib
import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from longspan.config import Settings
from longspan.records import StepMetrics
from longspan.utils.errors import ConfigError


class Session(Protocol):
    """An open tracker."""

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Finish what is in flight."""


class Tracker(Settings, ABC):
    """Settings of one tracker. Its package is imported only when the recipe chooses it."""

    @abstractmethod
    def require(self) -> Any:
        """Import the tracker's package; raises `ConfigError` that names the extra to install when it is missing."""

    @abstractmethod
    def open(self, folder: Path, *, name: str, recipe: Mapping[str, Any]) -> Session:
        """Begin, or go on with, the run called `name` (no other run is); the tracker's own files go into `folder`."""


class Tracking:
    """A tracker in use: it sees every step, and its first failure is told once and ends it, not the training."""

    def __init__(
        self, tracker: Tracker, folder: Path, *, name: str, recipe: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        tracker.require()
        self._warn = warn

        def begin() -> Session:
            folder.mkdir(parents=True, exist_ok=True)
            return tracker.open(folder, name=name, recipe=recipe)

        self._session: Session | None = self._guard(begin)

    def observe(self, metrics: StepMetrics) -> None:
        """Send one step; numbers that are not finite are left out, because most trackers take none."""
        values = {
            key: value
            for key, value in asdict(metrics).items()
            if key not in ("step", "event") and math.isfinite(value)
        }
        if session := self._session:
            self._guard(lambda: session.log(values, step=metrics.step))

    def close(self) -> None:
        """Finish; safe to call after a failure."""
        if session := self._session:
            self._guard(session.close)
        self._session = None

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            # Some trackers print as they please; what longspan writes to standard output is for scripts.
            with contextlib.redirect_stdout(sys.stderr):
                return action()
        except Exception as error:  # noqa: BLE001 - a foreign package may fail in any way, and training goes on
            self._session = None
            self._warn(f"the tracker failed and is switched off, training goes on: {error}")
            return None


def optional_module(module: str, *, extra: str) -> Any:
    """Import a package that only one tracker needs; raises `ConfigError` when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise ConfigError(
            "tracker.missing",
            f"the tracker {extra!r} needs a package that is not installed: {cause}",
            where="tracking.kind",
            fix=f"pip install 'longspan[{extra}]', or take tracking out of the recipe",
        ) from cause
