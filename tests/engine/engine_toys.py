"""Small decoders and ragged batches for the engine's tests, and the plain decoder as their oracle."""

import copy
import itertools

import torch
from torch.nn import functional

from longspan.batch import Batch
from longspan.engine.anchors import anchor_keys
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice
from longspan.model.decoder import Decoder
from longspan.model.lora import add_lora
from longspan.model.settings import LoraSettings
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape

DIVISOR = 17.5


def toy_decoder(*, dtype=torch.float32, seed=3, layers=3, **changes):
    sizes = {
        "family": "llama",
        "layers": layers,
        "width": 24,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "mlp_width": 40,
        "vocabulary": 53,
        "norm_epsilon": 1e-5,
        "tied": False,
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "windows": (None,) * layers,
        "trained_length": 64,
    }
    shape = ModelShape(**{**sizes, **changes})
    pairs = shape.head_dim // 2
    frequencies = Frequencies(theta=1e4, factors=(1.0,) * pairs, attention_factor=1.1, length=64, trained_length=64)
    decoder = Decoder(shape, frequencies)
    decoder.initialise(seed)
    with torch.no_grad():  # larger weights, so that an error cannot hide in a nearly linear model
        for weight in decoder.parameters():
            weight.mul_(3) if weight.ndim > 1 else weight.add_(0.1)
    return decoder.to(dtype)


def adapt(decoder, *, also=()):
    """Adapters on every projection, none of them zero; all but they and `also` frozen."""
    every = ("q", "k", "v", "o", "gate", "up", "down")
    add_lora(decoder, LoraSettings(rank=3, alpha=5.0, projections=every, also_train=also), seed=1)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if ".lora." in name:
                parameter.normal_(std=0.2, generator=generator)
    return decoder


def toy_batch(spans, *, vocabulary=53, seed=5):
    """One row a tuple of borders; some targets weigh nothing, and the last row has none at all if there are several."""
    length = spans[0][-1]
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (len(spans), length + 1), generator=generator)
    weights = torch.rand(len(spans), length, generator=generator) * 3
    weights[0, : length // 3] = 0
    if len(spans) > 1:
        weights[-1] = 0
    positions = torch.stack([torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(row)]) for row in spans])
    return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights, positions=positions, spans=spans)


def plain_loss(decoder, batch):
    """Each document alone through the plain decoder: an oracle for borders and positions, too."""
    total = torch.zeros(())
    for row, borders in enumerate(batch.spans):
        for low, high in itertools.pairwise(borders):
            logits = decoder.logits(decoder.hidden(batch.tokens[row : row + 1, low:high]))[0]
            losses = functional.cross_entropy(logits, batch.targets[row, low:high], reduction="none")
            total = total + (losses * batch.weights[row, low:high]).sum()
    return total


def choice_of(decoder, *, tiers=("device",), **options):
    """A choice with the given tiers, dealt out in turn."""
    bare = EngineChoice(**options)
    keys = anchor_keys(decoder.shape.layers, keep=bare.keep, segment=bare.segment)
    return EngineChoice(**options, anchors=tuple(tiers[i % len(tiers)] for i in range(len(keys))))


def compare(decoder, batch, choice, *, folder=None, rtol=1e-5, engine=None):
    """Loss and gradients of the engine against autograd; errors relative to the norm of each gradient."""
    oracle = copy.deepcopy(decoder)
    want = plain_loss(oracle, batch)
    (want / DIVISOR).backward()
    decoder.zero_grad()
    engine = engine or Engine(decoder, choice, tokens=batch.tokens.numel(), folder=folder)
    loss = engine.forward_backward(batch, divisor=DIVISOR)
    assert abs(float(loss) - float(want.detach())) <= 1e-6 * abs(float(want.detach()))
    largest = max(float(p.grad.norm()) for p in oracle.parameters() if p.grad is not None)
    for (name, mine), other in zip(decoder.named_parameters(), oracle.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None, name
            continue
        error = (mine.grad.double() - other.grad.double()).norm()
        # Short rows have hardly a gradient of q and k: what autograd leaves there is the rounding of other terms.
        assert error <= rtol * max(other.grad.double().norm(), 0.03 * largest), f"{name}: {error}"
