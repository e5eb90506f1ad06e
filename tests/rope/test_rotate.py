"""Rotation of heads, against complex numbers, exact fractions and transformers."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.rope.frequencies import Frequencies
from longspan.rope.rotate import cos_sin, rotate, served_omegas

PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494")


def some_frequencies(pairs: int = 16, *, theta: float = 5e5, attention_factor: float = 1.0) -> Frequencies:
    factors = tuple(1.0 + i / 7 for i in range(pairs))
    return Frequencies(
        theta=theta, factors=factors, attention_factor=attention_factor, length=8_388_608, trained_length=8192
    )


def rotated(x: torch.Tensor, positions: torch.Tensor, frequencies: Frequencies) -> torch.Tensor:
    return rotate(x, *cos_sin(positions, frequencies))


def test_rotation_is_a_complex_product():
    frequencies = some_frequencies(attention_factor=1.3)
    x = torch.randn(2, 3, 5, 32)
    positions = torch.tensor([[0, 1, 2, 77, 4096], [5, 3, 900_000, 1_048_575, 8_388_607]])
    found = rotated(x, positions, frequencies)
    omegas = torch.tensor(served_omegas(frequencies).tolist(), dtype=torch.float64)
    turn = 1.3 * torch.exp(1j * positions[:, None, :, None].double() * omegas)
    product = torch.complex(x[..., :16].double(), x[..., 16:].double()) * turn
    torch.testing.assert_close(found.double(), torch.cat((product.real, product.imag), -1), rtol=0, atol=1e-6)


def test_served_omegas_are_those_of_the_formula():
    frequencies = some_frequencies(64)
    served = served_omegas(frequencies)
    assert served.dtype == torch.float64
    assert served.tolist() == pytest.approx(frequencies.omegas, rel=2e-7)


@pytest.mark.parametrize("theta", [1e4, 5e5, 3.58e9])
def test_angles_are_right_to_eight_million(theta):
    """cos and sin of the exact product, reduced by exact fractions; an engine's float32 product is far outside."""
    frequencies = some_frequencies(64, theta=theta)
    exact_omegas = [Fraction(omega) for omega in served_omegas(frequencies).tolist()]
    worst = worst_float32 = 0.0
    for position in (1, 131_071, 1_048_575, 5_000_011, 8_388_607, 2**24 + 1):  # the last is no float32
        cos, sin = cos_sin(torch.tensor([[position]]), frequencies)
        for pair, omega in enumerate(exact_omegas):
            exact = float(position * omega % (2 * PI))
            angle = math.atan2(sin[0, 0, pair], cos[0, 0, pair])
            float32 = float(torch.tensor(position).float() * torch.tensor(float(omega)).float())
            worst = max(worst, abs(math.remainder(angle - exact, 2 * math.pi)))
            worst_float32 = max(worst_float32, abs(math.remainder(float32 - exact, 2 * math.pi)))
    assert worst <= 1e-6
    assert worst_float32 > 0.1


@settings(max_examples=30, deadline=None)
@given(m=st.integers(0, 2**22), distance=st.integers(0, 2**20), shift=st.integers(0, 2**22), seed=st.integers(0, 999))
def test_products_depend_on_the_distance_only(m, distance, shift, seed):
    frequencies = some_frequencies()
    q, k = torch.randn(2, 1, 1, 1, 32, generator=torch.Generator().manual_seed(seed))

    def product(at: int) -> float:
        turned_q = rotated(q, torch.tensor([[at + distance]]), frequencies)
        return float((turned_q.double() * rotated(k, torch.tensor([[at]]), frequencies).double()).sum())

    assert product(m) == pytest.approx(product(m + shift), abs=2e-7 * float(q.norm() * k.norm()))


def test_autocast_changes_nothing():
    frequencies, positions = some_frequencies(), torch.tensor([[3, 1_000_003]])
    x = torch.randn(1, 2, 2, 32)
    plain = (*cos_sin(positions, frequencies), rotated(x, positions, frequencies))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = (*cos_sin(positions, frequencies), rotated(x, positions, frequencies))
    for here, there in zip(plain, under, strict=True):
        assert here.dtype == there.dtype == torch.float32
        assert torch.equal(here, there)


def test_partial_rotation_passes_the_rest_through():
    frequencies, positions = some_frequencies(8), torch.tensor([[5, 6, 7]])
    x = torch.randn(1, 2, 3, 24)
    found = rotated(x, positions, frequencies)
    assert torch.equal(found[..., 16:], x[..., 16:])
    assert torch.equal(found[..., :16], rotated(x[..., :16], positions, frequencies))


def test_type_of_the_head_is_kept_and_the_product_is_float32():
    frequencies, positions = some_frequencies(), torch.tensor([[5, 70_000, 1_000_000]])
    x = torch.randn(1, 2, 3, 32).bfloat16()
    found = rotated(x, positions, frequencies)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotated(x.float(), positions, frequencies).bfloat16())


def test_gradient_is_the_rotation_back():
    frequencies = some_frequencies()
    x, upstream = torch.randn(2, 1, 2, 4, 32)
    x.requires_grad_()
    cos, sin = cos_sin(torch.tensor([[0, 9, 10_000, 999_999]]), frequencies)
    rotate(x, cos, sin).backward(upstream)
    torch.testing.assert_close(x.grad, rotate(upstream, cos, -sin))


def test_equal_to_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = torch.randn(3, 4, 6, 32), torch.randn(3, 2, 6, 32)
    cos, sin = cos_sin(torch.randint(0, 10_000, (3, 6)), some_frequencies(attention_factor=1.2))
    theirs = apply_rotary_pos_emb(q, k, torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))
    torch.testing.assert_close((rotate(q, cos, sin), rotate(k, cos, sin)), theirs, rtol=0, atol=2e-6)


def test_angles_of_a_serving_engine_on_request():
    frequencies = some_frequencies()
    positions = torch.tensor([[0, 7, 8191, 1_048_575]])
    cos, sin = cos_sin(positions, frequencies, angle_dtype=torch.float32)
    rounded = positions.float()[..., None] * served_omegas(frequencies).float()
    torch.testing.assert_close(cos, rounded.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, rounded.sin(), rtol=0, atol=1e-6)
    assert (cos - cos_sin(positions, frequencies)[0]).abs().max() > 1e-3  # they are not the trained ones
