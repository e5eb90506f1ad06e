"""States of an optimizer in host memory: each visits the device for its update, the next one on its way meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from longspan.engine.hostmemory import HostMemory, aligned
from longspan.train.optimizers.base import Piece, Rule


@dataclass(frozen=True)
class _Guest:
    """A piece whose states are on the device, or will be once `arrived` has happened."""

    home: Piece
    states: dict[str, Tensor]
    arrived: torch.cuda.Event


class HostStates:
    """The states of all weights, page-locked when the weights are on a GPU, in `states` by weight and key.

    Where the weights are on the host already, states are updated in place.
    """

    def __init__(self, rule: Rule, weights: Mapping[str, nn.Parameter]) -> None:
        self._device = next(iter(weights.values())).device
        self._copies: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._memory = HostMemory(self._device)
        # Their sizes are asked for on a device that has no memory, their first values one weight at a time.
        sizes = [rule.states(weight.detach().to("meta")) for weight in weights.values()]
        self._memory.reserve(sum(aligned(state.nbytes) for states in sizes for state in states.values()))
        self.states = {name: self._moved(rule.states(weight.detach())) for name, weight in weights.items()}

    def _moved(self, states: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {}
        for key, state in states.items():
            moved[key] = self._memory.take(state.nbytes).view(state.dtype).view(state.shape)
            moved[key].copy_(state)
        return moved

    def visit(self, pieces: Sequence[Piece], update: Callable[[Piece], None]) -> None:
        """Call `update` with every piece, its states on the device, in order; changed states return to the host."""
        if self._copies is None:
            for piece in pieces:
                update(piece)
            return
        coming: _Guest | None = None
        for home in (*pieces, None):
            guest, coming = coming, self._fetch(home) if home is not None else None
            if guest is not None:
                torch.cuda.current_stream(self._device).wait_event(guest.arrived)
                update(replace(guest.home, states=guest.states))
                self._put_back(guest)

    def settle(self) -> None:
        """Wait until everything that is on its way has arrived."""
        if self._copies is not None:
            self._copies.synchronize()

    def close(self) -> None:
        """Unlock the memory."""
        self.settle()
        self._memory.free()

    def _fetch(self, piece: Piece) -> _Guest:
        assert self._copies is not None
        with torch.cuda.stream(self._copies):
            states = {key: state.to(self._device, non_blocking=True) for key, state in piece.states.items()}
            return _Guest(piece, states, self._copies.record_event())

    def _put_back(self, guest: _Guest) -> None:
        """All copies run in one stream, behind the update: the device memory of a guest is given to a later one only
        when its states have left.
        """
        assert self._copies is not None
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            for key, state in guest.states.items():
                guest.home.states[key].copy_(state, non_blocking=True)
