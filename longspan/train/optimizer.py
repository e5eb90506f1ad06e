"""Updates of a decoder's trained weights: after the backward pass or inside it, states on the device or on the host."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from longspan.parallel.weights import Weights, Whole
from longspan.train.hoststates import HostStates
from longspan.train.optimizers.base import Piece, Rule
from longspan.train.settings import TrainSettings
from longspan.utils.errors import ConfigError

TILE = 2**25  # numbers of a weight that are updated at once, so that what visits the device is small
COUNT = "step"  # as checkpoints name a weight's number of updates


class Updater:
    """Changes the trained weights that this rank keeps by their gradients, and holds the states that this takes.

    Trained are the parameters that require a gradient when the updater is made. Weight decay pulls on the matrices of
    the blocks and the head, not on norms, biases or the embedding. Over several ranks all call the same methods.
    """

    def __init__(self, weights: Weights, rule: Rule, settings: TrainSettings) -> None:
        self._rule, self._clip, self._choice = rule, settings.clip, settings.optimizer
        self._place = weights
        self._weights = {name: weight for name, weight in weights.kept.items() if weight.requires_grad}
        self._names = {weight: name for name, weight in self._weights.items()}
        dtype = getattr(torch, self._choice.weight_dtype)
        self._decay = {}
        for name, weight in self._weights.items():
            if weight.dtype != dtype:
                raise _other_dtype(name, weight, self._choice.weight_dtype)
            assert weight.is_contiguous(), f"{name} is updated as one run of numbers"
            if dtype != torch.float32:
                weight.grad_dtype = torch.float32  # micro-batches are added up unrounded
            self._decay[name] = settings.weight_decay if weight.ndim >= 2 and not name.startswith("embed.") else 0.0
        self._counts = {name: torch.zeros(()) for name in self._weights}
        # Made here and not in the first step, so that memory and checkpoint sizes are known from the start.
        if self._choice.states == "host":
            self._host: HostStates | None = HostStates(rule, self._weights)
            self._states = self._host.states
        else:
            self._host = None
            self._states = {name: rule.states(weight.detach()) for name, weight in self._weights.items()}
        rule.check(self._trial())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return list(self._weights.values())

    @property
    def inside_pass(self) -> bool:
        """Whether weights change inside the backward pass, by `inside`, and not after it, by `step`."""
        return self._choice.update == "inside"

    def tensors(self) -> dict[str, Tensor]:
        """The live states by names like `exp_avg/blocks.0.q.weight`; `step/…` counts a weight's updates.

        They may be read and written until the next update. States of a weight that is cut are cut with its rows.
        """
        if self._host is not None:
            self._host.settle()
        found = {f"{COUNT}/{name}": count for name, count in self._counts.items()}
        for key in self._rule.keys:
            found |= {
                f"{key}/{name}": self._place.spread(name, states[key])
                for name, states in self._states.items()
                if key in states
            }
        return found

    def zero(self) -> None:
        """Forget all gradients."""
        for weight in self._weights.values():
            weight.grad = None

    def step(self, rate: float) -> float:
        """Clip the gradients by their norm, update every weight that has one, and return the norm before clipping.

        Nothing changes when the norm is not finite.
        """
        given = {name: weight.grad for name, weight in self._weights.items() if weight.grad is not None}
        norm = self.norm(list(given.values()))
        if math.isfinite(norm):
            if self._clip is not None:
                nn.utils.clip_grads_with_norm_(self.parameters, self._clip, torch.tensor(norm))
            self._update(given, rate)
        return norm

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of gradients, of which this rank may have some rows only."""
        total = nn.utils.get_total_norm(gradients).double().square()
        self._place.add_up_parts(total)
        return math.sqrt(total)

    def inside(self, rate: float) -> "Inside":
        """What one backward pass hands its gradients to, group by group; each updates its weights at once."""
        assert self._clip is None, "the norm of all gradients is not known inside the backward pass"
        return Inside(self, rate)

    def apply(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor], rate: float) -> None:
        """Update these weights by these gradients, unclipped."""
        self._update({self._names[p]: gradient for p, gradient in zip(parameters, gradients, strict=True)}, rate)

    def close(self) -> None:
        """Forget gradients and give host memory back; the updater is not used afterwards."""
        self.zero()
        if self._host is not None:
            self._host.close()

    def _update(self, gradients: dict[str, Tensor], rate: float) -> None:
        pieces = [piece for name, gradient in gradients.items() for piece in self._pieces(name, gradient)]
        if self._host is not None:
            self._host.visit(pieces, lambda piece: self._rule.update([piece], rate))
        elif pieces:
            self._rule.update(pieces, rate)
        for name in gradients:
            self._counts[name] += 1

    def _pieces(self, name: str, gradient: Tensor) -> Iterable[Piece]:
        """The weight's tiles; one that fits into a tile is one piece."""
        flat, gradient = self._weights[name].detach().view(-1), gradient.detach().reshape(-1)
        states = {key: state.view(-1) for key, state in self._states[name].items()}
        count, numbers = float(self._counts[name]), len(flat)
        before = self._place.first_row(name) * self._weights[name][:1].numel()
        for start in range(0, numbers, TILE):
            end = min(start + TILE, numbers)
            yield Piece(
                key=f"{name}[{before + start}]",
                weight=flat[start:end],
                gradient=gradient[start:end],
                states={
                    key: state[start * len(state) // numbers : end * len(state) // numbers]
                    for key, state in states.items()
                },
                count=count,
                decay=self._decay[name],
            )

    def _trial(self) -> list[Piece]:
        """Pieces like those of the first update; only the smallest weight's are there in memory of its own."""
        some = [(name, weight) for name, weight in self._weights.items() if weight.numel()]  # a rank may have no row
        name, weight = min(some, key=lambda entry: entry[1].numel())
        device = weight.device
        return [
            replace(
                piece,
                weight=piece.weight.clone(),
                states={key: state.to(device, copy=True) for key, state in piece.states.items()},
            )
            for piece in self._pieces(name, torch.zeros_like(weight, dtype=torch.float32))
        ]


class Inside:
    """Takes the gradients of one backward pass; call it with a group of parameters and their float32 gradients.

    A group whose gradients are not all finite is left out, and counted in `skipped`. Gradients are not kept.
    """

    def __init__(self, updater: Updater, rate: float) -> None:
        self._updater, self._rate = updater, rate
        self._left = set(updater.parameters)
        self._squares = 0.0
        self.updated = self.skipped = 0  # groups

    def __call__(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
        """Update these weights now; each comes once in a pass."""
        assert self._left.issuperset(parameters), "a weight comes once, and only a trained one"
        self._left.difference_update(parameters)
        norm = self._updater.norm(gradients)
        self._squares += norm * norm
        if math.isfinite(norm):
            self._updater.apply(parameters, gradients, self._rate)
            self.updated += 1
        else:
            self.skipped += 1

    @property
    def complete(self) -> bool:
        """Whether every trained weight has come."""
        return not self._left

    @property
    def norm(self) -> float:
        """The norm of all gradients that came; NaN when none did."""
        return math.sqrt(self._squares) if self.updated + self.skipped else math.nan


def _other_dtype(name: str, weight: Tensor, wanted: str) -> ConfigError:
    have = str(weight.dtype).removeprefix("torch.")
    return ConfigError(
        "optimizer.dtype",
        f"{name} is to be trained and is {have}; this optimizer trains {wanted} weights",
        where="train.optimizer.kind",
        fix='adapters need kind = "adamw"; without them, load the model in the type that the optimizer trains',
    )


def build_updater(decoder: nn.Module, settings: TrainSettings, weights: Weights | None = None) -> Updater:
    """The updater that the settings ask for; `weights` says what this rank keeps, everything unless told.

    Raises `ConfigError` when a package or a compiler that it needs is missing, or weights are of another type.
    """
    return Updater(
        weights or Whole(decoder), settings.optimizer.rule(betas=settings.betas, epsilon=settings.epsilon), settings
    )
