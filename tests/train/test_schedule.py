import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_training import plan

from longspan.train.schedule import learning_rate


def test_values_by_hand():
    stage = plan(steps=8, warmup_steps=4, learning_rate=2.0, final_share=0.5)
    # up in four equal steps; then 1.5 + 0.5 cos(pi k / 4), k = 1 … 4
    wanted = [0.5, 1.0, 1.5, 2.0, 1.5 + 0.5 * math.sqrt(0.5), 1.5, 1.5 - 0.5 * math.sqrt(0.5), 1.0]
    assert [learning_rate(step, stage) for step in range(8)] == pytest.approx(wanted, rel=1e-12)


def test_without_warm_up_the_first_step_has_the_peak():
    stage = plan(steps=4, warmup_steps=1, learning_rate=1.0, final_share=0.0)
    # 0.5 + 0.5 cos(pi k / 3), k = 0 … 3
    assert [learning_rate(step, stage) for step in range(4)] == pytest.approx([1.0, 0.75, 0.25, 0.0], abs=1e-12)


def test_a_stage_of_one_step_trains_at_the_peak():
    assert learning_rate(0, plan(steps=1, warmup_steps=1, learning_rate=2.0, final_share=0.1)) == 2.0


def test_a_plan_without_a_peak_cannot_be():
    for warmup_steps in (0, 5):
        with pytest.raises(AssertionError, match="peak"):
            plan(steps=4, warmup_steps=warmup_steps)


def test_warm_up_over_the_whole_stage_ends_at_the_peak():
    stage = plan(steps=5, warmup_steps=5, learning_rate=1.0)
    assert [learning_rate(step, stage) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@settings(max_examples=50)
@given(steps=st.integers(1, 200), share=st.floats(0, 1), final=st.floats(0, 1))
def test_rises_then_falls_between_the_bounds(steps, share, final):
    stage = plan(steps=steps, warmup_steps=max(1, round(share * steps)), learning_rate=3.0, final_share=final)
    rates = [learning_rate(step, stage) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(3.0, rel=1e-12)
    if stage.warmup_steps < steps:
        assert rates[-1] == pytest.approx(3.0 * final, abs=1e-12)
