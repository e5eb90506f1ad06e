"""The learning rate of every step: a straight warm-up, then half a cosine."""

import math

from longspan.train.plan import StagePlan


def learning_rate(step_in_stage: int, plan: StagePlan) -> float:
    """The rate of the step that follows `step_in_stage` finished ones, 0 ≤ `step_in_stage` < `plan.steps`.

    Warm-up step k of w has k/w of the peak, k = 1 … w, so step w has the peak, also when w is 1; from it a cosine
    falls to `final_share` of the peak, which the last step has. Source of the cosine: arXiv:1608.03983, equation 5,
    without restarts.
    """
    number = step_in_stage + 1
    if number <= plan.warmup_steps:
        return plan.learning_rate * number / plan.warmup_steps
    fallen = (number - plan.warmup_steps) / (plan.steps - plan.warmup_steps)
    height = (1.0 + math.cos(math.pi * fallen)) / 2.0
    return plan.learning_rate * (plan.final_share + (1.0 - plan.final_share) * height)
