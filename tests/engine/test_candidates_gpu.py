"""Candidates on a CUDA device in bfloat16 against the same weights on the CPU in float32."""

import copy

import pytest
import torch
from engine_toys import toy_decoder
from test_candidates import sets, sheet_of

from longspan.engine.candidates import Candidate, candidate_gradient, candidate_nll

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("pass_tokens", [100, 10**6])
def test_losses(pass_tokens):
    decoder, sheet = toy_decoder(), sheet_of(skip=True, length=256)
    moved = copy.deepcopy(decoder).to("cuda")
    candidates = [
        Candidate(frequencies=f, kept_tokens=kept) for f, kept in zip(sets(3, decoder), (0, 0, 9), strict=True)
    ]
    found = candidate_nll(moved, sheet, candidates, pass_tokens=pass_tokens)
    wanted = candidate_nll(decoder, sheet, candidates, pass_tokens=10**6)
    torch.testing.assert_close(found.cpu().mean(1), wanted.mean(1), rtol=2e-2, atol=0)


def test_gradient():
    decoder, sheet = toy_decoder().requires_grad_(False), sheet_of(skip=True, length=256)
    moved = copy.deepcopy(decoder).to("cuda")
    (frequencies,) = sets(1, decoder)
    loss, by_logs, by_heat = candidate_gradient(moved, sheet, frequencies)
    wanted, logs, heat = candidate_gradient(decoder, sheet, frequencies)
    assert loss == pytest.approx(wanted, rel=2e-2)
    assert float((by_logs - logs).norm()) <= 0.1 * float(logs.norm())
    assert by_heat == pytest.approx(heat, rel=0.2, abs=2e-3)
