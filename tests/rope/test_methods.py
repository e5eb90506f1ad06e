"""Every position method: what its folder demands of all, the published values, and the papers' formulas."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longspan.config import kind_class, kinds
from longspan.rope.frequencies import Method, RopeBase
from longspan.rope.methods.default import Default
from longspan.rope.methods.dynamic import Dynamic
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.llama3 import Llama3
from longspan.rope.methods.longrope import Longrope
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.utils.errors import ConfigError

PACKAGE = "longspan.rope.methods"
LLAMA2 = RopeBase(rotary_dim=128, theta=1e4, trained_length=4096)
LLAMA3 = RopeBase(rotary_dim=128, theta=5e5, trained_length=8192)
SMOLLM2 = RopeBase(rotary_dim=64, theta=1e5, trained_length=8192)
TINY = RopeBase(rotary_dim=128, theta=1e4, trained_length=1024)


# Settings without a default, as functions of the pairs and the factor; factor 1 must mean "no change".
def rising(pairs: int, factor: float) -> tuple[float, ...]:
    return tuple(factor ** (i / pairs) for i in range(pairs))


REQUIRED = {
    "longrope": {"factors": rising},
    "su": {"short_factors": lambda pairs, factor: (1.0,) * pairs, "long_factors": rising},
    "searched": {"result": lambda pairs, factor: Path(__file__).with_name("found.json")},
}


def method_of(kind: str, base: RopeBase, factor: float) -> Method:
    found = kind_class(PACKAGE, kind)
    assert issubclass(found, Method)
    needed = [name for name, field in found.model_fields.items() if field.is_required()]
    return found(**{name: REQUIRED[kind][name](base.rotary_dim // 2, factor) for name in needed})


def plain(base: RopeBase) -> list[float]:
    return [base.theta ** -(2 * i / base.rotary_dim) for i in range(base.rotary_dim // 2)]


# --- what every file of the folder must do ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_kind_is_the_file_name(kind):
    found = kind_class(PACKAGE, kind)
    assert found.model_fields["kind"].default == kind
    assert found.model_config["frozen"]
    with pytest.raises(ValidationError, match="Extra inputs"):
        found.model_validate(method_of(kind, LLAMA2, 4).model_dump() | {"no_such_setting": 1})


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_settings_survive_json(kind):
    method = method_of(kind, SMOLLM2, 4.0)
    assert type(method).model_validate_json(method.model_dump_json()) == method


@pytest.mark.parametrize("kind", kinds(PACKAGE))
@pytest.mark.parametrize("base", [LLAMA2, LLAMA3, SMOLLM2, TINY])
def test_identity_at_the_trained_length(kind, base):
    for length in (base.trained_length // 2, base.trained_length):
        found = method_of(kind, base, 1.0).frequencies(base, length)
        assert found.omegas == pytest.approx(plain(base), rel=1e-15)
        assert (found.attention_factor, found.theta) == (1.0, base.theta)
        assert (found.length, found.trained_length) == (length, base.trained_length)


@pytest.mark.parametrize("kind", kinds(PACKAGE))
@settings(max_examples=30, deadline=None)
@given(
    dim=st.sampled_from([4, 32, 64, 96, 128]),
    theta=st.floats(100, 1e8),
    trained=st.integers(128, 131_072),
    factor=st.floats(1, 256),
)
def test_positive_and_ordered(kind, dim, theta, trained, factor):
    base = RopeBase(rotary_dim=dim, theta=theta, trained_length=trained)
    length = int(trained * factor)
    found = method_of(kind, base, factor).frequencies(base, length)
    assert len(found.omegas) == dim // 2
    assert all(omega > 0 for omega in found.omegas)
    assert all(slower <= faster for faster, slower in zip(found.omegas, found.omegas[1:], strict=False))
    assert all(new <= old * (1 + 1e-12) for new, old in zip(found.omegas, plain(base), strict=True))
    assert found.attention_factor >= 1
    assert (found.rotary_dim, found.length, found.trained_length) == (dim, length, trained)


# --- values of shared/reference/positions.md, sections 2 and 3 -------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "factor", "ramp", "narrow_ramp", "lambdas"),
    [
        (LLAMA2, 64, (20, 46), (35, 46), {20: 1, 25: 1.2335, 30: 1.6093, 35: 2.3143, 40: 4.1188, 43: 7.7395, 46: 64}),
        (LLAMA3, 128, (18, 35), (28, 35), {20: 1.1322, 25: 1.6908, 30: 3.3374, 31: 4.1448, 35: 128}),
        (SMOLLM2, 16, (10, 20), (16, 20), {10: 1, 14: 1.6, 17: 2.9091, 20: 16}),
    ],
)
def test_yarn_values(base, factor, ramp, narrow_ramp, lambdas):
    length = base.trained_length * factor
    found = Yarn().frequencies(base, length).factors
    assert {pair: found[pair] for pair in lambdas} == pytest.approx(lambdas, abs=5e-5)
    narrow = Yarn(beta_fast=4).frequencies(base, length).factors
    for factors, (low, high) in ((found, ramp), (narrow, narrow_ramp)):
        assert factors[low] == 1
        assert factors[low + 1] > 1
        assert factors[high - 1] < factor
        assert factors[high] == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("base", "factor", "lambdas"),
    [
        (LLAMA2, 64, {0: 1, 14: 2.520, 30: 7.246, 40: 14.021, 63: 64}),
        (LLAMA3, 128, {0: 1, 14: 2.939, 20: 4.666, 31: 10.886, 63: 128}),
        (SMOLLM2, 16, {0: 1, 14: 3.498, 20: 5.982, 31: 16}),
    ],
)
def test_ntk_values(base, factor, lambdas):
    omegas = Ntk().frequencies(base, base.trained_length * factor).omegas
    assert {pair: plain(base)[pair] / omegas[pair] for pair in lambdas} == pytest.approx(lambdas, abs=5e-4)


def test_attention_factor_values():
    su = {2: 1.0377, 4: 1.0742, 8: 1.1094, 16: 1.1435, 32: 1.1767, 64: 1.2089, 128: 1.2403, 512: 1.3009}
    yarn = {2: 1.0693, 4: 1.1386, 8: 1.2079, 16: 1.2773, 32: 1.3466, 64: 1.4159, 128: 1.4852, 512: 1.6238}
    ones = Longrope(factors=(1.0,) * 64)
    assert {f: ones.frequencies(LLAMA3, 8192 * f).attention_factor for f in su} == pytest.approx(su, abs=5e-5)
    assert {f: Yarn().frequencies(LLAMA3, 8192 * f).attention_factor for f in yarn} == pytest.approx(yarn, abs=5e-5)


@pytest.mark.parametrize(
    ("base", "thetas"),
    [
        (LLAMA3, [1.777e6, 6.315e6, 2.244e7, 7.976e7, 2.835e8, 1.007e9, 3_580_165_449, 1.272e10, 4.522e10]),
        (SMOLLM2, [3.042e5, 9.254e5, 2.815e6, 8.563e6, 2.605e7, 7.924e7, 2.411e8, 7.333e8, 2.231e9]),
        (TINY, [1.504e6, 5.268e6, 1.845e7, 6.461e7, 2.263e8, 7.924e8, 2.775e9, 9.719e9, 3.404e10]),
    ],
)
def test_theta_law_values(base, thetas):
    found = [ThetaLaw().frequencies(base, 16_384 * 2**i).theta for i in range(len(thetas))]
    assert found == pytest.approx(thetas, rel=5e-4)


def test_theta_law_gives_the_published_gradient_base():
    assert round(ThetaLaw().frequencies(LLAMA3, 1_048_576).theta) == 3_580_165_449


# --- the papers' formulas --------------------------------------------------------------------------------------------


def test_theta_law_keeps_the_critical_pair():
    """The pair whose wavelength was N0 has wavelength N1 afterwards (the theorem behind the formula)."""
    found = ThetaLaw().frequencies(LLAMA3, 262_144)
    pair = 64 * math.log(8192 / (2 * math.pi)) / math.log(5e5)
    assert 2 * math.pi * found.theta ** (pair / 64) == pytest.approx(262_144, rel=1e-12)


def test_theta_law_for_a_later_length():
    early = ThetaLaw(length=1_048_576).frequencies(LLAMA3, 65_536)
    assert early.theta == ThetaLaw().frequencies(LLAMA3, 1_048_576).theta
    assert early.length == 65_536


def test_default_theta():
    assert Default(theta=8e6).frequencies(LLAMA3, 65_536).omegas == pytest.approx([8e6 ** -(i / 64) for i in range(64)])


def test_linear_is_a_position_divided():
    found = Linear(factor=8).frequencies(LLAMA2, 32_768)
    assert [1000 * omega for omega in found.omegas] == pytest.approx([125 * omega for omega in plain(LLAMA2)])


def test_ntk_spares_the_first_pair_and_interpolates_the_last():
    found = Ntk(factor=8).frequencies(SMOLLM2, 10_000).omegas
    assert found[0] == 1
    assert found[-1] == pytest.approx(plain(SMOLLM2)[-1] / 8, rel=1e-12)


def test_dynamic_follows_the_length():
    theta = 1e4 * (4 * 10_000 / 4096 - 3) ** (128 / 126)
    assert Dynamic(factor=4).frequencies(LLAMA2, 10_000).theta == pytest.approx(theta, rel=1e-14)
    assert Dynamic(factor=4).frequencies(LLAMA2, 4096).theta == 1e4
    assert Dynamic(factor=4).frequencies(LLAMA2, 100).theta == 1e4
    unset = 1e4 * (2**2 - 2 + 1) ** (128 / 126)  # the factor is then the stretch itself
    assert Dynamic().frequencies(LLAMA2, 8192).theta == pytest.approx(unset, rel=1e-14)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_against_the_paper_with_a_ramp_in_the_pair(truncate):
    low, high = (64 * math.log(8192 / (2 * math.pi * turns)) / math.log(5e5) for turns in (16, 2))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    expected = []
    for pair, omega in enumerate(plain(LLAMA3)):
        kept = 1.0 if pair < low else 0.0 if pair > high else (high - pair) / (high - low)
        expected.append((1 - kept) * omega / 20 + kept * omega)
    found = Yarn(factor=20, beta_fast=16, beta_slow=2, truncate=truncate).frequencies(LLAMA3, 163_840)
    assert found.omegas == pytest.approx(expected, rel=1e-12)
    assert found.attention_factor == pytest.approx(0.1 * math.log(20) + 1)


def test_yarn_clamps_at_the_last_dim_and_not_at_the_last_pair():
    """Trained to 131,072 with theta 1e4 the ramp is 45 … 70 of 64 pairs, so even the last is not fully slowed."""
    base = RopeBase(rotary_dim=128, theta=1e4, trained_length=131_072)
    found = Yarn(factor=8).frequencies(base, 1_048_576).factors
    assert found[45] == 1
    assert found[63] == pytest.approx(1 / (0.72 / 8 + 0.28), rel=1e-12)


def test_yarn_ramp_of_no_width():
    base = RopeBase(rotary_dim=64, theta=1e4, trained_length=6)  # shorter than one turn of the fastest pair
    assert Yarn(factor=4).frequencies(base, 24).factors == pytest.approx([1.0] + [4.0] * 31)
    turns = 8192 / (2 * math.pi * 5e5 ** (29.95 / 64))  # of a pair between 29 and 30, close to 30
    step = Yarn(factor=4, beta_fast=turns, beta_slow=turns, truncate=False).frequencies(LLAMA3, 32_768).factors
    assert step == (1.0,) * 30 + (4.0,) * 34


def test_yarn_attention_factor_settings():
    def scale(**settings):
        return Yarn(**settings).frequencies(LLAMA3, 8192 * 40).attention_factor

    assert scale(attention_factor=1.25) == 1.25
    assert scale(mscale=1.0, mscale_all_dim=1.0) == 1
    ratio = (0.0707 * math.log(40) + 1) / (0.05 * math.log(40) + 1)
    assert scale(mscale=0.707, mscale_all_dim=0.5) == pytest.approx(ratio)
    assert scale(factor=1.0) == 1


def test_llama3_against_its_reference_code():
    expected = []
    for omega in plain(LLAMA3):
        wavelength = 2 * math.pi / omega
        if wavelength < 8192 / 4:
            expected.append(omega)
        elif wavelength > 8192 / 1:
            expected.append(omega / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * omega / 8 + smooth * omega)
    found = Llama3(factor=8).frequencies(LLAMA3, 131_072)
    assert found.omegas == pytest.approx(expected, rel=1e-12)
    assert found.attention_factor == 1
    later = RopeBase(rotary_dim=128, theta=5e5, trained_length=131_072)
    assert Llama3(factor=8, original_length=8192).frequencies(later, 131_072).omegas == found.omegas
    assert Llama3().frequencies(LLAMA3, 131_072).factors[-1] == pytest.approx(16)


def test_longrope_divides_pair_by_pair():
    factors = tuple(1.0 + i / 10 for i in range(32))
    found = Longrope(factors=factors, attention_factor=1.1).frequencies(SMOLLM2, 131_072)
    expected = [omega / factor for omega, factor in zip(plain(SMOLLM2), factors, strict=True)]
    assert found.omegas == pytest.approx(expected, rel=1e-14)
    assert found.attention_factor == 1.1


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ((1.0,) * 31, "31 factors for a model of 32 rotary pairs"),
        ((0.0,) + (1.0,) * 31, "factor 0.0 of pair 0 is not between"),
        ((-2.0,) + (1.0,) * 31, "factor -2.0 of pair 0 is not between"),
        ((1.0,) * 31 + (1e39,), "pair 31 is not between"),
        ((1.0, 3.0, 2.0) + (4.0,) * 29, r"factors fall from 3.0 \(pair 1\) to 2.0 \(pair 2\)"),
    ],
)
def test_longrope_refuses_factors(factors, text):
    with pytest.raises(ConfigError, match=text) as caught:
        Longrope(factors=factors).frequencies(SMOLLM2, 131_072)
    assert caught.value.code == "rope.factors"


@pytest.mark.parametrize("method", [Ntk(factor=2), Dynamic(factor=2)])
def test_one_pair_has_no_ntk(method):
    with pytest.raises(ConfigError, match="needs two rotary pairs, this model has 1"):
        method.frequencies(RopeBase(rotary_dim=2, theta=1e4, trained_length=128), 256)


def test_theta_law_refuses_what_it_cannot_solve():
    with pytest.raises(ConfigError, match="more than 6 tokens, this one has 6"):
        ThetaLaw().frequencies(RopeBase(rotary_dim=64, theta=1e4, trained_length=6), 4096)
    for length in (1024, 2**62):  # the second would overflow a float
        with pytest.raises(ConfigError, match="more than 1e"):
            ThetaLaw().frequencies(RopeBase(rotary_dim=64, theta=1e4, trained_length=7), length)


@pytest.mark.parametrize(
    ("kind", "setting", "text"),
    [
        (Yarn, {"beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast must not be below beta_slow"),
        (Yarn, {"mscale": 1.0}, "give both or neither"),
        (Yarn, {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}, "give one or the other"),
        (Llama3, {"low_freq_factor": 4.0}, "high_freq_factor must be above low_freq_factor"),
        (Linear, {"factor": 0.5}, "greater than or equal to 1"),
        (Linear, {"factor": math.nan}, "finite|greater than or equal"),
        (Linear, {"factor": "8"}, "valid number"),
        (Default, {"theta": 1.0}, "greater than 1"),
        (Default, {"theta": 1e31}, "less than or equal"),
        (ThetaLaw, {"length": 6}, "greater than or equal to 7"),
        (Longrope, {}, "Field required"),
    ],
)
def test_settings_are_bounded(kind, setting, text):
    with pytest.raises(ValidationError, match=text):
        kind(**setting)


def test_default_keeps_the_scaling_of_a_model_that_was_scaled_before():
    scaled = RopeBase(rotary_dim=4, theta=1e4, trained_length=512, factors=(1.0, 16.0), attention_factor=1.25)
    kept = Default().frequencies(scaled, 4096)
    assert kept.factors == (1.0, 16.0)
    assert kept.attention_factor == 1.25
    plain = Default(theta=5e5).frequencies(scaled, 4096)
    assert plain.factors == (1.0, 1.0)
    assert plain.attention_factor == 1.0
