"""Rotation of query and key heads. Angles are formed in float64: float32 angles are off by 0.03 rad at 1M tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longspan.rope.frequencies import Frequencies


def served_omegas(frequencies: Frequencies) -> Float[Tensor, " pairs"]:
    """The frequencies that a serving engine rebuilds from the exported file, radians per token, float64.

    Engines form 1 / (factor · theta^(2i/d)) in float32; training uses these very values, widened, so that an
    exported model is served with exactly the positions it was trained with (docs/adr/0004-positions.md).
    """
    d = frequencies.rotary_dim
    exponents = torch.arange(0, d, 2, dtype=torch.int64).float() / d
    factors = torch.tensor(frequencies.factors, dtype=torch.float32)
    return (1.0 / (factors * frequencies.theta**exponents)).double()


Angles = tuple[Float[Tensor, "... pairs"], Float[Tensor, "... pairs"]]  # cosine and sine of one set, float32


def cos_sin(
    positions: Int[Tensor, "b S"], frequencies: Frequencies, *, angle_dtype: torch.dtype = torch.float64
) -> tuple[Float[Tensor, "b S pairs"], Float[Tensor, "b S pairs"]]:
    """Cosine and sine of every position and pair, float32, times the attention factor.

    Angles are formed in float64; `angle_dtype` float32 gives those of a serving engine, which are off by more the
    later the position.
    """
    omegas = served_omegas(frequencies).to(positions.device, angle_dtype)
    return turned(positions, omegas, frequencies.attention_factor)


def turned(
    positions: Int[Tensor, "b S"], omegas: Float[Tensor, "*b pairs"], scale: float | Float[Tensor, "b 1 1"]
) -> tuple[Float[Tensor, "b S pairs"], Float[Tensor, "b S pairs"]]:
    """Cosine and sine, float32, times `scale`, of angles formed in the type of `omegas`, which may differ by row."""
    angles = positions.to(omegas.dtype)[..., None] * omegas
    return (angles.cos() * scale).float(), (angles.sin() * scale).float()


def rotate(
    x: Float[Tensor, "b h S d"], cos: Float[Tensor, "#b S pairs"], sin: Float[Tensor, "#b S pairs"]
) -> Float[Tensor, "b h S d"]:
    """Rotate the first 2·pairs dims of every head, pair i being dims (i, i + pairs); the rest passes unchanged.

    The product is formed in float32 or wider and returned in the type of `x`, in the half-split order of Hugging Face.
    """
    pairs = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    wide = torch.promote_types(x.dtype, torch.float32)
    first, second = x[..., :pairs].to(wide), x[..., pairs : 2 * pairs].to(wide)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return rotated if 2 * pairs == x.shape[-1] else torch.cat((rotated, x[..., 2 * pairs :]), dim=-1)
