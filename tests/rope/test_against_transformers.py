"""Frequencies against transformers' own functions: what methods compute, what `read_rope` reads, what exports serve."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import kind_class, kinds
from longspan.rope.export import config_rope, read_rope
from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.rope.methods.default import Default
from longspan.rope.methods.dynamic import Dynamic
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.llama3 import Llama3
from longspan.rope.methods.longrope import Longrope
from longspan.rope.methods.yarn import Yarn
from longspan.rope.rotate import served_omegas

METHODS = "longspan.rope.methods"
# Fields of a RopeBase, made into one in the test: the type checker of the tests draws random numbers of its own, which
# hypothesis forbids inside a strategy.
BASES = st.fixed_dictionaries(
    {
        "rotary_dim": st.sampled_from([32, 64, 128]),  # of these 2i/d is exact in float32; others are tested below
        "theta": st.floats(3, 9).map(lambda power: round(10.0**power)).map(float),
        "trained_length": st.integers(512, 131_072),
    }
)
FACTORS = st.floats(1, 128)
RANDOM = settings(max_examples=30, deadline=None)


class Float64Torch:
    """The torch module as transformers' rotary functions see it, but with float64 where they ask for float32."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def theirs(base: RopeBase, length: int, rope: dict[str, Any], *, seq_len: int | None = None, float64: bool = False):
    """Omegas and attention factor of transformers' function for a Llama with these settings."""
    from transformers import LlamaConfig, modeling_rope_utils

    config = LlamaConfig(
        hidden_size=base.rotary_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=base.rotary_dim,
        max_position_embeddings=length,
        rope_parameters={"rope_theta": base.theta, **rope},
    )
    with pytest.MonkeyPatch.context() as patch:
        if float64:
            patch.setattr(modeling_rope_utils, "torch", Float64Torch())
        omegas, attention_factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=seq_len)
    assert omegas.dtype == (torch.float64 if float64 else torch.float32)
    return omegas.double().tolist(), attention_factor


def assert_equal(
    found: Frequencies, expected: tuple[list[float], float], *, rel: float = 3e-7, ramp: bool = False
) -> None:
    """Within `rel`, with a ramp within `rel` of the unscaled frequency: of that scale are a ramp's rounding errors."""
    omegas, attention_factor = expected
    assert len(found.omegas) == len(omegas)
    for pair, (ours, other) in enumerate(zip(found.omegas, omegas, strict=True)):
        scale = found.theta ** (-2 * pair / found.rotary_dim) if ramp else ours
        assert abs(ours - other) <= rel * scale, f"pair {pair}: {ours} against {other}"
    assert found.attention_factor == pytest.approx(attention_factor, rel=1e-15)


@RANDOM
@given(fields=BASES, factor=FACTORS)
def test_linear(fields, factor):
    base = RopeBase(**fields)
    found = Linear(factor=factor).frequencies(base, base.trained_length)
    assert_equal(found, theirs(base, base.trained_length, {"rope_type": "linear", "factor": factor}))


@RANDOM
@given(fields=BASES, factor=FACTORS, stretch=st.floats(0.5, 64))
def test_dynamic(fields, factor, stretch):
    base = RopeBase(**fields)
    length = int(base.trained_length * stretch)
    found = Dynamic(factor=factor).frequencies(base, length)
    rope = {"rope_type": "dynamic", "factor": factor}  # M of transformers is max_position_embeddings, here N0
    assert_equal(found, theirs(base, base.trained_length, rope, seq_len=length))


@RANDOM
@given(
    fields=BASES,
    factor=FACTORS,
    beta_fast=st.floats(4, 64),
    beta_slow=st.floats(0.5, 3.5),
    truncate=st.booleans(),
    scale=st.one_of(
        st.just({}),
        st.fixed_dictionaries({"attention_factor": st.floats(0.5, 2)}),
        st.fixed_dictionaries({"mscale": st.floats(0.1, 2), "mscale_all_dim": st.floats(0.1, 2)}),
    ),
)
def test_yarn(fields, factor, beta_fast, beta_slow, truncate, scale):
    base = RopeBase(**fields)
    given_settings = {
        "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate, **scale,
    }  # fmt: skip
    found = Yarn(**given_settings).frequencies(base, 2**20)
    rope = {"rope_type": "yarn", "original_max_position_embeddings": base.trained_length, **given_settings}
    assert_equal(found, theirs(base, 2**20, rope, float64=True), rel=1e-12, ramp=True)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("theta", "trained_length"), [(1e4, 131_072), (100.0, 131_072), (1e4, 6), (1e4, 7)])
def test_yarn_corners(theta, trained_length, truncate):
    """A ramp that ends beyond the last pair, one wholly beyond it, one of no width, one that runs backwards."""
    base = RopeBase(rotary_dim=32, theta=theta, trained_length=trained_length)
    found = Yarn(factor=8, truncate=truncate).frequencies(base, trained_length * 8)
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": trained_length}
    assert_equal(found, theirs(base, trained_length * 8, rope | {"truncate": truncate}), ramp=True)


@RANDOM
@given(fields=BASES, factor=FACTORS, low=st.floats(0.5, 2), span=st.floats(1, 16))
def test_llama3(fields, factor, low, span):
    base = RopeBase(**fields)
    found = Llama3(factor=factor, low_freq_factor=low, high_freq_factor=low + span).frequencies(base, 2**20)
    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low + span,
        "original_max_position_embeddings": base.trained_length,
    }
    expected = theirs(base, 2**20, rope, float64=True)
    assert_equal(found, expected, rel=1e-13, ramp=True)


@RANDOM
@given(fields=BASES, stretch=st.integers(2, 128), data=st.data())
def test_longrope(fields, stretch, data):
    base = RopeBase(**fields)
    pairs = base.rotary_dim // 2
    factors = sorted(data.draw(st.lists(st.floats(1, 2.0 * stretch), min_size=pairs, max_size=pairs)))
    attention_factor = data.draw(st.none() | st.floats(0.5, 2))
    length = base.trained_length * stretch
    found = Longrope(factors=tuple(factors), attention_factor=attention_factor).frequencies(base, length)
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * pairs,
        "long_factor": factors,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": base.trained_length,
    }
    assert_equal(found, theirs(base, length, rope, seq_len=length))


@pytest.mark.parametrize("dim", [48, 80, 96])
def test_head_dims_that_are_no_power_of_two(dim):
    """float32 rounds 2i/d here, which moves transformers' frequencies by up to 3e-8 · ln theta more."""
    base = RopeBase(rotary_dim=dim, theta=1e6, trained_length=4096)
    omegas, _ = theirs(base, 4096, {"rope_type": "linear", "factor": 4.0})
    assert Linear(factor=4).frequencies(base, 4096).omegas == pytest.approx(omegas, rel=3e-7 + 3e-8 * math.log(1e6))
    served = served_omegas(Default().frequencies(base, 4096)) / 4
    assert served.tolist() == omegas


# --- what is written is what is served -------------------------------------------------------------------------------


def written(folder: Path, rope: dict[str, Any], *, model_type: str = "llama") -> Any:
    """The config that transformers reads from disk, where an older one with another scaling had been."""
    from transformers import AutoConfig

    config = {
        "model_type": model_type,
        "hidden_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 77,
        "rope_theta": 123.0,
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config | rope))
    return AutoConfig.from_pretrained(folder)


def trained() -> dict[str, Frequencies]:
    llama = RopeBase(rotary_dim=128, theta=5e5, trained_length=8192)
    curved = tuple(1 + i**1.5 / 7 for i in range(64))
    settings_of = {
        "longrope": {"factors": curved},
        "longrope2": {"critical_pair": 30.5, "kept_pairs": 9.5, "bend": 1.7, "excess": 0.2, "slope": 0.1},
        "proportional": {"share": 0.25},
        "searched": {"result": Path(__file__).with_name("found.json")},
        "su": {"short_factors": curved, "long_factors": curved},
    }
    methods = {kind: kind_class(METHODS, kind)(**settings_of.get(kind, {})) for kind in kinds(METHODS)}
    found = {kind: method.frequencies(llama, 1_048_576) for kind, method in methods.items()}
    found["no scaling at all"] = Default().frequencies(llama, 8192)
    found["a factor below the trained length"] = Linear(factor=4).frequencies(llama, 4096)
    return found


@pytest.mark.parametrize("name", trained())
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_exported_frequencies_are_served_to_the_last_bit(tmp_path, name, model_type):
    import transformers.models as models
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies = trained()[name]
    config = written(tmp_path, config_rope(frequencies, head_dim=128), model_type=model_type)
    rotary = {
        "llama": models.llama.modeling_llama.LlamaRotaryEmbedding,
        "mistral": models.mistral.modeling_mistral.MistralRotaryEmbedding,
        "qwen2": models.qwen2.modeling_qwen2.Qwen2RotaryEmbedding,
        "qwen3": models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding,
    }[model_type](config)
    served = served_omegas(frequencies)
    assert torch.equal(rotary.inv_freq.double(), served)
    assert rotary.attention_scaling == frequencies.attention_factor
    assert config.max_position_embeddings == frequencies.length
    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        for seq_len in (1, frequencies.trained_length + 1, frequencies.length):
            omegas, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=seq_len)
            assert torch.equal(omegas.double(), served)
            assert attention_factor == frequencies.attention_factor
    for positions in (torch.tensor([[3]]), torch.tensor([[frequencies.length - 1]])):
        rotary(torch.zeros(1), positions)  # the switch by length happens in forward
        assert torch.equal(rotary.inv_freq.double(), served)


@pytest.mark.parametrize("method", [Default(theta=1e7), Yarn()])
def test_partial_rotation_is_served(tmp_path, method):
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    frequencies = method.frequencies(RopeBase(rotary_dim=96, theta=1e4, trained_length=4096), 131_072)
    config = written(tmp_path, config_rope(frequencies, head_dim=128), model_type="phi3")
    rotary = Phi3RotaryEmbedding(config)
    assert torch.equal(rotary.inv_freq.double(), served_omegas(frequencies))
    assert rotary.attention_scaling == frequencies.attention_factor


# --- what is read is what transformers builds ------------------------------------------------------------------------

YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
LONG = {"short_factor": [1.5] * 64, "long_factor": [3.0] * 64, "original_max_position_embeddings": 1024}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FILES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "theta beside": {"rope_theta": 5e5},
    "theta inside wins": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    "old type": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "rope_type wins": {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
    "rope_scaling wins": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 9e5},
    },
    "empty rope_scaling loses": {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 5e5}},
    "yarn": {"rope_theta": 1_000_000, "rope_scaling": {"type": "yarn", **YARN}},
    "yarn, original beside": {"original_max_position_embeddings": 512, "rope_scaling": {"type": "yarn", **YARN}},
    "yarn without original": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, factor null": {"rope_scaling": {"type": "yarn", **YARN, "factor": None}},
    "yarn, zero is default": {
        "rope_scaling": {"type": "yarn", **YARN, "beta_fast": 0, "mscale": 1, "mscale_all_dim": 0}
    },
    "yarn, mscale": {"rope_scaling": {"type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16}},
    "yarn, attention factor wins": {
        "rope_scaling": {"type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 1.5}
    },
    "yarn, no rounding": {"rope_scaling": {"type": "yarn", **YARN, "truncate": False}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", **LLAMA_3, "original_max_position_embeddings": 512}},
    "llama3, original beside": {
        "original_max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA_3},
    },
    "longrope": {"rope_scaling": {"rope_type": "longrope", **LONG}},
    "longrope, factor": {"rope_scaling": {"rope_type": "longrope", **LONG, "factor": 16.0}},
    "longrope, attention factor": {"rope_scaling": {"rope_type": "longrope", **LONG, "attention_factor": 1}},
    "longrope at its original length": {
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "longrope", **LONG},
    },
}


@pytest.mark.parametrize("name", FILES)
def test_read_as_transformers_reads(tmp_path, name):
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"model_type": "llama", "hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(sizes | FILES[name]))
    config = AutoConfig.from_pretrained(tmp_path)
    kind = config.rope_parameters["rope_type"]
    build = LlamaRotaryEmbedding.compute_default_rope_parameters
    omegas, attention_factor = (build if kind == "default" else ROPE_INIT_FUNCTIONS[kind])(config, seq_len=4096)
    found = read_rope(json.loads((tmp_path / "config.json").read_text()))
    assert_equal(found, (omegas.double().tolist(), attention_factor), ramp=kind in ("yarn", "llama3"))
    assert found.length == 4096
    assert found.trained_length == config.rope_parameters.get("original_max_position_embeddings", 4096)
