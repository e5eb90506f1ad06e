import json
import subprocess
import sys

import pytest
from pydantic import ValidationError
from toy_training import frequencies

from longspan.config import kind_class, kinds
from longspan.train.schedule import learning_rate
from longspan.train.settings import TrainSettings
from longspan.utils.errors import ConfigError


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
    "wrong",
    [
        {"keep_checkpoints": 1},
        {"betas": [0.9, 1.0]},
        {"clip_norm": 0.0},
        {"final_share": 1.1},
        {"beta": 1},
        {"clip_norm": "off"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainSettings.model_validate_json(json.dumps(wrong))


def test_only_what_decides_the_weights_is_compared_with_a_checkpoint():
    plain = TrainSettings()
    assert plain.shaping == TrainSettings.model_validate({"optimizer": {"kind": "adamw", "states": "host"}}).shaping
    assert (
        plain.shaping
        == TrainSettings(save_every_steps=7, keep_checkpoints=9, max_skipped_steps=1, save="blocking").shaping
    )
    for change in ({"weight_decay": 0.2}, {"clip_norm": "none"}, {"betas": (0.9, 0.99)}, {"warmup_share": 0.5}):
        assert plain.shaping != TrainSettings(**change).shaping
    assert plain.shaping != TrainSettings.model_validate({"optimizer": {"kind": "adamw8"}}).shaping


def test_settings_and_optimizers_are_read_without_torch():
    code = (
        "import sys; from longspan.train.settings import TrainSettings;"
        "TrainSettings.model_validate({'optimizer': {'kind': 'adamw8'}}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", kinds("longspan.train.optimizers"))
def test_every_optimizer_has_a_name_and_defaults(kind):
    settings = TrainSettings.model_validate_json(json.dumps({"optimizer": {"kind": kind}}))
    assert type(settings.optimizer) is kind_class("longspan.train.optimizers", kind)
    assert (settings.optimizer.states, settings.optimizer.update) == ("device", "after")
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


def test_bytes_of_a_trained_number():
    """Float32 weight and two float32 moments; bfloat16 and two codes, with two float32 scales for 256 numbers."""
    plain, small = (kind_class("longspan.train.optimizers", kind)() for kind in ("adamw", "adamw8"))
    assert (plain.weight_bytes, plain.state_bytes, plain.checkpoint_bytes) == (4, 8, 12)
    assert (small.weight_bytes, small.state_bytes, small.checkpoint_bytes) == (2, 2.03125, 4.03125)


def test_updates_inside_the_backward_pass_refuse_clipping():
    inside = {"optimizer": {"kind": "adamw", "update": "inside"}}
    with pytest.raises(ValidationError, match='clip_norm = "none"'):
        TrainSettings.model_validate(inside)
    assert TrainSettings.model_validate(inside | {"clip_norm": "none"}).clip is None


def test_updates_inside_the_backward_pass_refuse_accumulation():
    values = {"optimizer": {"kind": "adamw", "update": "inside"}, "clip_norm": "none", "micro_batch_tokens": 1024}
    settings = TrainSettings.model_validate(values)
    assert plan_of(settings, length=512, rows_per_step=2).micro_rows == 2
    with pytest.raises(ConfigError) as caught:
        plan_of(settings, length=512, rows_per_step=3)
    assert caught.value.code == "train.inside"
    assert "batch_tokens of the stage to 1024" in caught.value.fix
    assert "train.micro_batch_tokens to 1536" in caught.value.fix


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    kind_class("longspan.train.optimizers", "adamw")().require()
    small = kind_class("longspan.train.optimizers", "adamw8")()
    for ask in (small.require, lambda: small.rule(betas=(0.9, 0.95), epsilon=1e-8)):
        with pytest.raises(ConfigError, match="torchao") as caught:
            ask()
        assert caught.value.code == "optimizer.missing"
        assert "longspan[small]" in caught.value.fix
