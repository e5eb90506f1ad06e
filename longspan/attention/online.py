"""The merge of two partial attention results over disjoint keys, exact up to rounding."""

import torch
from jaxtyping import Float
from torch import Tensor


def merge(
    o: Float[Tensor, "b h s d"],
    lse: Float[Tensor, "b h s"],
    other_o: Float[Tensor, "b h s d"],
    other_lse: Float[Tensor, "b h s"],
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s"]]:
    """Attention over the union of two sets of keys from the results over each; a part without keys has lse −inf.

    Formed in the type of `lse`. The sigmoid form cannot overflow. Source: arXiv:1805.02867, as in ring attention.
    """
    both_empty = torch.isneginf(lse) & torch.isneginf(other_lse)
    difference = torch.where(both_empty, torch.zeros_like(lse), other_lse - lse)  # −inf − (−inf) would be NaN
    share = torch.sigmoid(difference)[..., None]
    merged = o.to(lse.dtype) + share * (other_o.to(lse.dtype) - o.to(lse.dtype))
    return merged, torch.logaddexp(lse, other_lse)


def merge_(
    o: Float[Tensor, "*rows s d"],
    lse: Float[Tensor, "*rows s"],
    other_o: Float[Tensor, "*rows s d"],
    other_lse: Float[Tensor, "*rows s"],
) -> None:
    """`merge` in place: o and lse, in float32 or wider, become the result over both sets of keys."""
    difference = torch.where(torch.isneginf(other_lse), other_lse, other_lse - lse)  # −inf − (−inf) would be NaN
    o.lerp_(other_o.to(o.dtype), torch.sigmoid(difference)[..., None])
    torch.logaddexp(lse, other_lse.to(lse.dtype), out=lse)
