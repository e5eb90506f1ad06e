"""The bytes of live tensors on a rank: of one pass of the engine, and of reading a model. No pytest here."""

import torch
from live_bytes import LiveBytes

from longspan.attention.functional import Cpu
from longspan.attention.schemes.grid import ACROSS, Grid
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ulysses import Ulysses
from longspan.engine.run import Engine
from longspan.model.lora import add_lora
from longspan.model.weights import Unread, load
from longspan.parallel.weights import place_weights
from longspan.pipeline.benchparts import random_batch, random_decoder
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default


def live_peaks(world, shape, cases):
    """That of each mesh and choice over a row of so many tokens."""
    return [_live_peak(world, shape, *case) for case in cases]


def _live_peak(world, shape, mesh, choice, tokens):
    """The peak of a second pass over one row of `tokens`; a first short one does what is done once."""
    frequencies = Default().frequencies(RopeBase(rotary_dim=shape.head_dim, theta=1e4, trained_length=512), tokens)
    decoder = random_decoder(shape, frequencies, device=world.device, dtype=torch.float32, seed=0)
    weights = place_weights(decoder, decoder.parts, world=world, mesh=mesh, dtype=torch.float32)
    parts = {"scheme": _scheme(world.axes(mesh), mesh, choice), "weights": weights}
    short, batch = (
        random_batch(1, count, vocabulary=shape.vocabulary, device=world.device, seed=0) for count in (256, tokens)
    )
    Engine(decoder, choice, tokens=256 // mesh.context, **parts).forward_backward(short, divisor=1.0)
    for kept in weights.kept.values():
        kept.grad = torch.zeros_like(kept)
    with LiveBytes() as live:
        for kept in weights.kept.values():
            live.add(kept)
            live.add(kept.grad)
        for tensor in (batch.tokens, batch.targets, batch.weights, batch.positions):
            live.add(tensor)
        Engine(decoder, choice, tokens=tokens // mesh.context, **parts).forward_backward(batch, divisor=1.0)
    return live.peak


def _scheme(axes, mesh, choice):
    local = Local(kernel=Cpu())  # needs no self-test in every process
    if mesh.ulysses == 1:
        return ACROSS[mesh.across](ring=axes["ring"], local=local) if mesh.ring > 1 else local
    widths = {"kv_width": choice.kv_width, "query_width": choice.query_width}
    if mesh.ring == 1:
        return Ulysses(ulysses=axes["ulysses"], inner=local, **widths)
    return Grid(ring=axes["ring"], ulysses=axes["ulysses"], across=mesh.across, local=local, **widths)


def unread_weights(world, folder, mesh, lora):
    """A model folder over the ranks, read part by part: its own rows, the peak of live bytes, those of the whole."""
    decoder = load(folder, device="meta")
    if lora is not None:
        add_lora(decoder, lora, 3)
    with LiveBytes() as live:
        fill = Unread(decoder, folder, device=world.device).fill
        weights = place_weights(decoder, decoder.parts, world=world, mesh=mesh, dtype=None, fill=fill)
    rows = {name: (weights.first_row(name), kept.detach().clone()) for name, kept in weights.kept.items()}
    trained = [name for name, kept in weights.kept.items() if kept.requires_grad]
    return rows, trained, live.peak
