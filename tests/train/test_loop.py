import dataclasses
import math

import pytest
import torch
import toy_training
from safetensors.torch import load_file
from toy_training import batches, decoder, frequencies, plan, run, store, train_in, two_stages

from longspan.train.passes import plain_engine
from longspan.utils.errors import Interrupted, LongspanError


def test_training_lowers_the_loss_on_a_fixed_pattern(tmp_path):
    _, seen = train_in(tmp_path, [plan(steps=25, rows_per_step=8, micro_rows=8, learning_rate=3e-2)])
    assert seen[0].loss == pytest.approx(math.log(toy_training.VOCABULARY), rel=0.05)
    assert seen[-1].loss < 0.5 * seen[0].loss


def test_frequencies_follow_the_stages(tmp_path):
    model, used = decoder(), []

    def noting(stage):
        plain = plain_engine(model)(stage)

        def run(batch, **options):
            used.append((stage.index, batch.tokens.shape[1], model.frequencies.theta))
            return plain(batch, **options)

        return run

    train_in(tmp_path, two_stages(), model=model, engine=noting)
    assert used == [(0, 8, 100.0)] * 8 + [(1, 16, 1000.0)] * 6


def test_every_row_is_read_once_in_order(tmp_path):
    asked = []

    def noting(stage, first_row, rows):
        asked.extend((stage, row) for row in range(first_row, first_row + rows))
        return batches(stage, first_row, rows)

    train_in(tmp_path, two_stages(), batches=noting)
    assert asked == [(0, row) for row in range(16)] + [(1, row) for row in range(9)]


@pytest.mark.parametrize("micro_rows", [1, 2, 3, 5])
def test_accumulation_does_not_change_the_step(tmp_path, micro_rows):
    whole, seen_whole = train_in(tmp_path / "whole", [plan(steps=2, rows_per_step=6, micro_rows=6)])
    parts, seen = train_in(tmp_path / "parts", [plan(steps=2, rows_per_step=6, micro_rows=micro_rows)])
    for one, other in zip(seen_whole, seen, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    # Adam's first steps divide by the gradient's own size, so 1e-6 of a gradient is 1e-6 of the learning rate
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-4 * 1e-2)


def test_loss_and_gradient_are_those_of_the_mean_over_all_targets(tmp_path):
    """The oracle is one autograd pass over all rows, with the loss formed from its definition."""
    model = decoder()
    batch = batches(0, 0, 4)
    logits = model.logits(model.hidden(batch.tokens, positions=batch.positions))
    logs = torch.log_softmax(logits.double(), -1).gather(-1, batch.targets[..., None])[..., 0]
    loss = -(logs * batch.weights).sum() / batch.weights.sum()
    loss.backward()
    norm = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in model.parameters()))
    _, seen = train_in(tmp_path, [plan(steps=1, micro_rows=1)])
    assert seen[0].loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert seen[0].gradient_norm == pytest.approx(norm, rel=1e-5)
    assert seen[0].targets == pytest.approx(float(batch.weights.sum()))


def test_gradients_are_clipped_to_the_norm(tmp_path):
    """A first moment of Adam is (1 − beta1) times the clipped gradient after one step."""
    train_in(tmp_path, [plan(steps=1)], clip_norm=0.01)
    state = load_file(tmp_path / "checkpoints" / "step-000001" / "optimizer.safetensors")
    moments = [tensor.double() for name, tensor in state.items() if name.startswith("exp_avg/")]
    norm = math.sqrt(sum(float(moment.square().sum()) for moment in moments)) / 0.1
    assert norm == pytest.approx(0.01, rel=1e-3)


def poisoned(at_rows: set[int], *, by: float):
    def poison(stage, first_row, rows):
        batch = batches(stage, first_row, rows)
        hit = at_rows & set(range(first_row, first_row + rows))
        return dataclasses.replace(batch, weights=batch.weights * by) if hit else batch

    return poison


@pytest.mark.parametrize("by", [math.nan, math.inf, 0.0])
def test_a_step_without_a_finite_loss_changes_nothing(tmp_path, by):
    rows = {6} if by else {4, 5, 6, 7}  # step 2 has rows 4 to 7; without any target it has no loss either
    model, states = decoder(), []
    _, seen = train_in(
        tmp_path, [plan(steps=3)], batches=poisoned(rows, by=by), model=model, save_every_steps=1, keep_checkpoints=3,
        hook=lambda: states.append([weight.detach().clone() for weight in model.parameters()]),
    )  # fmt: skip
    assert [metrics.event for metrics in seen] == ["step", "skipped", "step"]
    assert [(metrics.step, metrics.tokens) for metrics in seen] == [(1, 32), (2, 64), (3, 96)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))
    moments = [tmp_path / "checkpoints" / f"step-00000{step}" / "optimizer.safetensors" for step in (1, 2, 3)]
    assert moments[0].read_bytes() == moments[1].read_bytes() != moments[2].read_bytes()


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, monkeypatch):
    real = toy_training.Decoder.logits

    def exploding(self, hidden):
        logits = real(self, hidden)
        logits.register_hook(lambda gradient: gradient * math.inf)
        return logits

    monkeypatch.setattr(toy_training.Decoder, "logits", exploding)
    model, seen = train_in(tmp_path, [plan(steps=1)])
    assert seen[0].event == "skipped"
    assert math.isfinite(seen[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), decoder().parameters(), strict=True))


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    broken = poisoned(set(range(4, 100)), by=math.nan)
    with pytest.raises(LongspanError) as caught:
        train_in(tmp_path, [plan(steps=20)], batches=broken, max_skipped_steps=3, save_every_steps=1)
    assert caught.value.code == "train.not-finite"
    saved = store(tmp_path).latest()
    assert saved.progress.step == 3
    assert saved.progress.skipped_in_a_row == 2
    # more patience lets the same command go on; it counts on from what was saved
    with pytest.raises(LongspanError):
        train_in(tmp_path, [plan(steps=20)], batches=broken, max_skipped_steps=5, save_every_steps=1)
    assert store(tmp_path).latest().progress.step == 5


def test_single_skipped_steps_do_not_stop_the_run(tmp_path):
    sometimes = poisoned({0, 8, 16}, by=math.nan)
    _, seen = train_in(tmp_path, [plan(steps=6)], batches=sometimes, max_skipped_steps=2)
    assert [metrics.event for metrics in seen] == ["skipped", "step"] * 2 + ["skipped", "step"]


@pytest.mark.parametrize("polls", [0, 1, 3, 5, 14])
def test_stop_between_micro_batches_saves_the_last_whole_step(tmp_path, polls):
    wanted = run(tmp_path / "unbroken")
    count = 0

    def stop():
        nonlocal count
        count += 1
        return count > polls

    with pytest.raises(Interrupted):
        run(tmp_path / "run", stop=stop)
    saved = store(tmp_path / "run").latest()
    assert (saved.progress.step if saved else 0) == polls // 4  # two micro-batches, asked before reading and computing
    got = run(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), wanted.parameters(), strict=True))


def test_a_finished_run_is_not_trained_again(tmp_path):
    wanted = run(tmp_path)
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors"))
    got = run(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), wanted.parameters(), strict=True))
    assert got.frequencies == frequencies(theta=1000.0, length=16)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")) == before
    assert all(weight.grad is None for weight in got.parameters())
