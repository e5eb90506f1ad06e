"""What a run tells whoever started it, and how it is asked to stop; the pipeline itself never prints."""

from collections.abc import Callable
from typing import Protocol

from longspan.records import StepMetrics

Stop = Callable[[], bool]  # True once the run should save its state and end


class Observer(Protocol):
    """Hears of a run's progress. Calls come from the thread that works, so they must return at once."""

    def phase(self, name: str, *, skipped: bool) -> None:
        """A phase begins, or is skipped because it was done before with the same inputs."""

    def step(self, metrics: StepMetrics, *, step_tokens: int, total_tokens: int) -> None:
        """One optimizer step is done; it saw `step_tokens`, and the whole training sees `total_tokens`."""

    def progress(self, done: int, *, total: int, what: str) -> None:
        """`done` of `total` units of the current phase are done."""

    def tell(self, text: str) -> None:
        """A line worth reading: what was chosen, and why."""

    def warn(self, text: str) -> None:
        """Something is amiss that does not stop the run."""


class Silent:
    """The observer that nobody listens to."""

    def phase(self, name: str, *, skipped: bool) -> None:
        """Say nothing."""

    def step(self, metrics: StepMetrics, *, step_tokens: int, total_tokens: int) -> None:
        """Say nothing."""

    def progress(self, done: int, *, total: int, what: str) -> None:
        """Say nothing."""

    def tell(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""


SILENT = Silent()


def never() -> bool:
    """The `Stop` that never asks."""
    return False
