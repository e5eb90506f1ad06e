"""Phi's two windows, p-RoPE, LongRoPE2 in a few numbers, what a search found: formulas written down again."""

import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from longspan.rope.export import config_rope, read_rope
from longspan.rope.frequencies import RopeBase, read_frequencies
from longspan.rope.methods.longrope2 import Longrope2, critical_pair
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.proportional import Proportional
from longspan.rope.methods.searched import Searched
from longspan.rope.methods.su import Su
from longspan.rope.methods.yarn import Yarn
from longspan.rope.rotate import cos_sin, served_omegas
from longspan.utils.errors import ConfigError, ModelError

LLAMA3 = RopeBase(rotary_dim=128, theta=5e5, trained_length=8192)
SMOLLM2 = RopeBase(rotary_dim=64, theta=1e5, trained_length=8192)
PHI3 = RopeBase(rotary_dim=96, theta=1e4, trained_length=4096)
MILLION = 1_048_576


# --- LongRoPE2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "pair"),
    [
        (LLAMA3, 35),
        (RopeBase(rotary_dim=96, theta=1e4, trained_length=2048), 31),
        (RopeBase(rotary_dim=128, theta=1e4, trained_length=4096), 46),
        (RopeBase(rotary_dim=128, theta=1e6, trained_length=32_768), 40),
        (SMOLLM2, 20),
    ],
)
def test_critical_pair_of_published_models(base, pair):
    assert critical_pair(base) == pair


def test_longrope2_by_its_formula():
    method = Longrope2(critical_pair=30.5, kept_pairs=10.25, bend=1.5, excess=0.3, slope=0.2, attention_factor=1.1)
    found = method.frequencies(LLAMA3, 8192 * 16)
    top = 16 * math.exp(0.3)
    assert found.factors[:11] == (1.0,) * 11
    assert found.factors[20] == pytest.approx(top ** (((20 - 10.25) / (30.5 - 10.25)) ** 1.5), rel=1e-13)
    assert found.factors[31] == pytest.approx(top * math.exp(0.2 * 0.5 / 33.5), rel=1e-13)
    assert found.factors[63] == pytest.approx(top * math.exp(0.2 * 32.5 / 33.5), rel=1e-13)
    assert found.attention_factor == 1.1


def test_longrope2_without_numbers_is_an_ntk_ramp_to_the_critical_pair():
    found = Longrope2().frequencies(LLAMA3, 8192 * 16)
    assert found.factors[:35] == pytest.approx([16 ** (i / 35) for i in range(35)], rel=1e-13)
    assert found.factors[35:] == pytest.approx([16.0] * 29, rel=1e-13)
    assert found.attention_factor == pytest.approx(math.sqrt(1 + math.log(16) / math.log(8192)), rel=1e-15)
    ntk = Ntk().frequencies(LLAMA3, 8192 * 16)  # the same ramp with its top at the last pair
    ramp = Longrope2(critical_pair=63, attention_factor=1.0).frequencies(LLAMA3, 8192 * 16)
    assert ramp.omegas == pytest.approx(ntk.omegas, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    c=st.floats(0.5, 40),
    share=st.floats(0, 0.99),
    bend=st.floats(0.1, 8),
    excess=st.floats(0, 2),
    slope=st.floats(0, 2),
    factor=st.floats(1, 256),
)
def test_longrope2_never_falls(c, share, bend, excess, slope, factor):
    method = Longrope2(critical_pair=c, kept_pairs=c * share, bend=bend, excess=excess, slope=slope, factor=factor)
    factors = method.frequencies(SMOLLM2, 8192).factors
    assert factors[0] >= 1
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(factors))


def test_longrope2_refuses_a_ramp_that_ends_before_it_begins():
    with pytest.raises(ValidationError, match="kept_pairs must be below critical_pair"):
        Longrope2(critical_pair=9, kept_pairs=9)
    with pytest.raises(ConfigError, match="kept_pairs 20 is not below the critical pair 20") as caught:
        Longrope2(kept_pairs=20).frequencies(SMOLLM2, 16_384)
    assert caught.value.code == "rope.kept-pairs"


# --- two windows -----------------------------------------------------------------------------------------------------

SHORT, LONG = tuple(1.0 + i / 480 for i in range(48)), tuple(1.0 + i * i / 50 for i in range(48))
MIXED = Su(short_factors=SHORT, long_factors=LONG, factor=32)


def test_su_takes_the_set_of_the_length():
    beyond = MIXED.frequencies(PHI3, 131_072)
    assert (beyond.factors, beyond.short_factors) == (LONG, SHORT)
    assert MIXED.frequencies(PHI3, 4097).factors == LONG
    inside = MIXED.frequencies(PHI3, 4096)
    assert (inside.factors, inside.short_factors) == (SHORT, None)
    scale = math.sqrt(1 + math.log(32) / math.log(4096))
    assert beyond.attention_factor == inside.attention_factor == pytest.approx(scale, rel=1e-15)
    assert beyond.window(4096).factors == SHORT
    assert beyond.window(4097) == beyond


def test_su_refuses_what_longrope_refuses():
    with pytest.raises(ConfigError, match="factors fall"):
        Su(short_factors=SHORT[::-1], long_factors=LONG).frequencies(PHI3, 131_072)
    with pytest.raises(ConfigError, match="47 factors for a model of 48 rotary pairs"):
        Su(short_factors=SHORT, long_factors=LONG[:47]).frequencies(PHI3, 131_072)


def test_a_mixed_window_is_written_on_request_only():
    frequencies = MIXED.frequencies(PHI3, 131_072)
    plain = config_rope(frequencies, head_dim=96)["rope_scaling"]
    assert plain["short_factor"] == plain["long_factor"] == pytest.approx(LONG, rel=6e-8)
    written = config_rope(frequencies, head_dim=96, mixed_window=True)
    assert written["rope_scaling"]["short_factor"] == pytest.approx(SHORT, rel=6e-8)
    assert written["rope_scaling"]["long_factor"] == pytest.approx(LONG, rel=6e-8)
    back = read_rope(json.loads(json.dumps(written)))
    assert back.short_factors == pytest.approx(SHORT, rel=6e-8)
    assert config_rope(back, head_dim=96, mixed_window=True) == written
    with pytest.raises(ModelError, match="these positions have none") as caught:
        config_rope(Yarn().frequencies(PHI3, 131_072), head_dim=96, mixed_window=True)
    assert caught.value.code == "export.no-window"


def test_frequencies_survive_json():
    for frequencies in (MIXED.frequencies(PHI3, 131_072), Yarn().frequencies(PHI3, 8192)):
        value = json.loads(json.dumps(frequencies.__dict__))
        assert read_frequencies(value) == frequencies


# --- p-RoPE ----------------------------------------------------------------------------------------------------------


def test_proportional_as_transformers_forms_it():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.3, "factor": 4.0}
    config = LlamaConfig(hidden_size=128, num_attention_heads=1, head_dim=128, rope_parameters=rope)
    omegas, _ = ROPE_INIT_FUNCTIONS["proportional"](config, None)
    base = RopeBase(rotary_dim=128, theta=1e6, trained_length=8192)
    found = Proportional(share=0.3, factor=4.0).frequencies(base, 8192)
    assert int((omegas > 0).sum()) == sum(omega > 1e-20 for omega in found.omegas) == 19
    assert found.omegas == pytest.approx(omegas.double().tolist(), rel=3e-7, abs=1e-29)
    read = read_rope({"head_dim": 128, "max_position_embeddings": 8192, "rope_parameters": rope})
    assert read == found


def test_a_still_pair_does_not_turn_at_any_position():
    found = Proportional(share=0.25).frequencies(SMOLLM2, MILLION)
    cos, sin = cos_sin(torch.tensor([[MILLION * 16]]), found)
    assert torch.equal(cos[0, 0, 8:], torch.ones(24))
    assert float(sin[0, 0, 8:].abs().max()) < 1e-20
    again = read_rope(json.loads(json.dumps(config_rope(found, head_dim=64))))
    assert torch.equal(served_omegas(again), served_omegas(found))


# --- what a search found ---------------------------------------------------------------------------------------------


def test_searched_is_the_method_in_the_file(tmp_path):
    (tmp_path / "found.json").write_text('{"rope": {"kind": "yarn", "beta_fast": 16.0}, "loss": 2.5}')
    method = Searched(result=tmp_path / "found.json")
    assert method.method() == Yarn(beta_fast=16.0)
    assert method.frequencies(LLAMA3, MILLION) == Yarn(beta_fast=16.0).frequencies(LLAMA3, MILLION)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"rope": 3}',
        '{"rope": {"kind": "no-such"}}',
        '{"rope": {"kind": "yarn", "betas": 1}}',
        '{"rope": {"kind": "searched", "result": "found.json"}}',
        "[",
    ],
)
def test_searched_refuses_other_files(tmp_path, text):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Searched(result=tmp_path / "found.json").method()
    assert caught.value.code == "rope.searched"
    assert caught.value.where == str(tmp_path / "found.json")
    with pytest.raises(ConfigError, match="is missing"):
        Searched(result=tmp_path / "other.json").method()
