"""Logits, loss and every gradient equal transformers' eager float32, for every family and odd shapes.

The oracle is transformers alone: its config classes, its random weights, its files on disk, its forward and backward.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from longspan.config import kinds
from longspan.model.families.base import PACKAGE, family_named
from longspan.model.weights import load, save

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
HALF = ["full_attention", "sliding_attention", "full_attention"]
# (family, length, settings): head ratios 1, 2, 3 and 6, head dims that are not m / h, lengths that divide nothing.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "llama": ("llama", 37, {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama-one-kv-head": ("llama", 23, {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 10}),
    "llama-tied": ("llama", 19, {"num_attention_heads": 3, "head_dim": 8, "tie_word_embeddings": True}),
    "llama-biases": (
        "llama",
        31,
        {"num_attention_heads": 6, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "llama-theta": (
        "llama",
        64,
        {"num_attention_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
    "llama-3.1": (
        "llama",
        29,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "mistral": ("mistral", 33, {"num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": None}),
    "mistral-window": (
        "mistral",
        41,
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14, "sliding_window": 7},
    ),
    "mistral-window-1": ("mistral", 11, {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 1}),
    "qwen2": ("qwen2", 27, {"num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen2-tied-head-dim": (
        "qwen2",
        17,
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 18, "tie_word_embeddings": True},
    ),
    "qwen2-upper-windows": (
        "qwen2",
        35,
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
    ),
    "qwen2-yarn": (
        "qwen2",
        39,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "qwen3": ("qwen3", 27, {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}),
    "qwen3-biases-tied": (
        "qwen3",
        21,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 6,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-mixed-windows": (
        "qwen3",
        43,
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": HALF,
        },
    ),
    "mellum": (
        "mellum",
        43,
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "attention_bias": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "mlp_layer_types": ["dense"] * 3,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "linear", "rope_theta": 30.0, "factor": 2.0},
            },
        },
    ),
    "smollm3": ("smollm3", 33, {"num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 5}),
    "smollm3-listed-yarn": (
        "smollm3",
        37,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "no_rope_layers": [0, 1, 0],
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
}


def random_model(family: str, settings: dict[str, Any], *, seed: int = 0) -> Any:
    """transformers' own small model; every weight, biases and norms too, is random, so that none can hide."""
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            weight.copy_(mean + 0.15 * torch.randn(weight.shape, generator=generator))
    return model


def random_tokens(length: int) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, length), generator=torch.Generator().manual_seed(1))


def loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def test_every_family_has_cases() -> None:
    assert {family for family, _, _ in CASES.values()} == set(kinds(PACKAGE))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_transformers(case: str, tmp_path: Path) -> None:
    family, length, settings = CASES[case]
    theirs, tokens = random_model(family, settings), random_tokens(length)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)

    expected, logits = theirs(tokens).logits, ours(tokens)
    assert expected.std() > 0.5, "logits must differ enough for the tolerance to mean something"
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    loss(expected, tokens).backward()
    loss(logits, tokens).backward()
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    names = family_named(family).names(ours.shape)
    parameters = dict(ours.named_parameters())
    assert {names[name] for name in parameters} == set(gradients)
    for name, weight in parameters.items():
        wanted = gradients[names[name]]
        assert weight.grad is not None
        assert (weight.grad - wanted).norm() <= 1e-5 * wanted.norm() + 1e-6, name


@pytest.mark.parametrize("case", CASES)
def test_saved_folder_gives_transformers_the_same_logits(case: str, tmp_path: Path) -> None:
    family, length, settings = CASES[case]
    theirs, tokens = random_model(family, settings), random_tokens(length)
    theirs.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(theirs)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=0)
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
