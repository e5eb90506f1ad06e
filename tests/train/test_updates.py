"""AdamW against its formula, inside the backward pass and after it, on the host and on the device, partly frozen."""

import math
import weakref

import pytest
import torch
from safetensors.torch import load_file
from toy_training import batches, decoder, plan, store, train_in, two_stages

from longspan.train import optimizer as module
from longspan.train.optimizer import build_updater
from longspan.train.passes import plain_engine
from longspan.train.settings import TrainSettings
from longspan.utils.errors import CheckpointError, Interrupted, LongspanError

WHOLE = [plan(steps=5, micro_rows=4)]
UNCLIPPED = {"clip_norm": "none", "optimizer": {"kind": "adamw"}}
INSIDE = {"clip_norm": "none", "optimizer": {"kind": "adamw", "update": "inside"}}


def files(folder, step):
    place = folder / "checkpoints" / f"step-{step:06d}"
    return {name: load_file(place / f"{name}.safetensors") for name in ("model", "optimizer")}


def assert_same_files(one, other, step):
    got, want = files(one, step), files(other, step)
    for name in want:
        assert got[name].keys() == want[name].keys()
        assert all(torch.equal(got[name][key], want[name][key]) for key in want[name]), name


def test_updates_are_adamw_by_its_formula():
    """Algorithm 2 of arXiv:1711.05101 in float64, five steps."""
    model, (beta1, beta2), epsilon, decay = decoder(), (0.8, 0.9), 1e-6, 0.5
    settings = TrainSettings(betas=(beta1, beta2), epsilon=epsilon, weight_decay=decay, clip_norm="none")
    updater, weight = build_updater(model, settings), model.blocks[0].q.weight
    want = weight.detach().double().clone()
    mean, square = torch.zeros_like(want), torch.zeros_like(want)
    for step in range(1, 6):
        rate, gradient = 0.01 * step, torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        assert updater.step(rate) == pytest.approx(float(gradient.norm()), rel=1e-6)
        mean = beta1 * mean + (1 - beta1) * gradient.double()
        square = beta2 * square + (1 - beta2) * gradient.double() ** 2
        want = want - rate * decay * want
        want = want - rate * (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + epsilon)
        torch.testing.assert_close(weight.detach().double(), want, rtol=1e-5, atol=1e-6)
    assert updater.tensors()["step/blocks.0.q.weight"] == 5.0
    assert updater.tensors()["step/embed.weight"] == 0.0, "a weight without gradient has no update"


def test_decay_pulls_on_matrices_but_not_on_the_embedding_norms_and_biases():
    model, before = decoder(), decoder()
    updater = build_updater(model, TrainSettings(weight_decay=0.5))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    updater.step(0.1)
    layers = ("q", "k", "v", "o", "gate", "up", "down")
    decayed = {f"blocks.{layer}.{part}.weight" for layer in range(2) for part in layers}
    for (name, weight), old in zip(model.named_parameters(), before.parameters(), strict=True):
        want = old * (1 - 0.1 * 0.5) if name in decayed else old
        torch.testing.assert_close(weight, want, rtol=1e-6, atol=0.0)


def test_a_weight_of_several_tiles_is_updated_as_one(tmp_path, monkeypatch):
    train_in(tmp_path / "whole", WHOLE)
    monkeypatch.setattr(module, "TILE", 64)
    train_in(tmp_path / "tiles", WHOLE)
    assert_same_files(tmp_path / "tiles", tmp_path / "whole", 5)


@pytest.mark.parametrize("update", ["after", "inside"])
def test_states_on_the_host_change_no_bit(tmp_path, update):
    choice = {"clip_norm": "none", "optimizer": {"kind": "adamw", "update": update}}
    train_in(tmp_path / "device", WHOLE, **choice)
    choice["optimizer"] = choice["optimizer"] | {"states": "host"}
    train_in(tmp_path / "host", WHOLE, **choice)
    assert_same_files(tmp_path / "host", tmp_path / "device", 5)


def test_updates_inside_the_backward_pass_are_those_after_it(tmp_path):
    _, after = train_in(tmp_path / "after", WHOLE, **UNCLIPPED)
    model, inside = train_in(tmp_path / "inside", WHOLE, **INSIDE)
    assert_same_files(tmp_path / "inside", tmp_path / "after", 5)
    assert [metrics.loss for metrics in inside] == [metrics.loss for metrics in after]
    for one, other in zip(inside, after, strict=True):
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-6)
        assert one.event == "step"
    assert all(weight.grad is None for weight in model.parameters())


def test_gradients_are_not_kept():
    model = decoder()
    inside = build_updater(model, TrainSettings.model_validate(INSIDE)).inside(0.1)
    gradient = torch.ones_like(model.norm.weight)
    alive = weakref.ref(gradient)
    inside([model.norm.weight], [gradient])
    assert model.norm.weight.grad is None
    assert not inside.complete
    del gradient
    assert alive() is None
    with pytest.raises(AssertionError, match="once"):
        inside([model.norm.weight], [torch.ones_like(model.norm.weight)])


def spoiling(model, part, by):
    """An engine whose gradients of some parameters are spoilt; they go the same ways as the plain one's."""
    names = {weight: name for name, weight in model.named_parameters()}

    def engine(stage):
        plain = plain_engine(model)(stage)

        def run(batch, *, divisor, on_gradients=None):
            def spoilt(parameters, gradients):
                hit = any(names[p].startswith(part) for p in parameters)
                on_gradients(parameters, [g * by if hit else g for g in gradients])

            return plain(batch, divisor=divisor, on_gradients=spoilt)

        return run

    return engine


@pytest.mark.parametrize("by", [math.nan, math.inf])
def test_a_group_that_is_not_finite_is_left_out_and_told(tmp_path, by):
    model, before = decoder(), dict(decoder().named_parameters())
    engine = spoiling(model, "blocks.1.", by)
    _, seen = train_in(tmp_path, [plan(steps=1, micro_rows=4)], model=model, engine=engine, **INSIDE)
    assert [metrics.event for metrics in seen] == ["partial"]
    assert math.isfinite(seen[0].loss)
    assert not math.isfinite(seen[0].gradient_norm)
    counts = files(tmp_path, 1)["optimizer"]
    for name, weight in model.named_parameters():
        left_out = name.startswith("blocks.1.")
        assert torch.equal(weight, before[name]) or not left_out
        assert counts[f"step/{name}"] == (0.0 if left_out else 1.0)


def test_steps_that_leave_something_out_stop_the_run_in_the_end(tmp_path):
    model = decoder()
    with pytest.raises(LongspanError) as caught:
        train_in(
            tmp_path, [plan(steps=9, micro_rows=4)], model=model, engine=spoiling(model, "embed", math.nan),
            max_skipped_steps=2, **INSIDE,
        )  # fmt: skip
    assert caught.value.code == "train.not-finite"


def test_a_step_whose_every_group_is_spoilt_is_skipped(tmp_path):
    model = decoder()
    _, seen = train_in(
        tmp_path, [plan(steps=1, micro_rows=4)], model=model, engine=spoiling(model, "", math.nan), **INSIDE
    )
    assert seen[0].event == "skipped"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), decoder().parameters(), strict=True))


@pytest.mark.parametrize("by", [math.nan, 0.0])
def test_inside_a_step_without_a_finite_loss_changes_nothing(tmp_path, by):
    def spoilt(*request):
        batch = batches(*request)
        batch.weights.mul_(by)
        return batch

    model, seen = train_in(tmp_path, [plan(steps=1, micro_rows=4)], batches=spoilt, **INSIDE)
    assert seen[0].event == "skipped"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), decoder().parameters(), strict=True))


def test_an_engine_that_forgets_a_weight_is_a_bug(tmp_path):
    model = decoder()

    def forgetful(stage):
        plain = plain_engine(model)(stage)
        return lambda batch, *, divisor, on_gradients: plain(
            batch, divisor=divisor, on_gradients=lambda ps, gs: on_gradients(ps[1:], gs[1:])
        )

    with pytest.raises(AssertionError, match="every gradient"):
        train_in(tmp_path, [plan(steps=1, micro_rows=4)], model=model, engine=forgetful, **INSIDE)


# -- partly frozen -----------------------------------------------------------------------------------------------------


def partly_frozen(seed=1):
    model = decoder(seed)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("blocks.1."))
    return model


@pytest.mark.parametrize("choice", [{}, INSIDE])
def test_only_what_requires_a_gradient_is_trained_and_saved(tmp_path, choice):
    before = dict(decoder().named_parameters())
    model, seen = train_in(tmp_path, WHOLE, model=partly_frozen(), **choice)
    trained = {name for name in before if name.startswith("blocks.1.")}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) != (name in trained), name
    saved = files(tmp_path, 5)
    assert saved["model"].keys() == trained
    assert {name.split("/")[1] for name in saved["optimizer"]} == trained
    assert seen[-1].loss < seen[0].loss
    other = partly_frozen(seed=2)
    frozen = other.embed.weight.clone()
    store(tmp_path).latest().restore(other)
    assert torch.equal(other.blocks[1].q.weight, model.blocks[1].q.weight)
    assert torch.equal(other.embed.weight, frozen)


def test_a_checkpoint_of_other_trained_weights_is_refused(tmp_path):
    train_in(tmp_path, [plan(steps=1)], model=partly_frozen())
    with pytest.raises(CheckpointError) as caught:
        store(tmp_path).latest().restore(decoder())
    assert caught.value.code == "checkpoint.other-model"


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "make"),
    [(UNCLIPPED, decoder), (INSIDE, decoder), (INSIDE, partly_frozen), ({}, partly_frozen)],
    ids=["after", "inside", "inside, frozen", "frozen"],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, choice, make):
    stages = [plan(micro_rows=4), two_stages()[1]]
    if choice is INSIDE:
        stages[1] = plan(1, length=16, steps=3, rows_per_step=3, micro_rows=3, frequencies=stages[1].frequencies)
    train_in(tmp_path / "unbroken", stages, model=make(), **choice)
    for steps in (1, 3, 5):
        done = []
        with pytest.raises(Interrupted):
            train_in(
                tmp_path / "run", stages, model=make(), hook=lambda done=done: done.append(1),
                stop=lambda done=done: len(done) == 2, **choice,
            )  # fmt: skip
        assert store(tmp_path / "run").latest().progress.step == steps + 1
    train_in(tmp_path / "run", stages, model=make(), **choice)
    assert_same_files(tmp_path / "run", tmp_path / "unbroken", 7)
