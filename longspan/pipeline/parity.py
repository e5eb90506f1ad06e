"""Whether a mesh computes what one rank computes: loss and every gradient of a small batch, side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from longspan.attention.schemes.base import Scheme
from longspan.batch import Batch
from longspan.engine.precision import compute_dtype
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice
from longspan.engine.step import forward_backward
from longspan.model.decoder import Decoder
from longspan.parallel.dist import World
from longspan.parallel.exchange import all_gather, all_reduce_
from longspan.parallel.mesh import Mesh
from longspan.parallel.weights import Weights, place_weights
from longspan.utils.errors import ConfigError

SMALL_NORM = 0.03  # of the largest norm: below it a gradient is mostly the rounding of other terms
_WORST = 10  # parameters in a table


@dataclass(frozen=True)
class Bounds:
    """The largest differences that count as equal: of the loss, and of gradients relative to their norms."""

    loss: float
    gradient: float


BOUNDS = {torch.float32: Bounds(1e-6, 1e-5), torch.bfloat16: Bounds(2e-3, 2e-2)}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One parameter: the norm of its gradient on one rank, and how far the mesh is off, relative to `scale`.

    The scale is the norm itself, or `SMALL_NORM` of the largest norm of any parameter if that is more.
    """

    parameter: str
    norm: float
    scale: float
    relative: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One pass over the mesh against the same pass on one rank. Losses are weighted sums in nats."""

    case: str
    loss: float
    mesh_loss: float
    bounds: Bounds
    gradients: tuple[Difference, ...]  # the worst first

    @property
    def loss_difference(self) -> float:
        """How far the loss is off, relative to that of one rank."""
        return _finite(abs(self.mesh_loss - self.loss)) / max(abs(self.loss), 1e-30)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The parameters whose gradients differ by more than the bound, the worst first."""
        return tuple(found.parameter for found in self.gradients if found.relative > self.bounds.gradient)

    @property
    def ok(self) -> bool:
        """Whether everything is within the bounds."""
        return self.loss_difference <= self.bounds.loss and not self.wrong

    def table(self) -> str:
        """In words and numbers, for people: the loss, how many gradients agree, and the worst of them."""
        count, wrong, bounds = len(self.gradients), len(self.wrong), self.bounds
        worst = self.gradients[:_WORST]
        width = max((len(found.parameter) for found in worst), default=0)
        return "\n".join(
            [
                f"{self.case}: {'equal' if self.ok else 'NOT equal'}",
                f"  loss       {self.loss:.9g} on one rank, {self.mesh_loss:.9g} on the mesh: "
                f"off by {self.loss_difference:.1e} (bound {bounds.loss:.0e})",
                f"  gradients  {count - wrong} of {count} within {bounds.gradient:.0e} of their norms; the worst:",
                *(
                    f"    {found.parameter:<{width}}  off by {found.relative:.1e} of {found.scale:.3g}"
                    f"{'  <- wrong' if found.relative > bounds.gradient else ''}"
                    for found in worst
                ),
            ]
        )


@dataclass(frozen=True)
class Verdict:
    """Whether the mesh is right, which all ranks know, and what was compared, which rank 0 knows."""

    ok: bool
    comparisons: tuple[Comparison, ...]


def compare_mesh(
    make: Callable[[], Decoder], batch: Batch, *, world: World, mesh: Mesh, scheme: Scheme, choice: EngineChoice
) -> Verdict:
    """Run a batch over the mesh, and on rank 0 alone through the plain decoder in float32; compare all gradients.

    Twice: as it is, and with one rank left without a target. `make` gives the same decoder at each call on every rank,
    on its device, a few layers of the real model; every rank gives the same batch, such as `odd_batch` makes. The other
    ranks wait for rank 0's plain pass, which their deadline has to cover. Raises `ConfigError` (`verify.rows`).
    """
    rows = len(batch.tokens)
    if rows % mesh.data:
        raise ConfigError(
            "verify.rows", f"{rows} rows for {mesh.data} groups of ranks with rows of their own", fix="a multiple of it"
        )
    cases = {"three documents": batch, "one rank without a target": without_targets(batch, mesh=mesh, scheme=scheme)}
    alone = world.launch.rank == 0
    expected = {case: _on_one_rank(make(), one) if alone else None for case, one in cases.items()}
    decoder = make()
    dtype = compute_dtype(decoder)
    weights = place_weights(
        decoder, decoder.parts, world=world, mesh=mesh, dtype=None if dtype == decoder.embed.weight.dtype else dtype
    )
    own = slice(*(world.launch.rank // mesh.context * rows // mesh.data + at for at in (0, rows // mesh.data)))
    engine = Engine(decoder, choice, tokens=batch.tokens[own].numel(), scheme=scheme, weights=weights)
    comparisons: list[Comparison] = []
    for case, one in cases.items():
        loss = engine.forward_backward(_rows(one, own), divisor=_divisor(one))
        found = _compare(case, loss, weights, expected[case], world=world, bounds=BOUNDS[dtype])
        comparisons += [] if found is None else [found]
    faults = torch.tensor(float(sum(not found.ok for found in comparisons)), dtype=torch.float64)
    return Verdict(not float(all_reduce_(faults, world.everyone, operation="verdict").wait()), tuple(comparisons))


def odd_batch(batch: Batch) -> Batch:
    """A batch with everything that makes ranks differ: rows of a prime length, cut into three unequal documents.

    Raises `ConfigError` (`verify.short`) for rows of fewer than seven tokens.
    """
    tokens = batch.tokens.shape[1]
    if tokens < 7:
        raise ConfigError(
            "verify.short", f"rows of {tokens} tokens are too short for three documents", fix="longer rows"
        )
    length = next(n for n in range(tokens, 1, -1) if all(n % d for d in range(2, math.isqrt(n) + 1)))
    borders = (0, length // 7, length // 7 + length // 3, length)
    cut = batch.changed(lambda x: x[:, :length].clone())
    for low, high in pairwise(borders):
        cut.positions[:, low:high] = torch.arange(high - low, device=cut.positions.device)
        cut.weights[:, high - 1] = 0.0
    return replace(cut, spans=(borders,) * len(batch.tokens))


def without_targets(batch: Batch, *, mesh: Mesh, scheme: Scheme) -> Batch:
    """The same batch, but what the last rank has of it weighs nothing."""
    weights = batch.weights.clone()
    rows = weights[len(weights) - len(weights) // mesh.data :].view(-1)  # those of the last rank
    for start, stop in scheme.layout(len(rows), scheme.ranks - 1):
        rows[start:stop] = 0.0
    return replace(batch, weights=weights)


Passed = tuple[Tensor, dict[str, Tensor]]


def _on_one_rank(decoder: Decoder, batch: Batch) -> Passed:
    """Loss and gradients in float32 by autograd; they wait on the host."""
    loss = forward_backward(decoder, batch, divisor=_divisor(batch), exact=True)
    trained = {name: weight for name, weight in decoder.named_parameters() if weight.requires_grad}
    return loss, {name: _gradient(weight).cpu() for name, weight in trained.items()}


def _compare(
    case: str, loss: Tensor, weights: Weights, expected: Passed | None, *, world: World, bounds: Bounds
) -> Comparison | None:
    """Gather what all ranks have, one parameter at a time, and forget it; rank 0 compares."""
    ranks = world.launch.ranks
    off: dict[str, float] = {}
    losses = all_gather(loss.double().cpu().view(1), world.everyone, sizes=[1] * ranks, dim=0).wait()
    for name, kept in weights.kept.items():
        if not kept.requires_grad:
            continue
        gradient, kept.grad = _gradient(kept), None
        mine = torch.tensor([[weights.first_row(name), len(gradient)]])
        held = [row[0].tolist() for row in all_gather(mine, world.everyone, sizes=[1] * ranks, dim=0).wait()]
        pieces = all_gather(gradient, world.everyone, sizes=[rows for _, rows in held], dim=0).wait()
        if expected is not None:
            starts = [first for first, _ in held]
            off[name] = _distance(starts, pieces, expected[1][name])
    if expected is None:
        return None
    norms = {name: float(wanted.double().norm()) for name, wanted in expected[1].items()}
    least = max(SMALL_NORM * max(norms.values()), 1e-30)
    differences = [
        Difference(parameter=name, norm=norm, scale=max(norm, least), relative=off[name] / max(norm, least))
        for name, norm in norms.items()
    ]
    wanted_loss = float(expected[0])
    return Comparison(
        case=case,
        loss=wanted_loss,
        mesh_loss=max((float(value) for value in losses), key=lambda value: _finite(abs(value - wanted_loss))),
        bounds=bounds,
        gradients=tuple(sorted(differences, key=lambda found: -found.relative)),
    )


def _distance(starts: Sequence[int], pieces: Sequence[Tensor], wanted: Tensor) -> float:
    """The norm of the difference; of copies of the same rows on several ranks the worst counts."""
    squares: dict[int, float] = {}
    rows: dict[int, int] = {}
    for start, piece in zip(starts, pieces, strict=True):
        if len(piece):
            square = (piece.cpu().double() - wanted[start : start + len(piece)].double()).square().sum()
            squares[start] = max(squares.get(start, 0.0), _finite(float(square)))
            rows[start] = len(piece)
    assert sum(rows.values()) == len(wanted), "all ranks together have every row once"
    return math.sqrt(sum(squares.values()))


def _gradient(weight: Tensor) -> Tensor:
    """The gradient in float32 or wider, zeros where there is none."""
    found = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return found.detach().to(torch.promote_types(found.dtype, torch.float32))


def _rows(batch: Batch, own: slice) -> Batch:
    return replace(batch.changed(lambda x: x[own]), spans=batch.spans[own])


def _divisor(batch: Batch) -> float:
    return max(1.0, float(batch.weights.sum()))


def _finite(value: float) -> float:
    """The value, or infinity for NaN, which would be less than nothing and more than nothing."""
    return math.inf if math.isnan(value) else value
