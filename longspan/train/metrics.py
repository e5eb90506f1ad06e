"""The run's diary `metrics.jsonl`: one line a step, and after a kill the same lines as without it."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longspan.records import StepMetrics
from longspan.utils.errors import DataError
from longspan.utils.files import storage_errors


class MetricsFile:
    """Appends `StepMetrics` to a file; pass `write` as the loop's `observe`.

    A run that goes on from a checkpoint repeats steps that are in the file already: the first step written drops
    every line from that step on, and a line that a kill cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_step = _drop_from(path, None)

    def write(self, metrics: StepMetrics) -> None:
        """Append one line durably. A loss that is no number is written as null. Raises `StorageError`."""
        if metrics.step <= self._last_step:
            _drop_from(self.path, metrics.step)
        value = {key: _plain(entry) for key, entry in asdict(metrics).items()}
        with storage_errors(self.path), self.path.open("ab") as file:
            file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
            file.flush()
            # The line has to be on disk before a checkpoint says that its step is done.
            os.fsync(file.fileno())
        self._last_step = metrics.step


def read_metrics(path: Path) -> list[StepMetrics]:
    """All whole lines of a metrics file, null read as NaN; none when there is no file.

    Raises `DataError` for a line that is no step.
    """
    try:
        return [_parse(line) for line in _whole_lines(path)]
    except (ValueError, TypeError) as cause:
        raise DataError(
            "metrics.line",
            f"{path.name} holds a line that is no training step: {cause}",
            where=str(path),
            fix="move the file aside; training writes a new one",
        ) from cause


def _parse(line: bytes) -> StepMetrics:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    filled: dict[str, Any] = {key: math.nan if entry is None else entry for key, entry in value.items()}
    return StepMetrics(**filled)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    # The last piece is empty, or a line that a kill cut short.
    return path.read_bytes().split(b"\n")[:-1]


def _drop_from(path: Path, step: int | None) -> int:
    """Keep the whole lines before `step` (all when None); the step of the last line kept, 0 for an empty file."""
    steps = [metrics.step for metrics in read_metrics(path)]  # a damaged file is named before anything is cut
    kept = next((index for index, number in enumerate(steps) if step is not None and number >= step), len(steps))
    if path.exists():
        with storage_errors(path):
            os.truncate(path, sum(len(line) + 1 for line in _whole_lines(path)[:kept]))
    return steps[kept - 1] if kept else 0
