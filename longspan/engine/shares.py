"""What one rank has of a batch or a context whose tokens a scheme spreads, and putting shares together again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.attention.layout import Pieces, tokens_of
from longspan.attention.schemes.base import Scheme
from longspan.batch import Batch
from longspan.parallel.dist import Axis
from longspan.parallel.exchange import all_gather
from longspan.utils.errors import LongspanError


def own_pieces(scheme: Scheme, total: int) -> Pieces:
    """The tokens of this rank, in its order. Raises `LongspanError` (`engine.few-tokens`) when a rank has none."""
    if any(not scheme.layout(total, rank) for rank in range(scheme.ranks)):
        raise LongspanError(
            "engine.few-tokens",
            f"a batch of {total} tokens leaves some of {scheme.ranks} ranks without any",
            where="engine: one pass over one batch",
            fix="spread longer batches over so many ranks, and short ones over fewer",
        )
    return scheme.layout(total, scheme.rank)


def own_tokens(batch: Batch, scheme: Scheme) -> Batch:
    """The tokens of a batch that this rank works on, in the scheme's order, as one row; the borders stay the whole's.

    Raises as `own_pieces` does.
    """
    if scheme.ranks == 1:
        return batch
    pieces = own_pieces(scheme, batch.tokens.numel())
    return batch.changed(lambda x: torch.cat([x.flatten()[start:stop] for start, stop in pieces])[None])


def places(pieces: Pieces, *, device: torch.device) -> Tensor:
    """Where the tokens of some pieces stand in the whole."""
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in pieces])


def from_all(own: Tensor, scheme: Scheme, axes: Sequence[Axis], *, total: int) -> Tensor:
    """One value of every token, in the order of the whole, from what each rank has of its own; `axes` as of `scheme`,
    the innermost last.
    """
    counts = [tokens_of(scheme.layout(total, rank)) for rank in range(scheme.ranks)]
    rank = scheme.rank
    for axis in reversed(axes):
        rank //= axis.size
        sizes = counts[rank * axis.size : (rank + 1) * axis.size]
        own = torch.cat(all_gather(own, axis, sizes=sizes, dim=0, operation="gather of shares").wait())
        counts = [sum(counts[at : at + axis.size]) for at in range(0, len(counts), axis.size)]
    found = torch.empty_like(own)
    order = [piece for rank in range(scheme.ranks) for piece in scheme.layout(total, rank)]
    found[places(tuple(order), device=own.device)] = own
    return found
