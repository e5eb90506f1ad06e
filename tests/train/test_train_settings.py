import json

import pytest
import torch
from pydantic import ValidationError
from toy_training import decoder, frequencies

from longspan.train.optimizer import build_optimizer
from longspan.train.schedule import learning_rate
from longspan.train.settings import TrainSettings


def plan_of(settings: TrainSettings, *, length: int, rows_per_step: int = 8, steps: int = 40):
    return settings.plan(
        index=0, length=length, steps=steps, rows_per_step=rows_per_step, learning_rate=1e-3, frequencies=frequencies()
    )


@pytest.mark.parametrize(("length", "rows"), [(100, 8), (512, 2), (1000, 1), (1001, 1), (10**6, 1)])
def test_micro_batch_tokens_become_rows(length, rows):
    settings = TrainSettings(micro_batch_tokens=1024)
    assert plan_of(settings, length=length).micro_rows == rows


def test_shares_become_steps():
    stage = plan_of(TrainSettings(warmup_share=0.25, final_share=0.3), length=8)
    assert (stage.warmup_steps, stage.final_share, stage.tokens_per_step) == (10, 0.3, 64)


@pytest.mark.parametrize(("share", "steps", "warmup_steps"), [(0.0, 40, 1), (0.05, 1, 1), (0.05, 9, 1), (1.0, 3, 3)])
def test_every_stage_has_a_step_at_the_peak(share, steps, warmup_steps):
    stage = plan_of(TrainSettings(warmup_share=share), length=8, steps=steps)
    assert stage.warmup_steps == warmup_steps
    assert learning_rate(warmup_steps - 1, stage) == 1e-3


@pytest.mark.parametrize(
    "wrong", [{"keep_checkpoints": 1}, {"betas": [0.9, 1.0]}, {"clip_norm": 0.0}, {"final_share": 1.1}, {"beta": 1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainSettings.model_validate_json(json.dumps(wrong))


def test_only_what_decides_the_weights_is_compared_with_a_checkpoint():
    plain = TrainSettings()
    assert plain.shaping == TrainSettings(save_every_steps=7, keep_checkpoints=9, max_skipped_steps=1).shaping
    for change in ({"weight_decay": 0.2}, {"clip_norm": 2.0}, {"betas": (0.9, 0.99)}, {"warmup_share": 0.5}):
        assert plain.shaping != TrainSettings(**change).shaping


def test_decay_pulls_on_matrices_but_not_on_the_embedding_norms_and_biases():
    model = decoder()
    optimizer = build_optimizer(model, TrainSettings(weight_decay=0.5))
    decayed = {id(weight) for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]}
    names = {name for name, weight in model.named_parameters() if id(weight) in decayed}
    layers = ("q", "k", "v", "o", "gate", "up", "down")
    assert names == {f"blocks.{layer}.{part}.weight" for layer in range(2) for part in layers}


def test_one_update_is_adamw_by_its_formula():
    model = decoder()
    settings = TrainSettings(betas=(0.8, 0.9), epsilon=1e-6, weight_decay=0.5)
    optimizer = build_optimizer(model, settings)
    weight = model.blocks[0].q.weight
    before, gradient = weight.detach().clone().double(), torch.randn(weight.shape, generator=torch.manual_seed(3))
    weight.grad = gradient
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    # in the first step the bias corrections cancel: mean = g, mean of squares = g²
    wanted = before * (1 - 0.01 * 0.5) - 0.01 * gradient.double() / (gradient.double().abs() + 1e-6)
    torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-5, atol=1e-7)
