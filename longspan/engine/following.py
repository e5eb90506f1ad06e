"""Doing what another rank asks for: its contexts, branches and losses, in its order, so that it finds every key."""

from collections.abc import Iterable

from longspan.engine.kept import Kept
from longspan.engine.prefill import Branches, Order, Prefill


def obey(prefill: Prefill, orders: Iterable[Order]) -> None:
    """Carry out orders as the prefill that gave them did; what comes of them is of interest there only."""
    kept: Kept | None = None
    branches: Branches | None = None
    for order in orders:
        if order.what == "branch":
            assert kept is not None, "a branch grows from a context that was read"
            branches = Branches(prefill, kept, count=order.count, room_tokens=order.room)
        elif order.what == "extend":
            assert branches is not None, "what is extended was a branch"
            branches.extend(order.texts)
        elif order.tokens is not None and order.what == "read":
            kept = prefill.read(order.tokens)
        elif order.tokens is not None:
            prefill.token_nll(order.tokens)
