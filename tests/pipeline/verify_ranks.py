"""A mesh against one rank, as a rank runs it, whole and with a fault in it. No pytest here."""

from dataclasses import replace
from unittest.mock import patch

import torch

from longspan.attention.functional import Cpu
from longspan.attention.schemes.gather import Gather
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ring import Ring
from longspan.attention.schemes.ulysses import Ulysses
from longspan.batch import Batch
from longspan.engine.anchors import anchor_keys
from longspan.engine.settings import EngineChoice
from longspan.model.decoder import Decoder
from longspan.parallel import exchange, weights
from longspan.pipeline.parity import compare_mesh, odd_batch
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape

LAYERS, VOCABULARY, MLP_WIDTH = 2, 53, 40
PLAIN = Local(kernel=Cpu())  # needs no self-test in every process
SCHEMES = {
    "gather": lambda axes, local: Gather(ring=axes["ring"], local=local),
    "ring": lambda axes, local: Ring(ring=axes["ring"], local=local),
    "ulysses": lambda axes, local: Ulysses(ulysses=axes["ulysses"], inner=local),
    "local": lambda axes, local: local,
}


def decoder():
    shape = ModelShape(
        family="llama", layers=LAYERS, width=24, heads=4, kv_heads=2, head_dim=8, mlp_width=MLP_WIDTH,
        vocabulary=VOCABULARY, norm_epsilon=1e-5, tied=False, qkv_bias=True, out_bias=False, mlp_bias=False,
        qk_norm=False, windows=(None,) * LAYERS, trained_length=128,
    )  # fmt: skip
    frequencies = Frequencies(theta=1e4, factors=(1.0,) * 4, attention_factor=1.0, length=128, trained_length=128)
    found = Decoder(shape, frequencies)
    found.initialise(3)
    with torch.no_grad():  # larger weights, so that an error cannot hide in a nearly linear model
        for weight in found.parameters():
            weight.mul_(3) if weight.ndim > 1 else weight.add_(0.1)
    return found


def batch(rows, length=104):
    """Rows of one document each."""
    tokens = torch.randint(0, VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(5))
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=torch.ones(rows, length),
        positions=torch.arange(length).repeat(rows, 1),
        spans=((0, length),) * rows,
    )


def verified(world, mesh, kind, fault=None, rows=1):
    """The verdict of all ranks, and what rank 0 has to say: names that are wrong, and tables."""
    local = replace(PLAIN, merge=lambda o, lse, part, part_lse: None) if fault == "merge" else PLAIN
    scheme = SCHEMES[kind](world.axes(mesh), local)
    bare = EngineChoice(tile_tokens=16, group=2)
    anchors = ("device",) * len(anchor_keys(LAYERS, keep=bare.keep, segment=bare.segment))
    choice, given = replace(bare, anchors=anchors), odd_batch(batch(rows))
    with patch.object(weights, "reduce_rows", not_summed if fault == "reduction" else exchange.reduce_rows):
        found = compare_mesh(decoder, given, world=world, mesh=mesh, scheme=scheme, choice=choice)
    told = [(one.case, one.ok, one.loss_difference, one.wrong, len(one.gradients)) for one in found.comparisons]
    return found.ok, told, [one.table() for one in found.comparisons]


def not_summed(x, axis, **options):
    """A reduction that forgets what ranks but the first have of one parameter of each layer."""
    forgotten = x.shape == (24, MLP_WIDTH) and axis.rank > 0
    return exchange.reduce_rows(torch.zeros_like(x) if forgotten else x, axis, **options)
