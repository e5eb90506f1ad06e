"""Contexts and questions on a CUDA device in bfloat16 against the plain decoder in float32 on the CPU."""

import copy

import pytest
import torch
from engine_toys import toy_decoder

from longspan.attention.cached import over_all
from longspan.engine.kept import Keep
from longspan.engine.prefill import Branches, Prefill

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SIZES = {"width": 128, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp_width": 256}


@pytest.mark.parametrize("keep", [Keep(), Keep(place="host"), Keep(place="host", codes=True)], ids=repr)
def test_branches(keep):
    decoder = toy_decoder(**SIZES)
    moved = copy.deepcopy(decoder).cuda()
    context = torch.randint(0, 53, (3000,), generator=torch.Generator().manual_seed(0))
    prefill = Prefill(moved, keep)
    for _ in range(2):  # the second context uses the host memory of the first
        branches = Branches(prefill, prefill.read(context), count=2, room_tokens=9)
        found = branches.extend([[1, 2, 3, 4, 5, 6, 7], [8]])
        found = [torch.cat(pair) for pair in zip(found, branches.extend([[9], [10]]), strict=True)]
        for text, rows in zip(([1, 2, 3, 4, 5, 6, 7, 9], [8, 10]), found, strict=True):
            with torch.no_grad():
                want = decoder(torch.cat([context, torch.tensor(text)])[None])[0, 3000:]
            assert (prefill.logits(rows).cpu() - want).abs().max() < 0.06 * want.abs().max()
        context = context.flip(0)


def test_loss_of_every_token():
    decoder = toy_decoder(**SIZES)
    text = torch.randint(0, 53, (2500,), generator=torch.Generator().manual_seed(0))
    want = Prefill(decoder).token_nll(text)
    found = Prefill(copy.deepcopy(decoder).cuda()).token_nll(text)
    torch.testing.assert_close(found.cpu(), want, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("queries", [1, 40, 700])
def test_few_queries_over_many_keys(queries):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, s, 64, generator=generator) for n, s in ((6, queries), (2, 40_000), (2, 40_000)))
    want = over_all(q, k, v)
    for mine, other in zip(over_all(*(x.cuda().bfloat16() for x in (q, k, v))), want, strict=True):
        assert (mine.cpu().float() - other).abs().max() < 0.03 * other.abs().max()
