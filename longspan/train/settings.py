"""How a recipe may steer training: the optimizer, the schedule's shape, and how often the state is saved."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from longspan.config import Settings, any_kind
from longspan.parallel.mesh import Mesh
from longspan.rope.frequencies import Frequencies
from longspan.train.optimizers.adamw import AdamW
from longspan.train.plan import ONE_RANK, StagePlan
from longspan.utils.errors import ConfigError

if TYPE_CHECKING:
    from longspan.train.optimizers.base import Optimizer as OptimizerChoice
else:  # the choices are the files of a folder, known at run time only
    OptimizerChoice = any_kind("longspan.train.optimizers")


def _told_once(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f'clip_norm {value!r}: write a number above 0, or "none"') from None


ClipNorm = Annotated[Annotated[float, Field(gt=0.0)] | Literal["none"], WrapValidator(_told_once)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

# They change no weight of a run.
NUMBERLESS: dict[str, Any] = {
    "save_every_steps": True,
    "keep_checkpoints": True,
    "save": True,
    "max_skipped_steps": True,
    "optimizer": {"states"},
}


class TrainSettings(Settings):
    """The optimizer, warm-up and cosine, clipping, accumulation, checkpoints.

    `clip_norm` is the largest norm of a step's gradient, or "none". An optimizer that updates inside the backward pass
    never has the whole gradient: it needs "none" there, and steps of one micro-batch.
    `warmup_share` is a share of a stage's steps, rounded; below two steps the first one has the peak at once. The
    cosine ends at `final_share` times the stage's learning rate.
    `micro_batch_tokens` bounds what one forward and backward pass takes (at least one row), on all ranks that share its
    tokens. A step whose loss or gradient is not finite changes nothing; after `max_skipped_steps` such steps in a row
    training stops.
    `save` says how checkpoints are written: `async` halts training only while the trained weights and their states are
    copied to host memory, which has to have room for them; `blocking` until they are on disk, with no copy.
    """

    optimizer: OptimizerChoice = AdamW()
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    clip_norm: ClipNorm = 1.0
    warmup_share: Share = 0.05
    final_share: Share = 0.1
    micro_batch_tokens: Annotated[int, Field(gt=0)] = 16_384
    max_skipped_steps: Annotated[int, Field(gt=0)] = 5
    save_every_steps: Annotated[int, Field(gt=0)] = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    save: Literal["async", "blocking"] = "async"

    @model_validator(mode="after")
    def _clipping_is_possible(self) -> Self:
        if self.optimizer.update == "inside" and self.clip is not None:
            raise ValueError(
                f"clip_norm {self.clip_norm} needs the gradients of all weights at once, which optimizer.update = "
                '"inside" never has: set clip_norm = "none", or optimizer.update = "after"'
            )
        return self

    @property
    def clip(self) -> float | None:
        """The largest norm of a step's gradient, or None."""
        return None if self.clip_norm == "none" else self.clip_norm

    @property
    def shaping(self) -> dict[str, Any]:
        """The settings that decide the weights, as JSON values: what a checkpoint must agree with."""
        return self.model_dump(mode="json", exclude=NUMBERLESS)

    def plan(
        self,
        *,
        index: int,
        length: int,
        steps: int,
        rows_per_step: int,
        learning_rate: float,
        frequencies: Frequencies,
        mesh: Mesh = ONE_RANK,
    ) -> StagePlan:
        """The plan of one stage: shares become steps, and `micro_batch_tokens` becomes rows.

        Raises `ConfigError` when weights are to change inside the backward pass, and a step needs several of them, or
        when a step's rows cannot be shared out evenly.
        """
        rows, where = rows_per_step // mesh.data, f"recipe: stages.{index} (length {length:,})"
        if rows_per_step % mesh.data:
            raise ConfigError(
                "train.rows",
                f"{rows_per_step} rows of a step for {mesh.data} groups of ranks that have rows of their own",
                where=where,
                fix=f"set batch_tokens of the stage to a multiple of {mesh.data * length}, or let more ranks share a "
                "row by a larger ring or ulysses in mesh",
            )
        micro_rows = min(rows, max(1, self.micro_batch_tokens // length))
        if self.optimizer.update == "inside" and micro_rows < rows:
            raise ConfigError(
                "train.inside",
                f"a step of {rows} rows is split into micro-batches of {micro_rows}, and optimizer.update = "
                '"inside" changes weights in the backward pass of the first',
                where=where,
                fix=f"set batch_tokens of the stage to {mesh.data * micro_rows * length}, train.micro_batch_tokens to "
                f'{rows * length}, or train.optimizer.update to "after"',
            )
        return StagePlan(
            index=index,
            length=length,
            steps=steps,
            rows_per_step=rows_per_step,
            micro_rows=micro_rows,
            learning_rate=learning_rate,
            final_share=self.final_share,
            warmup_steps=max(1, round(self.warmup_share * steps)),  # one step of it is the peak at once
            frequencies=frequencies,
            mesh=mesh,
        )
