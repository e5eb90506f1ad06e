"""Evaluation over ranks: one rank asks, and all keep the keys of its long contexts."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch

from longspan.engine.following import obey
from longspan.engine.kept import Keep
from longspan.engine.prefill import Order, Prefill
from longspan.engine.settings import EngineChoice
from longspan.model.decoder import Decoder
from longspan.parallel.dist import World
from longspan.parallel.exchange import broadcast_
from longspan.parallel.mesh import Mesh
from longspan.pipeline.meshes import scheme_of
from longspan.plan.meshes import choose_mesh

END = "end"
ANY_LENGTH = 2**40  # tokens: so that every window hides something


def evaluation_mesh(decoder: Decoder, world: World) -> Mesh:
    """The automatic mesh of one row that all ranks share, however long it is."""
    return choose_mesh(
        ranks=world.launch.ranks,
        ranks_per_node=world.launch.local_ranks,
        rows_per_step=1,
        length=ANY_LENGTH,
        heads=decoder.shape.heads,
        windows=decoder.shape.windows,
        fits=lambda _: True,
    )


def spread_prefill(decoder: Decoder, keep: Keep, world: World | None) -> Prefill | None:
    """A prefill over all ranks, each with all weights; None for one rank. Every rank calls this."""
    if world is None:
        return None
    mesh = evaluation_mesh(decoder, world)
    axes = world.axes(mesh)
    scheme = scheme_of(mesh, world, EngineChoice())
    return Prefill(decoder, keep, scheme=scheme, axes=(axes["ring"], axes["ulysses"]))


@contextmanager
def asking(prefill: Prefill | None, world: World | None, topic: str) -> Iterator[None]:
    """Inside, what the prefill of the rank that leads is asked for, the others are told, until the end."""
    if prefill is None or world is None:
        yield
        return
    numbers = itertools.count()

    def tell(order: Order) -> None:
        words = asdict(replace(order, tokens=None)) | {"size": 0 if order.tokens is None else len(order.tokens)}
        world.say(f"{topic}/{next(numbers)}", json.dumps(words))
        if order.tokens is not None:
            broadcast_(order.tokens.cpu().contiguous(), world.everyone, operation="broadcast of a context").wait()

    prefill.tell = tell
    try:
        yield
    finally:
        world.say(f"{topic}/{next(numbers)}", END)


def answer(decoder: Decoder, keep: Keep, world: World | None, topic: str) -> None:
    """What a rank that follows does meanwhile."""
    prefill = spread_prefill(decoder, keep, world)
    assert world is not None, "one rank has nobody to follow"
    assert prefill is not None
    obey(prefill, _orders(world, topic))


def _orders(world: World, topic: str) -> Iterator[Order]:
    for number in itertools.count():
        said = world.hear(f"{topic}/{number}")
        if said == END:
            return
        words = json.loads(said)
        size = words.pop("size")
        if size:
            tokens = torch.empty(size, dtype=torch.int64)
            words["tokens"] = broadcast_(tokens, world.everyone, operation="broadcast of a context").wait()
        yield Order(**words)
