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


def test_without_warm_up_the_first_step_is_just_below_the_peak():
    stage = plan(steps=100, warmup_steps=0, learning_rate=1.0, final_share=0.0)
    assert learning_rate(0, stage) == pytest.approx(math.cos(math.pi / 200) ** 2, rel=1e-12)
    assert learning_rate(99, stage) == pytest.approx(0.0, abs=1e-12)


def test_warm_up_over_the_whole_stage_ends_at_the_peak():
    stage = plan(steps=5, warmup_steps=5, learning_rate=1.0)
    assert [learning_rate(step, stage) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@settings(max_examples=50)
@given(steps=st.integers(1, 200), share=st.floats(0, 1), final=st.floats(0, 1))
def test_rises_then_falls_between_the_bounds(steps, share, final):
    stage = plan(steps=steps, warmup_steps=round(share * steps), learning_rate=3.0, final_share=final)
    rates = [learning_rate(step, stage) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= 3.0 + 1e-12
    if stage.warmup_steps < steps:
        assert rates[-1] == pytest.approx(3.0 * final, abs=1e-12)
