"""One text under many sets of frequencies: losses of several candidates a pass, and the gradient of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from longspan.engine.precision import autocast
from longspan.engine.prefill import Prefill
from longspan.engine.step import LOSS_TILE_TOKENS
from longspan.model.decoder import Decoder
from longspan.rope.frequencies import Frequencies
from longspan.rope.rotate import Angles, served_omegas, turned


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Rows of equal length on which candidates are measured; only `scored` tokens reach the head.

    `targets[r, t]` is what the model should say at token t. Positions grow, and may leave gaps.
    """

    tokens: Int[Tensor, "n S"]
    positions: Int[Tensor, "n S"]
    targets: Int[Tensor, "n S"]
    scored: Bool[Tensor, "n S"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One set of frequencies to measure; positions below `kept_tokens` keep those of the decoder (LongRoPE's n̂)."""

    frequencies: Frequencies
    kept_tokens: int = 0


@torch.no_grad()
def candidate_nll(
    decoder: Decoder, sheet: Sheet, candidates: Sequence[Candidate], *, pass_tokens: int
) -> Float[Tensor, "c t"]:
    """Loss in nats of every scored target of the sheet, row by row, under each candidate; float32.

    As many rows of as many candidates as fit in `pass_tokens` go through the blocks at once, side by side under the
    same weights, and a longer row alone. Losses do not depend on `pass_tokens` but for rounding.
    """
    rows, length = sheet.tokens.shape
    prefill, device, found = Prefill(decoder), decoder.device, []
    jobs = [(candidate, row) for candidate in candidates for row in range(rows)]
    together = max(1, pass_tokens // length)
    for group in (jobs[first : first + together] for first in range(0, len(jobs), together)):
        chosen = torch.tensor([row for _, row in group])
        angles = _angles(decoder, sheet.positions[chosen].to(device), [candidate for candidate, _ in group])
        runs = tuple((index * length, (index + 1) * length) for index in range(len(group)))
        tokens = sheet.tokens[chosen].flatten().to(device)
        hidden = prefill.hidden(tokens, angles, runs=runs)
        scored = sheet.scored[chosen].flatten().nonzero()[:, 0]
        targets = sheet.targets[chosen].flatten()[scored].to(device)
        found.append(prefill.losses(hidden[scored.to(device)], targets))
    return torch.cat(found).view(len(candidates), -1)


def candidate_gradient(
    decoder: Decoder, sheet: Sheet, frequencies: Frequencies
) -> tuple[float, Float[Tensor, " pairs"], float]:
    """Mean loss over the sheet's scored targets, its gradient by the logarithm of every rescale factor, and by that of
    the attention factor; float64. Weights get no gradient: freeze them first, or they cost memory.

    All rows go together; blocks are run again in the backward pass, so that memory holds one block and every block's
    input.
    """
    device = decoder.device
    stretch = torch.zeros(len(frequencies.factors), dtype=torch.float64, device=device, requires_grad=True)
    heat = torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)
    slowed = served_omegas(frequencies).to(device) * torch.exp(-stretch)
    positions = sheet.positions.to(device)
    turns = positions.double()[..., None] * slowed
    scale = frequencies.attention_factor * heat.exp()
    angles = [((turns.cos() * scale).float(), (turns.sin() * scale).float()), *decoder.angles(positions)[1:]]
    with autocast(decoder):
        x = decoder.embed(sheet.tokens.to(device))
        for layer, block in enumerate(decoder.blocks):
            x = checkpoint(block, x, *angles[decoder.shape.position_set(layer)], use_reentrant=False)
        hidden = decoder.norm(x)
    slope = torch.zeros_like(hidden)
    total, divisor = 0.0, int(sheet.scored.sum())
    for row in range(len(sheet.tokens)):
        for tile in _tiles(sheet, row):
            states = hidden[row, tile].detach().requires_grad_()
            nll = _nll(decoder, states, sheet.targets[row, tile])
            (slope[row, tile],) = torch.autograd.grad(nll.sum() / divisor, states)
            total += float(nll.detach().sum(dtype=torch.float64))
    torch.autograd.backward(hidden, slope, inputs=[stretch, heat])
    assert stretch.grad is not None
    assert heat.grad is not None
    return total / divisor, stretch.grad.cpu(), float(heat.grad)


def _angles(decoder: Decoder, positions: Int[Tensor, "n S"], candidates: Sequence[Candidate]) -> tuple[Angles, ...]:
    """Cosine and sine of every token under its row's candidate, one call for all, and those that none changes."""
    own, *others = decoder.angles(positions)
    sets = [candidate.frequencies for candidate in candidates]
    omegas = torch.stack([served_omegas(frequencies) for frequencies in sets]).to(positions.device)
    scales = torch.tensor([frequencies.attention_factor for frequencies in sets], dtype=torch.float64)
    cos, sin = turned(positions, omegas[:, None], scales.to(positions.device)[:, None, None])
    kept = torch.tensor([candidate.kept_tokens for candidate in candidates])
    if kept.any():
        early = (positions < kept.to(positions.device)[:, None])[..., None]
        cos, sin = torch.where(early, own[0], cos), torch.where(early, own[1], sin)
    return tuple((cos.flatten(0, 1), sin.flatten(0, 1)) for cos, sin in ((cos, sin), *others))


def _tiles(sheet: Sheet, row: int) -> tuple[Tensor, ...]:
    """Places of the scored tokens of a row, so many at once that logits stay small."""
    return torch.split(sheet.scored[row].nonzero()[:, 0], LOSS_TILE_TOKENS)


def _nll(decoder: Decoder, states: Tensor, targets: Tensor) -> Tensor:
    with autocast(decoder):
        logits = decoder.logits(states)
    return functional.cross_entropy(logits, targets.to(logits.device), reduction="none")
