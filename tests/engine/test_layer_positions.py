"""Layers that turn differently: decoder, engine, kept contexts and candidates, each against attention written here."""

from dataclasses import replace

import pytest
import torch
from engine_toys import choice_of, compare, toy_batch, toy_decoder
from torch.nn import functional

from longspan.engine.candidates import Candidate, Sheet, candidate_gradient, candidate_nll
from longspan.engine.prefill import Branches, Prefill
from longspan.model.decoder import Block
from longspan.rope.methods.base import STILL
from longspan.shape import OwnPositions

LOCAL, NONE = OwnPositions(theta=50.0, factor=2.0), OwnPositions(theta=None)
OWN = (None, LOCAL, NONE, LOCAL)
TOKENS = torch.randint(0, 53, (1, 37), generator=torch.Generator().manual_seed(2))


def hybrid(**changes):
    """Four layers: the model's frequencies, theta 50 slowed twofold under a window, no positions, theta 50 again."""
    windows = (None, 5, None, 5)
    return toy_decoder(layers=4, own_positions=OWN, windows=windows, **changes)


def written_down(decoder, tokens, positions):
    """Logits by the formulas: angles position · omega in float64, scores masked one by one."""
    x, d, count = decoder.embed(tokens[0]), decoder.shape.head_dim, tokens.shape[1]
    for layer, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        own = OWN[layer]
        theta, slower, heat = 1e4, 1.0, 1.1
        if own is not None:
            theta, slower, heat = own.theta or 1.0, own.factor, 1.0
        omegas = torch.tensor([theta ** (-2 * pair / d) / slower for pair in range(d // 2)], dtype=torch.float64)
        if own is not None and own.theta is None:
            omegas *= 0
        turns = torch.polar(torch.tensor(heat, dtype=torch.float64), positions[:, None] * omegas)
        n = block.attention_norm(x)

        def turned(heads, turns=turns):
            z = torch.complex(heads[..., : d // 2].double(), heads[..., d // 2 :].double()) * turns[:, None]
            return torch.cat((z.real, z.imag), dim=-1)

        q, k, v = (part(n).view(count, -1, d) for part in (block.q, block.k, block.v))
        q, k = turned(q), turned(k).repeat_interleave(2, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / d**0.5
        distance = torch.arange(count)[:, None] - torch.arange(count)
        scores[:, (distance < 0) | (distance >= (block.window or count))] = float("-inf")
        o = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.double().repeat_interleave(2, dim=1))
        x = x + block.o(o.flatten(1).to(x.dtype))
        n = block.mlp_norm(x)
        x = x + block.down(functional.silu(block.gate(n)) * block.up(n))
    return decoder.logits(decoder.norm(x))


@torch.no_grad()
def test_the_decoder_turns_each_layer_by_its_own_set():
    decoder = hybrid()
    wanted = written_down(decoder, TOKENS, torch.arange(37))
    torch.testing.assert_close(decoder(TOKENS)[0], wanted, rtol=1e-4, atol=1e-4)
    for change in ((None,) * 4, (None, LOCAL, None, LOCAL), (None, NONE, NONE, NONE)):
        other = toy_decoder(layers=4, own_positions=change, windows=(None, 5, None, 5))
        assert (other(TOKENS)[0] - wanted).abs().max() > 1e-2, change


def test_a_layer_without_positions_turns_by_nothing():
    cos, sin = hybrid().angles(torch.tensor([[0, 7, 10**9]]))[2]
    assert bool((cos == 1).all())
    assert float(sin.abs().max()) < 1e-20
    assert STILL == 2.0**100


@pytest.mark.parametrize("options", [{}, {"keep": "inputs", "segment": 2}])
def test_engine_is_autograd(options):
    decoder = hybrid()
    compare(decoder, toy_batch(((0, 13, 37),)), choice_of(decoder, **options))


@torch.no_grad()
def test_a_kept_context_and_its_questions():
    decoder = hybrid()
    prefill = Prefill(decoder)
    kept = prefill.read(TOKENS[0, :30])
    branches = Branches(prefill, kept, count=1, room_tokens=7)
    (rows,) = branches.extend([TOKENS[0, 30:].tolist()])
    wanted = written_down(decoder, TOKENS, torch.arange(37))
    torch.testing.assert_close(prefill.logits(rows), wanted[30:], rtol=1e-4, atol=1e-4)
    nll = functional.cross_entropy(wanted[:-1], TOKENS[0, 1:], reduction="none")
    torch.testing.assert_close(prefill.token_nll(TOKENS[0]), nll, rtol=1e-4, atol=1e-4)


def test_candidates_change_the_stretched_layers_alone():
    decoder = hybrid(dtype=torch.float64).requires_grad_(False)
    positions = torch.arange(36) + 3
    sheet = Sheet(
        tokens=TOKENS[:, :-1],
        positions=positions[None],
        targets=TOKENS[:, 1:],
        scored=torch.ones((1, 36), dtype=torch.bool),
    )
    own = candidate_nll(decoder, sheet, [Candidate(frequencies=decoder.frequencies)], pass_tokens=100)[0]
    wanted = functional.cross_entropy(written_down(decoder, TOKENS[:, :-1], positions), TOKENS[0, 1:], reduction="none")
    torch.testing.assert_close(own.double(), wanted, rtol=1e-5, atol=1e-5)
    slower = replace(decoder.frequencies, factors=(1.0, 1.5, 2.0, 3.0))
    found = candidate_nll(decoder, sheet, [Candidate(frequencies=slower)], pass_tokens=100)[0]
    loss, by_logs, _ = candidate_gradient(decoder, sheet, slower)
    assert loss == pytest.approx(float(found.double().mean()), rel=1e-6)
    step = 1e-3
    for pair in range(4):
        up, down = (
            replace(slower, factors=tuple(f * (s if p == pair else 1) for p, f in enumerate(slower.factors)))
            for s in (1 + step, 1 - step)
        )
        both = candidate_nll(decoder, sheet, [Candidate(frequencies=f) for f in (up, down)], pass_tokens=100)
        change = float((both[0] - both[1]).double().mean()) / (2 * step)
        assert float(by_logs[pair]) == pytest.approx(change, rel=0.05, abs=2e-4)
    # a model whose layers all have their own takes no notice of a candidate
    fixed = toy_decoder(layers=2, own_positions=(LOCAL, NONE))
    both = candidate_nll(fixed, sheet, [Candidate(frequencies=f) for f in (slower, decoder.frequencies)], pass_tokens=9)
    assert torch.equal(both[0], both[1])


def test_a_cut_model_keeps_the_positions_of_its_layers():
    shape = hybrid().shape
    assert shape.first_layers(2).own_positions == (None, LOCAL)
    assert shape.first_layers(1).own_positions == ()
    assert [shape.position_set(layer) for layer in range(4)] == [0, 1, 2, 1]
    assert shape.first_layers(3).windows == (None, 5, None)
