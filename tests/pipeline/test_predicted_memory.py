"""The planner's bytes against those of live tensors while the engine runs."""

import pytest
import torch
from live_bytes import LiveBytes

from longspan.engine.anchors import anchor_keys
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice, Policy
from longspan.pipeline.benchparts import random_batch, random_decoder
from longspan.plan.memory import predict
from longspan.plan.workload import States, Workload
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape

TOKENS, SHORT, LAYERS = 4096, 2304, 4  # a short row is long enough for the kernels of long ones
SHAPE = ModelShape(
    family="llama",
    layers=LAYERS,
    width=128,
    heads=8,
    kv_heads=2,
    head_dim=16,
    mlp_width=384,
    vocabulary=1000,
    norm_epsilon=1e-5,
    tied=False,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None,) * LAYERS,
    trained_length=512,
)


@pytest.mark.parametrize(("keep", "segment"), [("attention", 1), ("attention", 2), ("inputs", 2)])
def test_predicted_peak_is_within_five_per_cent(keep: Policy, segment: int) -> None:
    device = torch.device("cpu")
    frequencies = Default().frequencies(RopeBase(rotary_dim=16, theta=1e4, trained_length=512), TOKENS)
    decoder = random_decoder(SHAPE, frequencies, device=device, dtype=torch.float32, seed=0)
    batch = random_batch(1, TOKENS, vocabulary=SHAPE.vocabulary, device=device, seed=0)
    keys = anchor_keys(LAYERS, keep=keep, segment=segment)
    choice = EngineChoice(
        keep=keep, segment=segment, tile_tokens=128, loss_tile_tokens=128, group=1, anchors=("device",) * len(keys)
    )
    # What a first call does once, such as trying its kernels, is no part of a step.
    Engine(decoder, choice, tokens=SHORT).forward_backward(
        random_batch(1, SHORT, vocabulary=SHAPE.vocabulary, device=device, seed=0), divisor=1.0
    )
    with LiveBytes() as live:
        for weight in decoder.parameters():
            weight.grad = torch.zeros_like(weight)
            live.add(weight)
        for tensor in (batch.tokens, batch.targets, batch.weights, batch.positions):
            live.add(tensor)
        Engine(decoder, choice, tokens=TOKENS).forward_backward(batch, divisor=1.0)
    states = States(weight_bytes=4, gradient_bytes=4)
    predicted = predict(Workload(shape=SHAPE, tokens=TOKENS, element_bytes=4, states=states), choice)
    assert predicted.device_bytes == pytest.approx(live.peak, rel=0.05)
