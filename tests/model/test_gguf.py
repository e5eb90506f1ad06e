"""The GGUF reader against blocks worked out by hand, a file built here byte by byte, and hostile bytes."""

import contextlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.model.gguf import GGUF, dequantise, read_gguf
from longspan.model.smollm2 import Unpermuted, read_config, read_tensors, tokenizer_files
from longspan.model.tensorfile import Held
from longspan.utils.errors import ModelError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(item: Any) -> bytes:
    """Type and value, with the types that llama.cpp's converter chooses."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    inner = value(item[0])
    kind = struct.unpack("<I", inner[:4])[0]
    return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(value(part)[4:] for part in item)


def gguf_file(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> Path:
    """A file of version 3. Tensors: name to (type number, numpy shape, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += raw
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def test_q4_1_by_hand() -> None:
    nibbles = list(range(16))
    raw = struct.pack("<ee", 0.5, -2.0) + bytes(low | (15 - low) << 4 for low in nibbles)
    wanted = [0.5 * low - 2.0 for low in nibbles] + [0.5 * (15 - low) - 2.0 for low in nibbles]
    found = dequantise(np.frombuffer(raw * 2, np.uint8), "Q4_1")
    assert found.dtype == np.float32
    assert found.tolist() == wanted * 2


def test_q8_0_by_hand() -> None:
    quants = [-128, -1, 0, 1, 127, *range(-13, 14)]
    raw = struct.pack("<e32b", 0.25, *quants)
    assert dequantise(np.frombuffer(raw, np.uint8), "Q8_0").tolist() == [0.25 * q for q in quants]


@pytest.mark.parametrize(("kind", "letter"), [("F32", "f"), ("F16", "e")])
def test_plain_types(kind: str, letter: str) -> None:
    raw = struct.pack(f"<3{letter}", 1.5, -0.25, 1024.0)
    assert dequantise(np.frombuffer(raw, np.uint8), kind).tolist() == [1.5, -0.25, 1024.0]


@settings(max_examples=50, deadline=None)
@given(heads=st.integers(1, 5), pairs=st.integers(1, 8), width=st.integers(1, 5))
def test_unpermuted_undoes_what_llama_cpp_does(heads: int, pairs: int, width: int) -> None:
    """llama.cpp's converter: reshape(heads, 2, pairs, width).swapaxes(1, 2), written out here row by row."""
    original = torch.randn(heads * 2 * pairs, width)
    permuted = torch.empty_like(original)
    for head in range(heads):
        for pair in range(pairs):
            for half in range(2):
                permuted[head * 2 * pairs + 2 * pair + half] = original[head * 2 * pairs + half * pairs + pair]
    assert torch.equal(Unpermuted(Held(permuted), heads).read(), original)


def test_reads_metadata_and_tensors(tmp_path: Path) -> None:
    metadata = {
        "a.text": "naïve",
        "a.flag": True,
        "a.count": 7,
        "a.number": 0.5,
        "a.list": [1, 2],
        "a.words": ["x", ""],
    }
    weights = np.arange(12, dtype="<f4").reshape(3, 4)
    block = struct.pack("<e32b", 2.0, *range(32))
    tensors = {"plain": (0, (3, 4), weights.tobytes()), "packed": (8, (2, 32), block * 2)}
    found = read_gguf(gguf_file(tmp_path / "a.gguf", metadata, tensors))
    assert found.metadata == metadata
    assert found.tensors["plain"].read().tolist() == weights.tolist()
    assert found.tensors["packed"].shape == (2, 32)
    assert found.tensors["packed"].read().tolist() == [[2.0 * q for q in range(32)]] * 2


def one_tensor(*, kind: int = 0, dims: bytes = struct.pack("<IQ", 1, 4), offset: int = 0, count: int = 1) -> bytes:
    record = text("w") + dims + struct.pack("<IQ", kind, offset)
    head = b"GGUF" + struct.pack("<IQQ", 3, count, 0) + record * count
    return head + b"\0" * (-len(head) % 32) + b"\0" * 16


def one_pair(rest: bytes, *, key: bytes = text("k")) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + rest


HOSTILE = {
    "empty": b"",
    "another format": b"PK\3\4" + b"\0" * 60,
    "old version": b"GGUF" + struct.pack("<IQQ", 2, 0, 0),
    "ends early": b"GGUF" + struct.pack("<IQ", 3, 1),
    "2^60 tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "2^60 pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "a key of 2^62 bytes": one_pair(b"", key=struct.pack("<Q", 2**62)),
    "a key that is no text": one_pair(struct.pack("<II", 4, 1), key=struct.pack("<Q", 2) + b"\xff\xfe"),
    "an unknown type": one_pair(struct.pack("<I", 99)),
    "an array of 2^60 numbers": one_pair(struct.pack("<IIQ", 9, 4, 2**60)),
    "an array of 2^60 texts": one_pair(struct.pack("<IIQ", 9, 8, 2**60)),
    "an array of arrays": one_pair(struct.pack("<IIQ", 9, 9, 1)),
    "a key twice": b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (text("k") + struct.pack("<II", 4, 1)) * 2,
    "alignment 3": one_pair(struct.pack("<II", 4, 3), key=text("general.alignment")),
    "alignment 0": one_pair(struct.pack("<II", 4, 0), key=text("general.alignment")),
    "a tensor twice": one_tensor(count=2),
    "no dims": one_tensor(dims=struct.pack("<I", 0)),
    "nine dims": one_tensor(dims=struct.pack("<I9Q", 9, *[1] * 9)),
    "an empty dim": one_tensor(dims=struct.pack("<IQ", 1, 0)),
    "2^240 weights": one_tensor(dims=struct.pack("<I4Q", 4, *[2**60] * 4)),
    "a type it cannot read": one_tensor(kind=14),
    "half a block": one_tensor(kind=8, dims=struct.pack("<IQ", 1, 16)),
    "beyond the end": one_tensor(offset=32),
    "not aligned": one_tensor(offset=4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelError) as error:
        read_gguf(path)
    assert error.value.code == "model.gguf"


def test_overlapping_tensors(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "a.gguf", {}, {"a": (0, (8,), b"\0" * 32), "b": (0, (8,), b"\0" * 32)})
    content = path.read_bytes()
    end = content.rindex(struct.pack("<IQ", 0, 32))  # the second tensor's type and offset
    path.write_bytes(content[:end] + struct.pack("<IQ", 0, 0) + content[end + 12 :])
    with pytest.raises(ModelError, match="overlaps"):
        read_gguf(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read_gguf(tmp_path / "none.gguf")
    assert error.value.code == "model.missing"


@settings(max_examples=50, deadline=None)
@given(flip=st.integers(0, 2999), bit=st.integers(0, 7), keep=st.none() | st.integers(0, 10**5))
def test_any_flip_and_cut_of_the_header_is_read_or_refused(
    flip: int, bit: int, keep: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = smol(tmp_path_factory.mktemp("flip") / "a.gguf")
    content = bytearray(path.read_bytes())
    content[flip] ^= 1 << bit
    path.write_bytes(content[:keep])
    with contextlib.suppress(ModelError):
        read_gguf(path)


TOKENS = ["<|end|>", "<|start|>", "<|stop|>", *"0123456789", "a", "b", "ab", "Ġ", "Ġa", "Ċ", "abab"]
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 9.99999975e-6,
    "llama.rope.dimension_count": 8,
    "llama.rope.freq_base": 100000.0,
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["a b", "Ġ a", "ab ab"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}
SIZES = {
    "attn_q": (32, 32),
    "attn_k": (16, 32),
    "attn_v": (16, 32),
    "attn_output": (32, 32),
    "attn_norm": (32,),
    "ffn_norm": (32,),
    "ffn_gate": (64, 32),
    "ffn_up": (64, 32),
    "ffn_down": (32, 64),
}


def smol(path: Path, *, drop: str = "", **changes: Any) -> Path:
    """A two-layer file of SmolLM2's form with random float32 weights. `changes` replace metadata, dots as `__`."""
    random = np.random.default_rng(0)
    sizes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), 32), "output_norm": (32,)}
    sizes |= {f"blk.{layer}.{part}": shape for layer in range(2) for part, shape in SIZES.items()}
    tensors = {
        f"{name}.weight": (0, shape, random.standard_normal(shape).astype("<f4").tobytes())
        for name, shape in sizes.items()
        if name != drop
    }
    metadata = METADATA | {key.replace("__", "."): item for key, item in changes.items()}
    return gguf_file(path, {key: item for key, item in metadata.items() if item is not None}, tensors)


def test_smollm2_form(tmp_path: Path) -> None:
    gguf = read_gguf(smol(tmp_path / "a.gguf"))
    config = read_config(gguf)
    assert (config["rms_norm_eps"], config["rope_theta"], config["tie_word_embeddings"]) == (1e-5, 1e5, True)
    tensors = read_tensors(gguf)
    assert len(tensors) == 2 + 2 * len(SIZES)
    raw = gguf.tensors["blk.1.attn_k.weight"].read()
    k = tensors["model.layers.1.self_attn.k_proj.weight"].read()
    # Head 1 of two, d = 8: its rows 8 … 15 hold pair by pair (0, 4), (1, 5) and so on.
    assert torch.equal(k[8:16], raw[[8, 10, 12, 14, 9, 11, 13, 15]])


def test_tokenizer_of_smollm2_form(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    files = tokenizer_files(read_gguf(smol(tmp_path / "a.gguf")))
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    names = [TOKENS[i] for i in tokenizer.encode("abab a\n102<|stop|>ab").ids]
    assert names == ["abab", "Ġa", "Ċ", "1", "0", "2", "<|stop|>", "ab"]
    assert tokenizer.decode(tokenizer.encode("ab a 12").ids) == "ab a 12"
    assert files == tokenizer_files(read_gguf(smol(tmp_path / "b.gguf")))


def convert(gguf: GGUF) -> None:
    read_config(gguf)
    read_tensors(gguf)
    tokenizer_files(gguf)


@pytest.mark.parametrize(
    "changes",
    [
        {"general__architecture": "gpt2"},
        {"tokenizer__ggml__pre": "gpt-2"},
        {"llama__block_count": None},
        {"drop": "blk.1.ffn_up"},
        {"llama__block_count": 1},
        {"tokenizer__ggml__merges": ["a z"]},
        {"tokenizer__ggml__merges": ["a"]},
        {"tokenizer__ggml__tokens": ["a"] * len(TOKENS)},
        {"tokenizer__ggml__token_type": [3]},
    ],
    ids=str,
)
def test_files_of_another_form(changes: dict[str, Any], tmp_path: Path) -> None:
    gguf = read_gguf(smol(tmp_path / "a.gguf", **changes))
    with pytest.raises(ModelError) as error:
        convert(gguf)
    assert error.value.code == "model.gguf"
