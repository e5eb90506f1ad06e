"""What a recipe may ask of a model between two stages."""

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from longspan.config import Settings, any_kind
from longspan.eval.tasks.grid import Grid
from longspan.eval.tasks.short import Short

if TYPE_CHECKING:
    from longspan.eval.tasks.base import Task as TaskChoice
else:  # the choices are the files of a folder, known at run time only
    TaskChoice = any_kind("longspan.eval.tasks")


class Gate(Settings):
    """What the model must show after a stage before training goes on: `tasks` of kind grid and short.

    Of every probe at every length the lower end of the 95 % interval must reach `least_rate`. The mean of the short
    benchmarks may lie `most_drop` below that of the model before training. A stage that does not pass is trained again,
    with other rows of the same mix and with its learning rate from the start, up to `repeats` times; after that the
    run stops.
    """

    tasks: Annotated[tuple[TaskChoice, ...], Field(min_length=1)]
    least_rate: float = Field(default=0.93, ge=0.0, lt=1.0)
    most_drop: float = Field(default=0.01, ge=0.0, le=1.0)
    repeats: int = Field(default=0, ge=0, le=16)

    @model_validator(mode="after")
    def _tasks_are_judged(self) -> Self:
        for task in self.tasks:
            if not isinstance(task, Grid | Short):
                raise ValueError(f"a gate judges tasks of kind grid and short, and none of kind {task.kind}")
        return self

    @property
    def short(self) -> tuple[TaskChoice, ...]:
        """The tasks that the model before training is asked, too."""
        return tuple(task for task in self.tasks if isinstance(task, Short))
