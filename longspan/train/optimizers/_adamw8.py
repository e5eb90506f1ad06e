"""The arithmetic of `adamw8`: torchao's AdamW8bit, given the states of one piece at a time."""

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.train.optimizers.base import Piece
from longspan.utils.errors import ConfigError

BLOCKS = (256, 128, 64)  # numbers that share a scale: as many of a row as divide it
MOMENTS = ("exp_avg", "exp_avg_sq")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torchao and the compiler tell their developers: missing kernels that we do not use, caches."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


with _quietly():
    from torchao.optim import AdamW8bit
    from torchao.optim.subclass_8bit import OptimState8bit


class AdamW8Rule:
    """AdamW on bfloat16 weights; codes and scales of the moments are plain tensors between updates."""

    keys = (*MOMENTS, *(f"{moment}.{part}" for moment in MOMENTS for part in ("codes", "scale")))

    def __init__(self, betas: tuple[float, float], epsilon: float) -> None:
        self._betas, self._epsilon = betas, epsilon
        self._maps: dict[tuple[torch.device, str], Tensor] = {}

    def states(self, weight: Tensor) -> dict[str, Tensor]:
        """A code for every number and a scale for every block of them; float32 moments for vectors and odd widths.

        Blocks end with their row, so that weights may be cut by rows and put together again.
        """
        width, device = weight.shape[-1], weight.device
        block = next((size for size in BLOCKS if weight.ndim > 1 and width % size == 0), None)
        if block is None:
            return {moment: torch.zeros_like(weight, dtype=torch.float32, requires_grad=False) for moment in MOMENTS}
        made = {}
        for moment in MOMENTS:
            made[f"{moment}.codes"] = torch.zeros(weight.shape, dtype=torch.uint8, device=device)
            made[f"{moment}.scale"] = torch.zeros(*weight.shape[:-1], width // block, device=device)
        return made

    @torch.no_grad()
    def update(self, pieces: Sequence[Piece], rate: float) -> None:
        """One update of every piece, each rounded with random numbers of its own.

        Raises `ConfigError` (`optimizer.compiler`) when the update cannot be compiled on this machine.
        """
        index = [piece.weight.device.index for piece in pieces[:1] if piece.weight.is_cuda]
        with _quietly(), torch.random.fork_rng(devices=index):
            for piece in pieces:
                # Torchao draws from the global generators; seeded here, they depend on nothing that ran before.
                digest = hashlib.sha256(f"{piece.key} {piece.count:.0f}".encode()).digest()
                torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                self._update(piece, rate)

    def _update(self, piece: Piece, rate: float) -> None:
        weight = piece.weight.detach()  # a new one, so that its gradient is no one else's
        weight.grad_dtype = torch.float32
        weight.grad = piece.gradient.float()
        optimizer = AdamW8bit(
            [weight],
            lr=rate,
            betas=self._betas,
            eps=self._epsilon,
            weight_decay=piece.decay,
            block_size=BLOCKS[0],
            bf16_stochastic_round=True,
        )
        state: dict[str, Any] = {"step": torch.tensor(piece.count)}
        for moment in MOMENTS:
            state[moment] = piece.states[moment] if moment in piece.states else self._moment(piece, moment)
        optimizer.state[weight] = state
        try:
            optimizer.step()
        except torch._dynamo.exc.TorchDynamoException as cause:
            raise ConfigError(
                "optimizer.compiler",
                "the optimizer 'adamw8' is compiled for this machine, and that failed: "
                + (str(cause).strip().splitlines() or ["no reason given"])[0],
                where="train.optimizer.kind",
                fix='install a C++ compiler (such as g++) and the headers of Python, or set kind = "adamw"',
            ) from cause

    def _moment(self, piece: Piece, moment: str) -> Any:
        signed, device = moment == "exp_avg", piece.weight.device
        if (device, moment) not in self._maps:
            self._maps[device, moment] = OptimState8bit.zeros((BLOCKS[0],), signed, BLOCKS[0], device).qmap
        codes, scale = piece.states[f"{moment}.codes"], piece.states[f"{moment}.scale"]
        return OptimState8bit(codes, scale, self._maps[device, moment], signed, dtype=piece.weight.dtype)

    def check(self, pieces: Sequence[Piece]) -> None:
        """Compile the update of the smallest piece, which is needed later anyway."""
        self.update([min(pieces, key=lambda piece: piece.weight.numel())], 0.0)
