"""The optimizer of 8-bit states: its rounding, its states, and the same bits after a stop. Compiling takes seconds."""

import math

import pytest
import torch
from safetensors.torch import load_file
from toy_training import frequencies, plan, store, train_in

from longspan.model.decoder import Decoder
from longspan.shape import ModelShape
from longspan.train.optimizer import build_updater
from longspan.train.settings import TrainSettings
from longspan.utils.errors import CheckpointError, ConfigError, Interrupted

pytest.importorskip("torchao")

SMALL = {"clip_norm": "none", "optimizer": {"kind": "adamw8"}}
STAGES = [plan(steps=4, micro_rows=4, learning_rate=1e-2)]


def decoder(seed: int = 1) -> Decoder:
    """All matrices have 64 x 64 numbers, so that the update is compiled for two sizes only."""
    shape = ModelShape(
        family="llama", layers=1, width=64, heads=8, kv_heads=8, head_dim=8, mlp_width=64, vocabulary=64,
        norm_epsilon=1e-5, tied=True, qkv_bias=False, out_bias=False, mlp_bias=False, qk_norm=False, windows=(None,),
        trained_length=8,
    )  # fmt: skip
    made = Decoder(shape, frequencies())
    made.initialise(seed)
    return made.to(torch.bfloat16)


def neighbours(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bfloat16 numbers next to each float64, towards zero and away from it, by the bits of their float32."""
    bits = exact.float().view(torch.int32)
    low = bits & ~0xFFFF
    return low.view(torch.float32), (low + 0x10000).view(torch.float32)


def files(folder, step):
    place = folder / "checkpoints" / f"step-{step:06d}"
    return {name: load_file(place / f"{name}.safetensors") for name in ("model", "optimizer")}


def assert_same_files(one, other, step):
    got, want = files(one, step), files(other, step)
    for name in want:
        assert got[name].keys() == want[name].keys()
        assert all(torch.equal(got[name][key], want[name][key]) for key in want[name]), name


def test_an_update_is_adamw_rounded_to_a_neighbour():
    """Two updates by the formula in float64; moments differ by what 8 bits leave, weights by one step of bfloat16."""
    model = decoder()
    updater, weight = build_updater(model, TrainSettings.model_validate(SMALL)), model.blocks[0].q.weight
    (beta1, beta2), decay, rate = (0.9, 0.95), 0.1, 0.01
    mean = square = torch.zeros(weight.shape, dtype=torch.float64)
    for step in (1, 2):
        before = weight.detach().double().clone()
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        updater.step(rate)
        mean = beta1 * mean + (1 - beta1) * gradient.double()
        square = beta2 * square + (1 - beta2) * gradient.double() ** 2
        change = rate * (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + 1e-8)
        want, got = before - rate * decay * before - change, weight.detach().float()
        low, high = neighbours(want)
        if step == 1:  # nothing was stored in 8 bits yet
            near = (want - low).abs().minimum((want - high).abs()) < 1e-8  # may lie on either side of it
            assert ((got == low) | (got == high) | near).all()
            assert 0 < int((got == high).sum()) < got.numel()
        else:
            step_of_bf16 = (high - low).abs()
            within = (got - want).abs() <= step_of_bf16 + 0.05 * rate
            assert within.float().mean() > 0.98  # what 8 bits make of the smallest moments of a block is rough
        for key, exact in (("exp_avg", mean), ("exp_avg_sq", square)):
            codes, scale = (updater.tensors()[f"{key}.{part}/blocks.0.q.weight"] for part in ("codes", "scale"))
            blocks = exact.float().view(-1, 64)
            torch.testing.assert_close(scale.flatten(), blocks.abs().amax(-1), rtol=0.02, atol=0.0)
            in_order = codes.view(-1, 64).gather(-1, blocks.argsort(-1)).int()
            assert codes.dtype == torch.uint8
            assert (in_order.diff(dim=-1) >= 0).all() or step > 1, "a larger number has no smaller code"


def test_rounding_is_unbiased_and_follows_from_the_update_alone():
    """No gradient, decay 0.1, rate 0.01: 1.0 becomes 0.999, between 0.99609375 and 1.0 in bfloat16."""
    found = []
    for noise in (1, 2):
        model = decoder()
        updater, weight = build_updater(model, TrainSettings.model_validate(SMALL)), model.blocks[0].up.weight
        weight.data.fill_(1.0)
        weight.grad = torch.zeros(weight.shape)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        updater.step(0.01)
        assert torch.equal(torch.get_rng_state(), state), "the numbers of others are not touched"
        found.append(weight.detach().float())
    assert set(found[0].unique().tolist()) == {0.99609375, 1.0}
    share, n = 0.001 / 0.00390625, found[0].numel()
    down = int((found[0] < 1).sum()) / n
    assert abs(down - share) < 5 * math.sqrt(share * (1 - share) / n)
    assert torch.equal(found[0], found[1])
    model.blocks[0].up.weight.data.fill_(1.0)
    model.blocks[0].up.weight.grad = torch.zeros(64, 64)
    updater.step(0.01)
    assert not torch.equal(model.blocks[0].up.weight.float(), found[1]), "every update has random numbers of its own"


def test_training_lowers_the_loss_and_small_weights_have_float32_moments(tmp_path):
    _, seen = train_in(tmp_path, [plan(steps=12, micro_rows=4, learning_rate=2e-2)], model=decoder(), **SMALL)
    assert seen[-1].loss < 0.8 * seen[0].loss
    saved = files(tmp_path, 12)
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.bfloat16}
    states = saved["optimizer"]
    assert states["exp_avg/norm.weight"].dtype == torch.float32
    assert states["exp_avg.codes/blocks.0.gate.weight"].dtype == torch.uint8
    assert states["exp_avg_sq.scale/blocks.0.gate.weight"].shape == (64, 1)
    assert states["step/embed.weight"] == 12.0


def test_a_run_that_was_stopped_ends_with_the_same_bits_however_it_updates(tmp_path):
    train_in(tmp_path / "unbroken", STAGES, model=decoder(), **SMALL)
    done = []
    with pytest.raises(Interrupted):
        train_in(
            tmp_path / "run", STAGES, model=decoder(), hook=lambda: done.append(1), stop=lambda: len(done) == 2, **SMALL
        )
    torch.manual_seed(99)
    train_in(tmp_path / "run", STAGES, model=decoder(2), **SMALL)
    assert_same_files(tmp_path / "run", tmp_path / "unbroken", 4)
    for name, change in (("inside", {"update": "inside"}), ("host", {"states": "host", "update": "inside"})):
        choice = SMALL | {"optimizer": SMALL["optimizer"] | change}
        train_in(tmp_path / name, STAGES, model=decoder(), **choice)
        assert_same_files(tmp_path / name, tmp_path / "unbroken", 4)


def test_gradients_of_micro_batches_are_added_up_in_float32(tmp_path):
    model = decoder()
    build_updater(model, TrainSettings.model_validate(SMALL))
    for value in (1.0, 2.0**-12):  # in bfloat16 the second would be lost
        (model.norm.weight * value).sum().backward()
    assert torch.equal(model.norm.weight.grad, torch.full((64,), 1.0 + 2.0**-12))


@pytest.mark.parametrize(("kind", "model"), [("adamw8", decoder().float()), ("adamw", decoder())])
def test_weights_of_another_type_are_refused(kind, model):
    with pytest.raises(ConfigError, match=r"embed\.weight") as caught:
        build_updater(model, TrainSettings.model_validate({"optimizer": {"kind": kind}}))
    assert caught.value.code == "optimizer.dtype"


def test_a_checkpoint_of_the_other_optimizer_is_refused(tmp_path):
    train_in(tmp_path, [plan(steps=1)], model=decoder(), **SMALL)
    with pytest.raises(CheckpointError, match="bfloat16") as caught:
        store(tmp_path).latest().restore(decoder().float())
    assert caught.value.code == "checkpoint.other-model"


def test_a_machine_that_cannot_compile_is_told_before_training(monkeypatch):
    def failing(self):
        raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found")

    monkeypatch.setattr("torchao.optim.AdamW8bit.step", failing)
    with pytest.raises(ConfigError, match="No working") as caught:
        build_updater(decoder(), TrainSettings.model_validate(SMALL))
    assert caught.value.code == "optimizer.compiler"
    assert "g++" in caught.value.fix
