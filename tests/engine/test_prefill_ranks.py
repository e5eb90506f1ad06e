"""A context whose keys lie on several ranks: answers and losses are a plain forward's, the same on every rank."""

import pytest
import torch
from engine_toys import toy_decoder
from prefill_ranks import answers
from ranks import run_ranks
from torch.nn import functional

from longspan.parallel.mesh import Mesh

TEXTS, TAILS = [[5, 3, 8, 1, 9], [2, 2, 7, 4, 4, 4, 30, 1], [11]], [[3, 9], [4, 2], [5]]
EIGHT = {"heads": 8, "kv_heads": 2}
MESHES = [
    ("ring", Mesh(ring=2), EIGHT, 41),
    ("gather", Mesh(ring=3), EIGHT | {"windows": (None, 2, 9)}, 43),
    ("ulysses", Mesh(ulysses=2), EIGHT | {"qk_norm": True, "tied": True}, 37),
    ("ulysses", Mesh(ulysses=4), EIGHT, 64),
    ("grid", Mesh(ring=2, ulysses=2), EIGHT | {"qkv_bias": True}, 39),
]


def ids(count):
    return torch.randint(0, 53, (count,), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize(("kind", "mesh", "sizes", "length"), MESHES, ids=str)
def test_ranks_answer_as_one(kind, mesh, sizes, length, cut):
    context, decoder = ids(length), toy_decoder(**sizes)
    found = run_ranks(mesh.ranks, answers, mesh, kind, cut, [(sizes, context.tolist(), TEXTS, TAILS)])
    with torch.no_grad():
        whole = [
            decoder(torch.cat([context, torch.tensor(text + tail)])[None])[0, length:]
            for text, tail in zip(TEXTS, TAILS, strict=True)
        ]
        losses = functional.cross_entropy(decoder(context[None])[0, :-1], context[1:], reduction="none")
    want = torch.cat([rows[: len(text)] for rows, text in zip(whole, TEXTS, strict=True)])
    want = torch.cat([want, *(rows[len(text) :] for rows, text in zip(whole, TEXTS, strict=True))])
    for (logits, nll), *_ in found:
        torch.testing.assert_close(torch.as_tensor(logits), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.as_tensor(nll), losses, rtol=1e-4, atol=1e-5)
        assert (logits == found[0][0][0]).all(), "all ranks have the same bits"
        assert (nll == found[0][0][1]).all()
