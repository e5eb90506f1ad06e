"""How a recipe may steer training: the optimizer, the schedule's shape, and how often the state is saved."""

from typing import Annotated, Any

from pydantic import Field

from longspan.config import Settings
from longspan.rope.frequencies import Frequencies
from longspan.train.plan import StagePlan

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

NUMBERLESS = {"save_every_steps", "keep_checkpoints", "max_skipped_steps"}  # they change no weight of a run


class TrainSettings(Settings):
    """AdamW, warm-up and cosine, clipping, accumulation, checkpoints.

    `warmup_share` is a share of a stage's steps, rounded; below two steps the first one has the peak at once. The
    cosine ends at `final_share` times the stage's learning rate.
    `micro_batch_tokens` bounds what one forward and backward pass takes (at least one row). A step whose loss or
    gradient is not finite changes nothing; after `max_skipped_steps` such steps in a row training stops.
    """

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    warmup_share: Share = 0.05
    final_share: Share = 0.1
    micro_batch_tokens: Annotated[int, Field(gt=0)] = 16_384
    max_skipped_steps: Annotated[int, Field(gt=0)] = 5
    save_every_steps: Annotated[int, Field(gt=0)] = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2

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
    ) -> StagePlan:
        """The plan of one stage: shares become steps, and `micro_batch_tokens` becomes rows."""
        return StagePlan(
            index=index,
            length=length,
            steps=steps,
            rows_per_step=rows_per_step,
            micro_rows=min(rows_per_step, max(1, self.micro_batch_tokens // length)),
            learning_rate=learning_rate,
            final_share=self.final_share,
            warmup_steps=max(1, round(self.warmup_share * steps)),  # one step of it is the peak at once
            frequencies=frequencies,
        )
