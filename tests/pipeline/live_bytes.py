"""Bytes of live tensors while the engine runs, on one rank or several. Runs on ranks: no pytest here."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longspan.attention.functional import Cpu
from longspan.attention.schemes.gather import Gather
from longspan.attention.schemes.grid import Grid
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ring import Ring
from longspan.attention.schemes.ulysses import Ulysses
from longspan.engine.run import Engine
from longspan.pipeline.benchparts import random_batch, random_decoder
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


class LiveBytes(TorchDispatchMode):
    """Follows the storage of every tensor that an operation gives, from its birth to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def peak_of(shape, choice, *, tokens, engine):
    """The most bytes that live at once in one pass over a row; `engine` makes one for a decoder and so many tokens."""
    device = torch.device("cpu")
    frequencies = Default().frequencies(RopeBase(rotary_dim=16, theta=1e4, trained_length=512), tokens)
    decoder = random_decoder(shape, frequencies, device=device, dtype=torch.float32, seed=0)
    # What a first call does once, such as trying its kernels, is no part of a step.
    short = random_batch(1, tokens * SHORT // TOKENS, vocabulary=shape.vocabulary, device=device, seed=0)
    engine(decoder, short.tokens.numel()).forward_backward(short, divisor=1.0)
    for weight in decoder.parameters():
        weight.grad = None
    batch = random_batch(1, tokens, vocabulary=shape.vocabulary, device=device, seed=0)
    with LiveBytes() as live:
        for weight in decoder.parameters():
            weight.grad = torch.zeros_like(weight)
            live.add(weight)
        for tensor in (batch.tokens, batch.targets, batch.weights, batch.positions):
            live.add(tensor)
        engine(decoder, tokens).forward_backward(batch, divisor=1.0)
    return live.peak


def peak_of_rank(world, mesh, kind, kv_width, shape, choice, local_tokens):
    """The same on one of several ranks, each with so many tokens."""
    axes = world.axes(mesh)
    ring, ulysses, local = axes["ring"], axes["ulysses"], Local(kernel=Cpu())
    scheme = {
        "ring": lambda: Ring(ring=ring, local=local),
        "gather": lambda: Gather(ring=ring, local=local),
        "ulysses": lambda: Ulysses(ulysses=ulysses, inner=local, kv_width=kv_width),
        "grid": lambda: Grid(ring=ring, ulysses=ulysses, local=local),
    }[kind]()

    def engine(decoder, tokens):
        own = -(-tokens // scheme.ranks)
        return Engine(
            decoder, choice, tokens=own, scheme=scheme, axes=[axis for axis in axes.values() if axis.size > 1]
        )

    return peak_of(shape, choice, tokens=local_tokens * scheme.ranks, engine=engine)
