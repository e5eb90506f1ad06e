"""Schemes found by their folder, and what they do with some cases on some ranks. Runs on ranks: no pytest here."""

import contextlib
import importlib
import pkgutil
from dataclasses import dataclass, fields
from unittest.mock import patch

import torch
from attention_cases import cut, line
from torch import distributed

from longspan.attention import schemes
from longspan.attention.functional import Cpu
from longspan.attention.heads import HeadGeometry, HeadGroup
from longspan.attention.schemes import gather, ring
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import Local
from longspan.parallel import exchange
from longspan.parallel.dist import ALONE
from longspan.parallel.exchange import Pending
from longspan.utils.errors import LongspanError

AXES = ("ring", "ulysses")


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    length: int
    borders: tuple[int, ...] = ()
    window: int | None = None
    dtype: torch.dtype = torch.float32

    @property
    def runs(self):
        return cut(self.length, self.borders)

    def tensors(self):
        return line(self.heads, self.kv_heads, self.length, dtype=self.dtype, seed=self.length + self.heads)


def kinds():
    """Every scheme: its file's name and its class."""
    found = {}
    for module in pkgutil.iter_modules(schemes.__path__):
        if not module.name.startswith("_") and module.name != "base":
            loaded = importlib.import_module(f"{schemes.__name__}.{module.name}")
            own = [x for x in vars(loaded).values() if isinstance(x, type) and issubclass(x, Scheme)]
            (found[module.name],) = (x for x in own if x.__module__ == loaded.__name__)
    return found


def build(kind, axes, options, *, kernel=Cpu()):  # noqa: B008
    """The scheme on its axes, with a kernel that needs no self-test in every process."""
    wanted, plain = kinds()[kind], Local(kernel=kernel)
    if kind == "local":
        return plain
    known = {"local": plain, "inner": plain, **{name: axes.get(name, ALONE) for name in AXES}}
    chosen = {field.name: known[field.name] for field in fields(wanted) if field.name in known}
    return wanted(**chosen, **options)


def places(pieces):
    return [token for start, stop in pieces for token in range(start, stop)]


def attend(world, mesh, kind, options, cases, fault=""):
    """This rank's tokens and o, lse, dq, dk, dv of each case; the code of the error where it is refused."""
    scheme = build(kind, world.axes(mesh), options)
    with FAULTS[fault]():
        return [attend_case(scheme, case, twice=number % 8 == 0) for number, case in enumerate(cases)]


def attend_case(scheme, case, *, twice=False):
    """One case of `attend`."""
    mine = places(scheme.layout(case.length, scheme.rank))
    do, q, k, v = (x[:, mine] for x in case.tensors())
    given = {"runs": case.runs, "window": case.window}
    try:
        o, lse = scheme.forward(q, k, v, **given)
        assert o.dtype == case.dtype
        gradients = scheme.backward(do, q, k, v, o, lse, **given)
    except LongspanError as error:
        return error.code
    assert all(x.dtype == case.dtype for x in gradients)
    if twice:
        again = scheme.backward(do, q, k, v, o, lse, **given)
        assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True)), "not the same twice"
    return [mine, *(x.float() for x in (o, lse, *gradients))]


# -- planted faults ----------------------------------------------------------------------------------------------------


def contiguous_queries():
    """UPipe's mistake: the query heads of a stage are cut from the front, whatever key head they meet."""
    right = HeadGeometry.group

    def group(self, stage, rank=0):
        found, width = right(self, stage, rank), self.kv_width * self.width
        first = (stage * self.degree + rank) * width
        return HeadGroup(stage, found.kv_heads, tuple(range(first, first + width)), found.new_kv)

    return patch.object(HeadGeometry, "group", group)


def crossed_heads():
    """Keys go to the wrong rank: the last rank's to the first, and so on."""
    right = HeadGeometry.group

    def group(self, stage, rank=0):
        other = right(self, stage, (rank + 1) % self.degree)
        found = right(self, stage, rank)
        return HeadGroup(stage, other.kv_heads, found.query_heads, found.new_kv)

    return patch.object(HeadGeometry, "group", group)


def dropped_step():
    """Nobody else looks at the keys of rank 1 of 4, whose tokens begin at an eighth of the batch."""
    return patch.object(
        ring,
        "rectangles",
        lambda own, others, runs: () if others[0][0] == runs[-1][1] // 8 else RIGHT(own, others, runs),
    )


def no_way_home():
    """The gradients of keys stay where they are after the last step, one rank from home."""
    right = ring.ring_step

    def step(x, axis, *, shape, operation):
        if operation == f"ring of gradients, step {axis.size}":
            return Pending(axis, operation, x.new_zeros(shape))
        return right(x, axis, shape=shape, operation=operation)

    return patch.object(ring, "ring_step", step)


def unsummed():
    """Each rank keeps its own share of the gradients of its keys."""
    return patch.object(gather, "reduce_scatter", lambda shares, axis, dim: Pending(axis, "none", shares[axis.rank]))


def ignored_documents():
    """Keys of other ranks are seen across the borders of documents."""
    return patch.object(ring, "rectangles", lambda own, others, runs: RIGHT(own, others, ((0, runs[-1][1]),)))


RIGHT = ring.rectangles
FAULTS = {
    "": contextlib.nullcontext,
    "contiguous queries": contiguous_queries,
    "crossed heads": crossed_heads,
    "dropped step": dropped_step,
    "no way home": no_way_home,
    "unsummed": unsummed,
    "ignored documents": ignored_documents,
}


# -- schedule ----------------------------------------------------------------------------------------------------------


def schedule(world, mesh, kind, options, case):
    """What this rank does in order, forward and then backward: bytes of messages that it sends, queries of kernels."""
    events = []

    class Noted(Cpu):
        def forward(self, q, *rest, **options):
            events.append(("kernel", q.shape[2]))
            return super().forward(q, *rest, **options)

        def backward(self, do, *rest, **options):
            events.append(("kernel", do.shape[2]))
            return super().backward(do, *rest, **options)

    scheme = build(kind, world.axes(mesh), options, kernel=Noted())
    mine = places(scheme.layout(case.length, scheme.rank))
    do, q, k, v = (x[:, mine] for x in case.tensors())
    begin = distributed.batch_isend_irecv

    def counted(batch):
        events.append(("send", sum(op.tensor.nbytes for op in batch if op.op is distributed.isend)))
        return begin(batch)

    def gathered(out, x, **options):
        events.append(("send", out.nbytes - x.nbytes))
        return all_gather(out, x, **options)

    def scattered(out, x, **options):
        events.append(("send", x.nbytes - out.nbytes))
        return reduce_scatter(out, x, **options)

    all_gather, reduce_scatter = exchange._all_gather, exchange._reduce_scatter
    with (
        patch.object(distributed, "batch_isend_irecv", counted),
        patch.multiple(exchange, _all_gather=gathered, _reduce_scatter=scattered),
    ):
        o, lse = scheme.forward(q, k, v, runs=case.runs, window=None)
        forward = list(events)
        events.clear()
        scheme.backward(do, q, k, v, o, lse, runs=case.runs, window=None)
    return forward, events
