"""Weight gradients, added up in float32 over all tiles of a block inside the matrix product."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from longspan.parallel.dist import Axis
from longspan.parallel.exchange import all_reduce_

OnGradients = Callable[[Sequence[nn.Parameter], Sequence[Tensor]], None]


class Gradients:
    """Accumulators of the parameters at work.

    A gradient that is float32 or wider is accumulated in `.grad`. A narrower one gets a float32 sum that is rounded
    into `.grad` once, at `finish`. With `receiver` every sum goes there instead, and no `.grad` is made. Sums are first
    added up over the ranks of `axes`, which all finish the same parameters in the same order.
    """

    def __init__(self, receiver: OnGradients | None = None, *, axes: Sequence[Axis] = ()) -> None:
        self._receiver, self._axes = receiver, axes
        self._sums: dict[nn.Parameter, Tensor] = {}

    def of(self, parameter: Tensor | None) -> Tensor | None:
        """The accumulator of a parameter, of its shape; None for one that is frozen or absent."""
        if parameter is None or not parameter.requires_grad:
            return None
        assert isinstance(parameter, nn.Parameter)
        if parameter not in self._sums:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            if self._receiver is None and not self._axes and gradient_dtype(parameter) == wide:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter, dtype=wide)
                self._sums[parameter] = parameter.grad
            else:
                self._sums[parameter] = torch.zeros_like(parameter, dtype=wide)
        return self._sums[parameter]

    def finish(self, parameters: Iterable[Tensor]) -> None:
        """These parameters' gradients are complete: hand them on and forget the sums."""
        done = [(w, self._sums.pop(w)) for w in parameters if isinstance(w, nn.Parameter) and w in self._sums]
        for _, total in done:
            add_up(total, self._axes)
        if self._receiver is not None:
            if done:
                self._receiver([parameter for parameter, _ in done], [total for _, total in done])
            return
        for parameter, total in done:
            if parameter.grad is None:
                parameter.grad = total.to(gradient_dtype(parameter))
            elif parameter.grad is not total:
                parameter.grad.add_(total)


def add_up(total: Tensor, axes: Sequence[Axis]) -> None:
    """The sum over the ranks of every axis, in place."""
    for axis in axes:
        all_reduce_(total, axis, operation="sum over ranks").wait()


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
