"""Each family's config and names: a bijection, the defaults of transformers, and clear refusals."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.config import kinds
from longspan.model.decoder import Decoder
from longspan.model.families.base import PACKAGE, Family, family_named, family_of
from longspan.rope.export import config_rope, read_rope
from longspan.rope.frequencies import Frequencies
from longspan.rope.layertypes import read_layer_type
from longspan.shape import ModelShape, OwnPositions, plain_if_none
from longspan.utils.errors import ModelError

FAMILIES = kinds(PACKAGE)


@st.composite
def shapes(draw: st.DrawFn, family: str) -> ModelShape:
    """Any small shape that the family can express."""
    layers, kv_heads = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    bias, window = draw(st.booleans()), draw(st.integers(1, 100))
    some = st.lists(st.sampled_from([None, window]), min_size=layers, max_size=layers)
    windows = {
        "llama": st.just([None] * layers),
        "mistral": st.sampled_from([[None] * layers, [window] * layers]),
        "qwen2": some,
        "qwen3": some,
        "smollm3": st.just([None] * layers),
        "mellum": some,
    }
    still = st.lists(st.sampled_from([None, OwnPositions(theta=None)]), min_size=layers, max_size=layers)
    windowed = tuple(draw(windows[family]))
    own = plain_if_none(draw(still)) if family == "smollm3" else ()
    if family == "mellum":
        local = OwnPositions(theta=draw(st.floats(2, 1e9)), factor=draw(st.sampled_from([1.0, 8.0])))
        own = plain_if_none([None if entry is None else local for entry in windowed])
    return ModelShape(
        family=family,
        layers=layers,
        width=draw(st.integers(1, 64)),
        heads=kv_heads * draw(st.integers(1, 5)),
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 9)),
        mlp_width=draw(st.integers(1, 99)),
        vocabulary=draw(st.integers(1, 300)),
        norm_epsilon=draw(st.sampled_from([1e-5, 1e-6])),
        tied=draw(st.booleans()),
        qkv_bias=True if family == "qwen2" else bias and family in ("llama", "qwen3", "smollm3", "mellum"),
        out_bias=bias and family in ("llama", "qwen3", "smollm3", "mellum"),
        mlp_bias=draw(st.booleans()) and family in ("llama", "smollm3"),
        qk_norm=family in ("qwen3", "mellum"),
        windows=windowed,
        trained_length=draw(st.integers(2, 2**21)),
        own_positions=own,
    )


def plain_rope(shape: ModelShape) -> dict[str, Any]:
    plain = Frequencies(
        theta=1e4, factors=(1.0,) * (shape.head_dim // 2), attention_factor=1.0, length=8, trained_length=8
    )
    return config_rope(plain, head_dim=shape.head_dim)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_config_says_the_whole_shape(name: str, data: st.DataObject) -> None:
    shape, family = data.draw(shapes(name)), family_named(name)
    config = family.config(shape)
    if shape.own_positions:  # other families say all in `config`, and that comes back without `rope`
        config |= {"rope_parameters": family.rope(shape, plain_rope(shape))["rope_parameters"]}
    assert family.shape(config) == shape
    assert family_of(config) == family


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_names_are_a_bijection_onto_the_decoder(name: str, data: st.DataObject) -> None:
    shape = data.draw(shapes(name))
    names = family_named(name).names(shape)
    assert len(set(names.values())) == len(names)
    plain = Frequencies(
        theta=1e4, factors=(1.0,) * (shape.head_dim // 2), attention_factor=1.0, length=8, trained_length=8
    )
    with torch.device("meta"):
        decoder = Decoder(shape, plain)
    assert set(names) == {parameter for parameter, _ in decoder.named_parameters()}
    assert sum(weight.numel() for weight in decoder.parameters()) == shape.parameters


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_names_and_sizes_are_those_of_transformers(name: str, data: st.DataObject) -> None:
    transformers = pytest.importorskip("transformers")
    shape = data.draw(shapes(name))
    # Its Llama config refuses a width that the heads do not divide, whatever head_dim says.
    shape = dataclasses.replace(shape, width=shape.width * shape.heads)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(
                name, **without(family_named(name).config(shape), "model_type"), pad_token_id=None
            )
        )
    assert set(family_named(name).names(shape).values()) == {parameter for parameter, _ in model.named_parameters()}
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_keys_mean_what_they_mean_to_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    needed = {"mlp_layer_types": ["dense"] * 28} if name == "mellum" else {}
    theirs = transformers.AutoConfig.for_model(name, **needed).to_dict()
    assert family_named(name).shape(needed) == family_named(name).shape(theirs)
    unlike = ("architectures", "head_dim", "layer_types", "max_window_layers")
    for key in family_named(name).config(family_named(name).shape(needed)):
        if key not in unlike and (name, key) != ("mellum", "sliding_window"):  # no window where no layer has one
            assert family_named(name).config(family_named(name).shape(needed))[key] == theirs[key], key


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def test_one_published_config_each() -> None:
    """Values from the models' own pages: Llama 3.2 1B, Mistral 7B v0.1, Qwen2.5 0.5B, Qwen3 0.6B, SmolLM3 3B."""
    llama = family_named("llama").shape(
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        }
    )
    mistral = family_named("mistral").shape({"sliding_window": 4096})
    qwen2 = family_named("qwen2").shape(
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "sliding_window": 32768,
            "use_sliding_window": False,
        }
    )
    qwen3 = family_named("qwen3").shape(
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        }
    )
    assert llama.parameters == 1_235_814_400
    assert mistral.parameters == 7_241_732_096
    assert mistral.windows == (4096,) * 32
    assert qwen2.parameters == 494_032_768
    assert qwen2.windows == (None,) * 24
    assert qwen3.parameters == 596_049_920
    smollm3 = family_named("smollm3").shape({"vocab_size": 128256, "no_rope_layers": [1, 1, 1, 0] * 9})
    assert smollm3.parameters == 3_075_098_624
    assert [smollm3.position_set(layer) for layer in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert smollm3 == family_named("smollm3").shape({})  # every fourth layer is what a missing key means


def test_a_theta_that_is_not_named() -> None:
    transformers = pytest.importorskip("transformers")
    for name in FAMILIES:
        theirs = transformers.AutoConfig.for_model(name).to_dict()["rope_parameters"]
        sizes = {"model_type": name, "max_position_embeddings": 64, "head_dim": 8}
        for kind in ("full_attention", "sliding_attention"):
            wanted = theirs.get(kind, theirs)["rope_theta"]
            assert read_rope(read_layer_type(sizes, kind)).theta == wanted, (name, kind)


DENSE: dict[str, Any] = {"mlp_layer_types": ["dense"] * 28}
LOCALS: dict[str, Any] = DENSE | {"layer_types": ["sliding_attention", "full_attention"] * 14}


def layered(**local: Any) -> dict[str, Any]:
    return {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4, **local}}


BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("quantized", "llama", {"quantization_config": {"bits": 4}}, "model.quantized"),
    ("another family", "gemma3", {}, "model.unknown-family"),
    ("experts", "mixtral", {}, "model.unknown-family"),
    ("another head", "llama", {"architectures": ["LlamaForSequenceClassification"]}, "model.unknown-architecture"),
    ("another activation", "llama", {"hidden_act": "gelu"}, "model.config"),
    ("partial rotation", "llama", {"partial_rotary_factor": 0.5}, "model.config"),
    ("partial rotation inside", "llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "model.config"),
    ("text for a number", "llama", {"hidden_size": "4096"}, "model.config"),
    ("true for a number", "llama", {"num_hidden_layers": True}, "model.config"),
    ("number for a flag", "llama", {"attention_bias": 1}, "model.config"),
    ("null for a number", "llama", {"vocab_size": None}, "model.config"),
    ("zero layers", "llama", {"num_hidden_layers": 0}, "model.config"),
    ("a million layers", "llama", {"num_hidden_layers": 10**6}, "model.config"),
    ("huge vocabulary", "llama", {"vocab_size": 2**40}, "model.config"),
    ("huge heads", "llama", {"num_attention_heads": 2**20, "head_dim": 2**10}, "model.config"),
    ("more heads than width", "llama", {"hidden_size": 16}, "model.config"),
    ("odd head dim", "llama", {"head_dim": 15}, "model.config"),
    ("kv heads that divide nothing", "llama", {"num_key_value_heads": 5}, "model.config"),
    ("negative epsilon", "llama", {"rms_norm_eps": -1e-6}, "model.config"),
    ("endless epsilon", "llama", {"rms_norm_eps": 10**400}, "model.config"),
    ("infinite epsilon", "llama", {"rms_norm_eps": float("inf")}, "model.config"),
    ("no window at all", "mistral", {"sliding_window": 0}, "model.config"),
    ("mixed layers", "mistral", {"layer_types": ["full_attention"] * 32}, "model.config"),
    ("window layer without window", "qwen2", {"layer_types": ["sliding_attention"] * 32}, "model.config"),
    ("too few layer types", "qwen3", {"layer_types": ["full_attention"]}, "model.config"),
    ("unknown layer type", "qwen3", {"layer_types": ["chunked_attention"] * 32}, "model.config"),
    ("experts", "mellum", {}, "model.config"),
    ("unknown kind of layer", "mellum", DENSE | {"layer_types": ["chunked_attention"] * 28}, "model.config"),
    ("no window", "mellum", LOCALS | {"sliding_window": None}, "model.config"),
    ("a window's own YaRN", "mellum", LOCALS | {"rope_parameters": layered(rope_type="yarn")}, "model.rope-nested"),
    ("one kind alone", "mellum", LOCALS | {"rope_parameters": {"full_attention": {}}}, "model.rope-nested"),
    ("rope_scaling beside", "mellum", LOCALS | {"rope_scaling": {"factor": 2.0}}, "model.rope-nested"),
    ("partial windows", "mellum", LOCALS | {"rope_parameters": layered(partial_rotary_factor=0.5)}, "model.config"),
    ("windows beside no positions", "smollm3", {"use_sliding_window": True}, "model.config"),
    ("too few layers with positions", "smollm3", {"no_rope_layers": [1, 0]}, "model.config"),
    ("a layer half with positions", "smollm3", {"no_rope_layers": [0.5] * 36}, "model.config"),
    ("layers before the first", "qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "model.config"),
]


@pytest.mark.parametrize(("model_type", "config", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_refusals(model_type: str, config: dict[str, Any], code: str) -> None:
    config = {"model_type": model_type, **config}
    with pytest.raises(ModelError) as error:
        family_of(config).shape(config)
    assert error.value.code == code
    assert error.value.fix


def test_refusal_of_a_family_lists_what_is_there() -> None:
    with pytest.raises(
        ModelError, match=r"no model family 'qwen4' \(have: llama, mellum, mistral, qwen2, qwen3, smollm3\)"
    ):
        family_named("qwen4")


def test_family_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Family()  # type: ignore[abstract]
