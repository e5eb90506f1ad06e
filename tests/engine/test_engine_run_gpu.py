"""The engine in bfloat16 on a CUDA device: no further from float64 than the plain decoder in bfloat16 is."""

import copy
from dataclasses import replace

import pytest
import torch
from engine_toys import plain_loss, toy_batch, toy_decoder

from longspan.engine.anchors import anchor_keys
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
DOCUMENTS = ((0, 1000), (0, 300, 301, 1000))
WIDE = {"layers": 3, "width": 256, "heads": 8, "kv_heads": 2, "head_dim": 64, "mlp_width": 512, "vocabulary": 1000}
SLACK = 1.5  # times the plain path's own error: roundings of one size, drawn differently


def gradients(decoder):
    return [parameter.grad.double().cpu() for parameter in decoder.parameters()]


def run(decoder, batch, choice, tiers):
    keys = anchor_keys(decoder.shape.layers, keep=choice.keep, segment=choice.segment)
    choice = replace(choice, anchors=tuple(tiers[i % len(tiers)] for i in range(len(keys))))
    engine = Engine(decoder, choice, tokens=batch.tokens.numel())
    return float(engine.forward_backward(batch, divisor=10.0))


@pytest.mark.parametrize(
    ("choice", "tiers", "spans", "changes"),
    [
        ({"gradient": "host"}, ("host",), DOCUMENTS, {}),
        ({}, ("device",), DOCUMENTS, {}),
        ({"segment": 2, "gradient": "host"}, ("device", "host"), DOCUMENTS, {}),
        ({"keep": "inputs", "segment": 2, "gradient": "host"}, ("host",), DOCUMENTS, {}),
        ({"group": 2}, ("host",), DOCUMENTS, {"qk_norm": True, "qkv_bias": True, "tied": True}),
        ({}, ("host",), DOCUMENTS, {"windows": (None, 100, 7)}),
        ({"gradient": "host", "tile_tokens": 512}, ("host",), ((0, 2500),), {"head_dim": 128}),
        ({"gradient": "host", "tile_tokens": 512}, ("host",), ((0, 2500), (0, 2500)), {"heads": 6}),
    ],
)
def test_as_near_to_float64_as_the_plain_path(choice, tiers, spans, changes):
    sizes = {**WIDE, **changes}
    decoder, batch = toy_decoder(**sizes), toy_batch(spans, vocabulary=sizes["vocabulary"])
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
    truth, plain, narrow, masters = (copy.deepcopy(decoder) for _ in range(4))
    (plain_loss(truth.double(), batch) / 10).backward()
    there = batch.to(CUDA)
    plain_sum = plain_loss(plain.to(CUDA, torch.bfloat16), there)
    (plain_sum / 10).backward()
    wanted = gradients(truth)
    own = [float((a - b).norm() / b.norm()) for a, b in zip(gradients(plain), wanted, strict=True)]
    picked = EngineChoice(**{"tile_tokens": 256, **choice})
    for model in (narrow.to(CUDA, torch.bfloat16), masters.to(CUDA)):
        loss = run(model, there, picked, tiers)
        assert abs(loss - float(plain_sum.detach())) <= 0.01 * abs(loss)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(gradients(model), wanted, strict=True)]
        worse = {
            name: (mine, theirs)
            for (name, _), mine, theirs in zip(model.named_parameters(), errors, own, strict=True)
            if mine > SLACK * theirs + 1e-3
        }
        assert not worse


def test_the_same_batch_gives_the_same_gradients_from_every_tier():
    decoder, batch = toy_decoder(**WIDE).to(CUDA), toy_batch(((0, 3000),), vocabulary=1000).to(CUDA)
    found = []
    for tiers, gradient in ((("device",), "device"), (("host",), "host")):
        decoder.zero_grad()
        run(decoder, batch, EngineChoice(tile_tokens=256, gradient=gradient), tiers)
        found.append(gradients(decoder))
    for mine, other in zip(*found, strict=True):
        assert (mine - other).norm() <= 2e-3 * other.norm()  # attention's backward adds in another order each time
