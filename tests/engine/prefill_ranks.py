"""A context read over several ranks and questions after it, as a rank does it. No pytest here."""

import torch
from engine_ranks import SCHEMES
from engine_toys import toy_decoder

from longspan.engine.kept import Keep
from longspan.engine.prefill import Branches, Prefill
from longspan.parallel.weights import Shards, Whole


def answers(world, mesh, kind, cut, cases):
    """Logits of two rounds of questions, and the loss of every token, of each case."""
    axes = world.axes(mesh)
    spread = [axes["ring"], axes["ulysses"]]
    return [_case(world, mesh, SCHEMES[kind](axes), spread, cut, *case) for case in cases]


def _case(world, mesh, scheme, axes, cut, sizes, context, texts, tails):
    decoder = toy_decoder(**sizes)
    weights = Whole(decoder)
    if cut:
        weights = Shards(decoder, decoder.parts, world=world, mesh=mesh, dtype=None)
    prefill = Prefill(decoder, Keep(place="host"), scheme=scheme, axes=axes, weights=weights)
    kept = prefill.read(torch.as_tensor(context))
    branches = Branches(prefill, kept, count=len(texts), room_tokens=max(map(len, texts)) + 3)
    rows = [*branches.extend(texts), *branches.extend(tails)]
    return [prefill.logits(torch.cat(rows)), prefill.token_nll(torch.as_tensor(context))]
