"""Weight gradients, added up in float32 over all tiles of a block inside the matrix product."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from longspan.parallel.exchange import Pending
from longspan.parallel.weights import Weights

OnGradients = Callable[[Sequence[nn.Parameter], Sequence[Tensor]], None]


class Gradients:
    """Accumulators of the parameters at work.

    A gradient that is float32 or wider is accumulated in `.grad`. A narrower one gets a float32 sum that is rounded
    into `.grad` once, at `finish`. With `receiver` every sum goes there instead, and no `.grad` is made. Over several
    ranks, which all finish the same parameters in the same order, sums are added up under the work on the next ones,
    and only then they, or this rank's rows of them, are handed on. Given are the parameters that this rank keeps.
    """

    def __init__(self, weights: Weights, receiver: OnGradients | None = None) -> None:
        self._weights, self._receiver = weights, receiver
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._coming: list[tuple[nn.Parameter, Pending[Tensor]]] = []

    def of(self, parameter: Tensor | None) -> Tensor | None:
        """The accumulator of a parameter, of its whole shape; None for one that is frozen or absent."""
        if parameter is None or not parameter.requires_grad:
            return None
        assert isinstance(parameter, nn.Parameter)
        home = self._weights.home(parameter)
        if home not in self._sums:
            wide = torch.promote_types(home.dtype, torch.float32)
            if self._receiver is None and self._weights.alone and gradient_dtype(home) == wide:
                if home.grad is None:
                    home.grad = torch.zeros_like(home, dtype=wide)
                self._sums[home] = home.grad
            else:
                self._sums[home] = torch.zeros(parameter.shape, dtype=wide, device=home.device)
        return self._sums[home]

    def finish(self, parameters: Iterable[Tensor]) -> None:
        """These parameters' gradients are complete: add them up, hand on those of before, and forget the sums."""
        homes = [self._weights.home(w) for w in parameters if isinstance(w, nn.Parameter)]
        coming = [(home, self._weights.reduce(self._sums.pop(home))) for home in homes if home in self._sums]
        self.hand_on()
        self._coming = coming
        if self._weights.alone:
            self.hand_on()

    def hand_on(self) -> None:
        """Give away what has been added up."""
        done, self._coming = [(home, pending.wait()) for home, pending in self._coming], []
        if self._receiver is not None:
            if done:
                self._receiver([parameter for parameter, _ in done], [total for _, total in done])
            return
        for parameter, total in done:
            if parameter.grad is None:
                parameter.grad = total.to(gradient_dtype(parameter))
            elif parameter.grad is not total:
                parameter.grad.add_(total)


def gradient_dtype(parameter: nn.Parameter) -> torch.dtype:
    """The type of a parameter's `.grad`: its own, unless an optimizer has asked for a wider one."""
    asked: torch.dtype | None = getattr(parameter, "grad_dtype", None)
    return asked or parameter.dtype


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ right, for total `[a, b]`, left `[t, a]`, right `[t, b]`, summed in the type of total."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    elif left.is_cuda:  # bf16 in, float32 out and added inside the product
        torch.ops.aten.addmm.dtype_out(total, left.t(), right, total.dtype, out=total)
    else:
        total.addmm_(left.t().to(total.dtype), right.to(total.dtype))
