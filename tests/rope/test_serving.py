"""The formulas of vLLM and SGLang, written down again: where they agree with transformers, and where not."""

import json
import math
from pathlib import Path

import pytest
import torch

from longspan.rope.export import config_rope, read_rope
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.llama3 import Llama3
from longspan.rope.methods.longrope2 import Longrope2
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.rope.rotate import served_omegas
from longspan.rope.serving import ENGINES, sglang, vllm
from longspan.utils.errors import ModelError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "frequencies.json").read_text())
LLAMA3 = RopeBase(rotary_dim=128, theta=5e5, trained_length=8192)
SIZES = {"head_dim": 64, "rope_theta": 1e4, "max_position_embeddings": 4096}


def config_of(**rope):
    return SIZES | {"rope_scaling": rope}


def plain(dim=64, theta=1e4):
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GOLDEN)
def test_published_models(engine, name):
    """At full length engines rotate published models as their formulas say, with the attention factor of each."""
    entry = GOLDEN[name]
    rope = dict(entry["config"]["rope_scaling"] or {})
    if rope.get("type") == "su":  # a name that engines know for the Phi family only
        rope["type"] = "longrope"
    config = entry["config"] | {"rope_scaling": rope or None}
    found = ENGINES[engine](config, config["max_position_embeddings"] + 2)
    scale = [theta_power(config, i) for i in range(len(found.omegas))]
    for ours, wanted, unscaled in zip(found.omegas.tolist(), entry["omegas"], scale, strict=True):
        assert abs(ours - wanted) <= 1e-6 * unscaled
    assert found.attention_factor == pytest.approx(entry["attention_factor"], rel=1e-9)


def theta_power(config, pair):
    share = config.get("partial_rotary_factor", 1)
    dim = int((config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]) * share)
    return config.get("rope_theta", 1e4) ** (-2 * pair / dim)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", [Yarn(), Llama3(), ThetaLaw(), Longrope2(excess=0.1, slope=0.2)])
def test_the_universal_form_is_read_to_the_last_bit(engine, method):
    frequencies = method.frequencies(LLAMA3, 1_048_576)
    config = json.loads(json.dumps(config_rope(frequencies, head_dim=128)))
    for length in (17, 8192, 8194, 1_048_576):
        found = ENGINES[engine](config, length)
        assert torch.equal(found.omegas, served_omegas(frequencies))
        assert found.attention_factor == frequencies.attention_factor


@pytest.mark.parametrize("engine", ENGINES)
def test_a_family_has_the_theta_that_its_files_leave_out(engine):
    bare = {key: value for key, value in SIZES.items() if key != "rope_theta"}
    for kind, theta in (("smollm3", 2e6), ("llama", 1e4)):
        served = ENGINES[engine]({**bare, "model_type": kind}, 4096)
        assert served.omegas.tolist() == pytest.approx(plain(theta=theta), rel=1e-6)


def test_three_results_for_dynamic():
    config = config_of(rope_type="dynamic", factor=4.0)
    assert vllm(config, 16_384).omegas.tolist() == pytest.approx(plain(), rel=3e-7)  # scales nothing
    theta = 1e4 * (16 - 4 + 1) ** (64 / 62)
    assert sglang(config, 16_384).omegas.tolist() == pytest.approx(plain(theta=theta), rel=3e-7)
    theirs = 1e4 * (4 * 16_384 / 4096 - 3) ** (64 / 62)  # transformers, rebuilt for 16,384 tokens
    assert abs(theta / theirs - 1) < 1e-12  # SGLang's is that of four times the length, at every length
    assert read_rope(config | {"max_position_embeddings": 16_384}).theta != pytest.approx(theta)


def test_yarn_attention_factor_is_lost_in_sglang():
    config = config_of(rope_type="yarn", factor=8.0, original_max_position_embeddings=512, attention_factor=1.0)
    assert vllm(config, 4096).attention_factor == 1.0
    assert sglang(config, 4096).attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    both = config_of(rope_type="yarn", factor=8.0, mscale=0.7, mscale_all_dim=0.3)
    for engine in ENGINES.values():
        scale = (0.07 * math.log(8) + 1) / (0.03 * math.log(8) + 1)
        assert engine(both, 4096).attention_factor == pytest.approx(scale)
    assert vllm(config_of(rope_type="yarn", factor=1.0), 4096).attention_factor == 1.0


def test_longrope_switches_and_ignores_attention_factor():
    factors = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    config = config_of(rope_type="longrope", **factors, attention_factor=1.0, original_max_position_embeddings=1024)
    formula = math.sqrt(1 + math.log(4) / math.log(1024))
    assert {engine(config, 4096).attention_factor for engine in ENGINES.values()} == {formula}
    told = config["rope_scaling"] | {"short_mscale": 1.1, "long_mscale": 1.2}
    for engine, first_long in ((vllm, 1025), (sglang, 1026)):
        for length, factor, scale in ((first_long - 1, 1, 1.1), (first_long, 2, 1.2)):
            found = engine(config | {"rope_scaling": told}, length)
            assert found.omegas.tolist() == pytest.approx([o / factor for o in plain()], rel=3e-7)
            assert found.attention_factor == scale


def test_the_original_length_beside_wins():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 4096}
    config = SIZES | {"rope_parameters": rope, "original_max_position_embeddings": 512}
    wanted = Yarn(factor=8).frequencies(RopeBase(rotary_dim=64, theta=1e4, trained_length=512), 4096)
    for engine in ENGINES.values():
        assert engine(config, 4096).omegas.tolist() == pytest.approx(wanted.omegas, rel=1e-5)


@pytest.mark.parametrize(
    ("engine", "rope", "text"),
    [
        ("vLLM", {"rope_type": "linear", "factor": 4}, "written as a float"),
        ("SGLang", {"rope_type": "linear", "factor": 4}, "written as a float"),
        ("vLLM", {"rope_type": "proportional"}, "does not serve the rope type 'proportional'"),
        ("SGLang", {"rope_type": "proportional"}, "does not serve the rope type 'proportional'"),
        ("SGLang", {"rope_type": "longrope", "short_factor": [1.0] * 32}, "missing key 'long_factor'"),
        ("vLLM", {"rope_type": "llama3", "factor": 4.0}, "missing key 'low_freq_factor'"),
    ],
)
def test_what_an_engine_refuses(engine, rope, text):
    with pytest.raises(ModelError) as caught:
        ENGINES[engine](config_of(**rope), 8192)
    assert text in str(caught.value)
    assert engine in str(caught.value)
    assert caught.value.code == "export.engine"
    if rope["rope_type"] == "linear":
        found = ENGINES[engine](config_of(**rope | {"factor": 4.0}), 8192)
        assert found.omegas.tolist() == pytest.approx([o / 4 for o in plain()], rel=3e-7)
