"""Candidates measured together: the losses and the gradient that the plain decoder gives to each alone."""

from dataclasses import replace

import pytest
import torch
from engine_toys import toy_decoder
from torch.nn import functional

from longspan.engine.candidates import Candidate, Sheet, candidate_gradient, candidate_nll
from longspan.engine.prefill import Prefill
from longspan.rope.frequencies import Frequencies

LENGTH = 37


def sheet_of(rows=2, *, skip=False, length=LENGTH, seed=4):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 53, (rows, length + 1), generator=generator)
    positions = torch.arange(length).expand(rows, length).clone()
    if skip:
        positions[:, length // 2 :] += 5000
    scored = torch.rand(rows, length, generator=generator) < 0.4
    scored[:, -1] = True
    return Sheet(tokens=tokens[:, :-1], positions=positions, targets=tokens[:, 1:], scored=scored)


def sets(count, decoder):
    pairs = decoder.shape.head_dim // 2
    return [
        replace(
            decoder.frequencies,
            factors=tuple(1 + (k + 1) * i / 3 for i in range(pairs)),
            attention_factor=1 + k / 10,
        )
        for k in range(count)
    ]


def alone(decoder, sheet, frequencies: Frequencies, row: int):
    """Losses of the scored tokens by the plain decoder, whose frequencies are exchanged."""
    own, decoder.frequencies = decoder.frequencies, frequencies
    try:
        hidden = decoder.hidden(sheet.tokens[row : row + 1], positions=sheet.positions[row : row + 1])
        logits = decoder.logits(hidden)[0]
    finally:
        decoder.frequencies = own
    nll = functional.cross_entropy(logits, sheet.targets[row], reduction="none")
    return nll[sheet.scored[row]]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("pass_tokens", [1, 10, LENGTH, 3 * LENGTH, 10**6])
def test_losses_are_those_of_each_candidate_alone(skip, pass_tokens):
    decoder, sheet = toy_decoder(), sheet_of(skip=skip)
    own = decoder.frequencies
    candidates = sets(3, decoder)
    found = candidate_nll(decoder, sheet, [Candidate(frequencies=f) for f in candidates], pass_tokens=pass_tokens)
    with torch.no_grad():
        wanted = torch.stack([torch.cat([alone(decoder, sheet, f, row) for row in range(2)]) for f in candidates])
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    assert decoder.frequencies is own
    assert not torch.allclose(found[0], found[1], rtol=3e-4)  # the candidates do differ


def test_only_scored_tokens_reach_the_head(monkeypatch):
    decoder, sheet = toy_decoder(), sheet_of(rows=3)
    seen = []
    head = Prefill._head
    monkeypatch.setattr(Prefill, "_head", lambda self, hidden: seen.append(len(hidden)) or head(self, hidden))
    candidate_nll(decoder, sheet, [Candidate(frequencies=f) for f in sets(2, decoder)], pass_tokens=10**6)
    assert sum(seen) == 2 * int(sheet.scored.sum()) < 2 * sheet.scored.numel()


def test_kept_tokens_turn_as_before():
    """n̂: positions below it have the decoder's own frequencies, the others the candidate's."""
    decoder, sheet = toy_decoder(layers=1), sheet_of(rows=1)
    (frequencies,) = sets(1, decoder)
    none, some, every = (
        candidate_nll(decoder, sheet, [Candidate(frequencies=frequencies, kept_tokens=kept)], pass_tokens=1000)[0]
        for kept in (0, 12, LENGTH)
    )
    with torch.no_grad():
        own = alone(decoder, sheet, decoder.frequencies, 0)
    torch.testing.assert_close(every, own, rtol=2e-5, atol=2e-5)
    places = sheet.scored[0].nonzero()[:, 0]
    early = places < 12
    torch.testing.assert_close(some[early], own[early], rtol=2e-5, atol=2e-5)
    assert not torch.allclose(some[~early], own[~early], rtol=1e-3)
    assert not torch.allclose(some[~early], none[~early], rtol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_gradient_is_that_of_finite_differences(skip):
    decoder = toy_decoder(dtype=torch.float64).requires_grad_(False)
    sheet = sheet_of(skip=skip)
    (frequencies,) = sets(1, decoder)

    def loss(factors, attention_factor):
        """Float64 angles over float64 frequencies: served ones are float32 and would hide a small step."""
        changed = replace(frequencies, factors=factors, attention_factor=attention_factor)
        omegas = torch.tensor(changed.omegas, dtype=torch.float64)
        total, count = 0.0, 0
        for row in range(2):
            angles = sheet.positions[row].double()[None, :, None] * omegas
            cos, sin = angles.cos() * attention_factor, angles.sin() * attention_factor
            logits = decoder.logits(decoder.rotated(sheet.tokens[row][None], [(cos, sin)]))[0]
            nll = functional.cross_entropy(logits, sheet.targets[row], reduction="none")[sheet.scored[row]]
            total, count = total + float(nll.sum()), count + len(nll)
        return total / count

    found, by_logs, by_heat = candidate_gradient(decoder, sheet, frequencies)
    factors, heat, step = frequencies.factors, frequencies.attention_factor, 1e-6
    assert found == pytest.approx(loss(factors, heat), rel=1e-5)
    scale = torch.tensor(step, dtype=torch.float64).exp()
    for pair in range(len(factors)):
        up, down = (tuple(f * float(s) if i == pair else f for i, f in enumerate(factors)) for s in (scale, 1 / scale))
        wanted = (loss(up, heat) - loss(down, heat)) / (2 * step)
        assert float(by_logs[pair]) == pytest.approx(wanted, rel=2e-3, abs=2e-5)
    wanted = (loss(factors, heat * float(scale)) - loss(factors, heat / float(scale))) / (2 * step)
    assert by_heat == pytest.approx(wanted, rel=2e-3, abs=2e-5)
    assert float(by_logs.abs().max()) > 1e-3
    assert all(weight.grad is None for weight in decoder.parameters())
