"""Export and its inverse: round trips, the published set-ups of the golden file, corners and refusals."""

import json
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.rope.export import config_rope, read_rope
from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.rope.methods.default import Default
from longspan.rope.methods.llama3 import Llama3
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.rope.rotate import served_omegas
from longspan.utils.errors import ModelError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "frequencies.json").read_text())
SIZES = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 4096}
LLAMA3 = RopeBase(rotary_dim=128, theta=5e5, trained_length=8192)


def through_json(config: dict[str, Any]) -> Frequencies:
    return read_rope(json.loads(json.dumps(config)))


# --- round trips -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.just(1.0) | st.floats(1e-3, 1e5), min_size=1, max_size=64),
    theta=st.floats(2, 1e20),
    attention_factor=st.just(1.0) | st.floats(0.1, 10),
    trained=st.integers(2, 10**6),
    length=st.integers(2, 10**8),
    passed_through=st.integers(0, 64),
)
def test_round_trip(factors, theta, attention_factor, trained, length, passed_through):
    before = Frequencies(
        theta=theta,
        factors=tuple(factors),
        attention_factor=attention_factor,
        length=length,
        trained_length=trained,
    )
    head_dim = 2 * (len(factors) + passed_through)
    after = through_json(config_rope(before, head_dim=head_dim))
    assert torch.equal(served_omegas(after), served_omegas(before))
    assert after.omegas == pytest.approx(before.omegas, rel=6e-8)  # the factors are float32 in the file
    assert (after.theta, after.attention_factor, after.length) == (theta, attention_factor, length)
    if not (attention_factor == 1 and set(factors) == {1.0}):
        assert after.trained_length == trained
    assert through_json(config_rope(after, head_dim=head_dim)) == after


def test_round_trip_of_a_plain_base():
    before = ThetaLaw().frequencies(LLAMA3, 1_048_576)
    after = through_json(config_rope(before, head_dim=128))
    assert after.omegas == before.omegas
    # a model with a new base is native to its length: that is its N0 from now on
    assert (after.length, after.trained_length) == (1_048_576, 1_048_576)


def test_every_partial_rotation_is_read_back():
    for head_dim in (24, 80, 96, 98, 128, 196, 256):
        for dim in range(2, head_dim + 1, 2):
            base = RopeBase(rotary_dim=dim, theta=1e4, trained_length=8)
            written = config_rope(Default().frequencies(base, 8), head_dim=head_dim)
            assert int(head_dim * written.get("partial_rotary_factor", 1.0)) == dim


# --- the form --------------------------------------------------------------------------------------------------------


def test_a_plain_base_is_written_plainly():
    rope = {"rope_type": "default", "rope_theta": 8e6}
    assert config_rope(Default(theta=8e6).frequencies(LLAMA3, 65_536), head_dim=128) == {
        "rope_theta": 8e6,
        "max_position_embeddings": 65_536,
        "original_max_position_embeddings": 65_536,
        "head_dim": 128,
        "rope_scaling": None,
        "rope_parameters": rope,
    }


def test_the_universal_form():
    frequencies = Yarn().frequencies(LLAMA3, 1_048_576)
    written = config_rope(frequencies, head_dim=256)
    rope = written["rope_scaling"]
    assert written["rope_parameters"] == rope
    assert written["rope_parameters"] is not rope
    assert rope["short_factor"] == rope["long_factor"] == [float(np.float32(x)) for x in frequencies.factors]
    del rope["short_factor"], rope["long_factor"], written["rope_scaling"], written["rope_parameters"]
    scale = frequencies.attention_factor
    assert scale == pytest.approx(1.4852, abs=5e-5)
    assert rope == {
        "rope_type": "longrope",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.5,
        "factor": 128.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": scale,
        "short_mscale": scale,
        "long_mscale": scale,
    }
    assert written == {
        "rope_theta": 5e5,
        "max_position_embeddings": 1_048_576,
        "original_max_position_embeddings": 8192,
        "head_dim": 256,
        "partial_rotary_factor": 0.5,
    }


def test_an_attention_factor_alone_is_not_a_plain_base():
    frequencies = Yarn(factor=1, attention_factor=1.2).frequencies(LLAMA3, 8192)
    written = config_rope(frequencies, head_dim=128)
    assert set(frequencies.factors) == {1.0}
    assert written["rope_parameters"]["rope_type"] == "longrope"
    assert through_json(written) == frequencies


# --- published models ------------------------------------------------------------------------------------------------


def decimal_frequencies(config: dict[str, Any]) -> tuple[list[float], float]:
    """Omegas and attention factor with 60 digits, from the published formulas, rounded once at the end."""
    with localcontext() as context:
        context.prec = 60
        turn = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        d = int(head_dim * config.get("partial_rotary_factor", 1))
        theta = Decimal(config.get("rope_theta", 10_000))
        omegas = [theta ** (-Decimal(2 * i) / d) for i in range(d // 2)]
        scaling = config.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        attention_factor = Decimal(1)
        if kind in ("su", "longrope"):
            omegas = [omega / Decimal(factor) for omega, factor in zip(omegas, scaling["long_factor"], strict=True)]
            original = Decimal(config["original_max_position_embeddings"])
            growth = Decimal(config["max_position_embeddings"]) / original
            attention_factor = (1 + growth.ln() / original.ln()).sqrt()
        elif kind is not None:
            factor, original = Decimal(scaling["factor"]), scaling["original_max_position_embeddings"]
        if kind == "llama3":
            low, high = Decimal(scaling["low_freq_factor"]), Decimal(scaling["high_freq_factor"])
            for i, omega in enumerate(omegas):
                kept = min(max((original * omega / turn - low) / (high - low), Decimal(0)), Decimal(1))
                omegas[i] = kept * omega + (1 - kept) * omega / factor
        elif kind == "yarn":
            low, high = (d * (original / (beta * turn)).ln() / (2 * theta.ln()) for beta in (32, 1))
            if scaling.get("truncate", True):
                low, high = Decimal(int(low)), Decimal(int(high) + 1)
            for i, omega in enumerate(omegas):
                kept = min(max(Decimal(high - i) / (high - low), Decimal(0)), Decimal(1))
                omegas[i] = kept * omega + (1 - kept) * omega / factor
            attention_factor = factor.ln() / 10 + 1
            if "mscale" in scaling:
                one, all_dim = Decimal(scaling["mscale"]), Decimal(scaling["mscale_all_dim"])
                attention_factor = (one * factor.ln() / 10 + 1) / (all_dim * factor.ln() / 10 + 1)
        return [float(omega) for omega in omegas], float(attention_factor)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file_holds_the_published_formulas(name):
    entry = GOLDEN[name]
    assert decimal_frequencies(entry["config"]) == (entry["omegas"], entry["attention_factor"])


@pytest.mark.parametrize("name", GOLDEN)
def test_published_configs_are_read_right(name):
    entry = GOLDEN[name]
    found = read_rope(entry["config"])
    assert found.omegas == pytest.approx(entry["omegas"], rel=2e-14)
    assert found.attention_factor == pytest.approx(entry["attention_factor"], rel=1e-15)
    assert found.length == entry["config"]["max_position_embeddings"]
    assert found.trained_length == entry["trained_length"]


def test_methods_give_the_published_frequencies():
    qwen = RopeBase(rotary_dim=128, theta=1e6, trained_length=32_768)
    for name, found in {
        "Llama-3.1-8B": Llama3(factor=8).frequencies(LLAMA3, 131_072),
        "Qwen2.5-7B-Instruct with YaRN x4": Yarn().frequencies(qwen, 131_072),
        "Llama-3-70B-Instruct-Gradient-1048k": Default(theta=3_580_165_449).frequencies(LLAMA3, 1_048_576),
    }.items():
        assert found.omegas == pytest.approx(GOLDEN[name]["omegas"], rel=2e-14)


def test_where_implementations_disagree():
    """A ramp may end beyond the last pair: some clamp it at d/2 - 1, and are off by up to two thirds."""
    entry = GOLDEN["corner: a YaRN ramp that ends beyond the last pair"]
    low, high = 45, 70  # floor and ceil of 64·ln(131072/(2π·β))/ln(10000) for β 32 and 1
    plain = [1e4 ** (-i / 64) for i in range(64)]

    def ramped(end: int) -> list[float]:
        shares = (min(max((i - low) / (end - low), 0), 1) for i in range(64))
        return [omega * (share / 8 + 1 - share) for omega, share in zip(plain, shares, strict=True)]

    assert entry["omegas"] == pytest.approx(ramped(high), rel=1e-12)
    clamped = [1 - b / a for a, b in zip(ramped(high), ramped(63), strict=True)]
    assert max(clamped) == pytest.approx(0.66, abs=0.01)
    ours = Yarn(factor=8).frequencies(RopeBase(rotary_dim=128, theta=1e4, trained_length=131_072), 1_048_576)
    assert ours.omegas == pytest.approx(entry["omegas"], rel=2e-14)


# --- refusals --------------------------------------------------------------------------------------------------------

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "nested", "layer type (full_attention)"),
        (
            {"rope_scaling": {"type": "mrope"}},
            "type",
            "rope type 'mrope' is not supported (have: default, dynamic, linear,",
        ),
        ({"rope_scaling": {"type": "linear"}}, "value", "factor is missing"),
        ({"rope_scaling": {"type": "dynamic", "factor": None}}, "value", "factor is missing"),
        ({"rope_scaling": {"type": "yarn"}}, "value", "factor is missing"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "value", "low_freq_factor is missing"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1}},
            "value",
            "high_freq_factor is missing",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}},
            "value",
            "factor: Input should be greater than or equal to 1",
        ),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "value", "factor: Input should be a valid number"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 0.5}},
            "value",
            "beta_fast must not be below beta_slow",
        ),
        ({"rope_scaling": "yarn"}, "value", "rope_scaling: Input should be a valid dictionary"),
        (
            {"rope_scaling": LONG | {"long_factor": [2.0] * 63}},
            "value",
            "long_factor has 63 entries for 64 rotary pairs",
        ),
        ({"rope_scaling": LONG | {"short_factor": None}}, "value", "short_factor is missing"),
        ({"rope_scaling": LONG | {"long_factor": [0.0] * 64}}, "value", "long_factor.0: Input should be greater"),
        ({"max_position_embeddings": None}, "value", "max_position_embeddings: Input should be a valid integer"),
        ({"hidden_size": None}, "value", "no head_dim, nor hidden_size"),
        ({"head_dim": 33}, "value", "rotary dim 33 is not even"),
        ({"rope_theta": 1.0}, "value", "rope_theta: Input should be greater than 1"),
        ({"rope_theta": float("inf")}, "value", "rope_theta: Input should be a finite number"),
    ],
)
def test_refusals(change, code, text):
    with pytest.raises(ModelError) as caught:
        read_rope(SIZES | change)
    assert text in str(caught.value)
    assert caught.value.code == f"model.rope-{code}"
    assert caught.value.where
    assert caught.value.fix


def test_missing_length_is_named():
    with pytest.raises(ModelError, match="max_position_embeddings: Field required"):
        read_rope({"head_dim": 64})
