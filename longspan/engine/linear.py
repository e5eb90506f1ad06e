"""A projection of one tile, forward and backward, with its bias and its adapter."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longspan.engine.gradients import Gradients, add_product
from longspan.model.decoder import Adapter


class Linear:
    """The weights of one projection in the type that tiles are computed in; made for one pass over one block."""

    def __init__(self, module: nn.Linear | nn.Embedding, dtype: torch.dtype) -> None:
        self._parameter = module.weight
        self._weight = module.weight.detach().to(dtype)
        self._bias_parameter = getattr(module, "bias", None)
        self._bias = None if self._bias_parameter is None else self._bias_parameter.detach().to(dtype)
        adapter = getattr(module, "lora", None)
        self._adapter: Adapter | None = adapter
        if adapter is not None:
            self._down, self._up = adapter.down.detach().to(dtype), adapter.up.detach().to(dtype)

    def __call__(
        self, x: Float[Tensor, "t wide"], *, add_to: Tensor | None = None, out: Tensor | None = None
    ) -> Float[Tensor, "t out"]:
        """x Wᵀ, with bias and adapter, plus `add_to` where it is given (added inside the product)."""
        if add_to is None:
            y = torch.mm(x, self._weight.t(), out=out)
        else:
            y = torch.addmm(add_to, x, self._weight.t(), out=out)
        if self._bias is not None:
            y += self._bias
        if self._adapter is not None:
            y.addmm_(x @ self._down.t(), self._up.t(), alpha=self._adapter.scale)
        return y

    def backward(
        self,
        dy: Float[Tensor, "t out"],
        x: Float[Tensor, "t wide"],
        gradients: Gradients,
        *,
        add_to: Tensor | None = None,
    ) -> Float[Tensor, "t wide"]:
        """The gradient of x, added in place to `add_to` where it is given; those of the weights go to `gradients`."""
        self.backward_weights(dy, x, gradients)
        return self.backward_input(dy, add_to=add_to)

    def backward_weights(self, dy: Float[Tensor, "t out"], x: Float[Tensor, "t wide"], gradients: Gradients) -> None:
        """Only the gradients of weight, bias and adapter."""
        if (total := gradients.of(self._parameter)) is not None:
            add_product(total, dy, x)
        if (total := gradients.of(self._bias_parameter)) is not None:
            total += dy.sum(0, dtype=total.dtype)
        if self._adapter is None:
            return
        if (total := gradients.of(self._adapter.up)) is not None:
            add_product(total, dy, (x @ self._down.t()).mul_(self._adapter.scale))
        if (total := gradients.of(self._adapter.down)) is not None:
            add_product(total, (dy @ self._up).mul_(self._adapter.scale), x)

    def backward_input(self, dy: Float[Tensor, "t out"], *, add_to: Tensor | None = None) -> Float[Tensor, "t wide"]:
        """Only the gradient of x."""
        dx = torch.mm(dy, self._weight) if add_to is None else add_to.addmm_(dy, self._weight)
        if self._adapter is not None:
            dx.addmm_(dy @ self._up, self._down, alpha=self._adapter.scale)
        return dx
