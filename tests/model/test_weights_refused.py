"""Folders that must not be read: each is refused with its code, before a weight is read."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights_toys import edit, new

from longspan.model.folder import INDEX, WHOLE
from longspan.model.weights import load, save
from longspan.utils.errors import ModelError


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / WHOLE)
    change(tensors)
    (folder / WHOLE).unlink()
    save_file(tensors, folder / WHOLE)


def header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON header of the weights and leave the data as they are."""
    content = (folder / WHOLE).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    (folder / WHOLE).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def raw_header(folder: Path, text: bytes, *, length: int | None = None) -> None:
    (folder / WHOLE).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def truncate(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size + by)


def config(folder: Path, **changes: Any) -> None:
    edit(folder / "config.json", lambda content: content.update(changes))


def only_pickle(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "pytorch_model.bin")


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def write(path: Path, text: str) -> None:
    path.write_text(text)


Q = "model.layers.0.self_attn.q_proj.weight"
BAD_WHOLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "model.config"),
    "config is no JSON": (lambda f: write(f / "config.json", "{"), "model.config"),
    "config is a list": (lambda f: write(f / "config.json", "[]"), "model.config"),
    "config says a key twice": (lambda f: write(f / "config.json", '{"a": 1, "a": 2}'), "model.config"),
    "config nests without end": (lambda f: write(f / "config.json", "[" * 10**6), "model.config"),
    "auto_map": (lambda f: config(f, auto_map={"AutoModel": "evil.Model"}), "model.remote-code"),
    "auto_map of the tokenizer": (
        lambda f: write(f / "tokenizer_config.json", '{"auto_map": {}}'),
        "model.remote-code",
    ),
    "unknown family": (lambda f: config(f, model_type="gemma"), "model.unknown-family"),
    "quantized": (lambda f: config(f, quantization_config={"bits": 4}), "model.quantized"),
    "unknown rope": (lambda f: config(f, rope_scaling={"rope_type": "magic"}), "model.rope-type"),
    "no weights": (lambda f: (f / WHOLE).unlink(), "model.missing"),
    "only a pickle": (only_pickle, "model.pickle"),
    "weights are a folder": (lambda f: ((f / WHOLE).unlink(), (f / WHOLE).mkdir()), "model.damaged"),
    "weights are empty": (lambda f: (f / WHOLE).write_bytes(b""), "model.damaged"),
    "truncated by one byte": (lambda f: truncate(f / WHOLE, -1), "model.damaged"),
    "one byte too many": (lambda f: truncate(f / WHOLE, 1), "model.damaged"),
    "truncated in the header": (lambda f: os.truncate(f / WHOLE, 100), "model.damaged"),
    "header of 2^63 bytes": (lambda f: raw_header(f, b"{}", length=2**63), "model.damaged"),
    "header is no JSON": (lambda f: raw_header(f, b"\xff{}"), "model.damaged"),
    "header is a list": (lambda f: raw_header(f, b"[]"), "model.damaged"),
    "header nests without end": (lambda f: raw_header(f, b"[" * 10**6), "model.damaged"),
    "header says a key twice": (lambda f: raw_header(f, b'{"a": {}, "a": {}}'), "model.damaged"),
    "tensor of a list of types": (lambda f: header(f, lambda t: t[Q].update(dtype=["F32"])), "model.dtype"),
    "tensor without shape": (lambda f: header(f, lambda t: t[Q].pop("shape")), "model.damaged"),
    "tensor with negative shape": (lambda f: header(f, lambda t: t[Q].update(shape=[-24, -12])), "model.damaged"),
    "tensor without range": (lambda f: header(f, lambda t: t[Q].pop("data_offsets")), "model.damaged"),
    "range of another size": (lambda f: header(f, lambda t: t[Q].update(shape=[24, 13])), "model.damaged"),
    "overlap": (
        lambda f: header(f, lambda t: t["model.layers.0.self_attn.o_proj.weight"].update(t[Q], shape=[12, 24])),
        "model.damaged",
    ),
    "int8": (lambda f: rewrite(f, lambda t: t.update({Q: torch.zeros(24, 12, dtype=torch.int8)})), "model.dtype"),
    "float64": (lambda f: rewrite(f, lambda t: t.update({Q: t[Q].double()})), "model.dtype"),
    "wrong shape": (lambda f: rewrite(f, lambda t: t.update({Q: torch.zeros(12, 24)})), "model.shape"),
    "config of another width": (lambda f: config(f, hidden_size=24), "model.shape"),
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(Q)), "model.missing-tensor"),
    "more layers in the config": (
        lambda f: config(f, num_hidden_layers=3, layer_types=None),
        "model.missing-tensor",
    ),
    "extra tensor": (lambda f: rewrite(f, lambda t: t.update({"lora_A": torch.zeros(1)})), "model.extra-tensor"),
    "fewer layers in the config": (
        lambda f: config(f, num_hidden_layers=1, layer_types=None),
        "model.extra-tensor",
    ),
    "tied, but the head was trained": (lambda f: config(f, tie_word_embeddings=True), "model.tied"),
    "config links out": (lambda f: replace_by_link(f / "config.json"), "model.path"),
    "weights link out": (lambda f: replace_by_link(f / WHOLE), "model.path"),
}


def place(index: dict[str, Any], name: str, file: str) -> None:
    index["weight_map"][name] = file


BAD_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing shard": (lambda f: min(f.glob("*.safetensors")).unlink(), "model.missing"),
    "truncated shard": (lambda f: truncate(max(f.glob("*.safetensors")), -4), "model.damaged"),
    "traversal": (lambda f: edit(f / INDEX, lambda i: place(i, Q, "../elsewhere.safetensors")), "model.path"),
    "absolute": (lambda f: edit(f / INDEX, lambda i: place(i, Q, "/etc/passwd")), "model.path"),
    "pickled shard": (lambda f: edit(f / INDEX, lambda i: place(i, Q, "pytorch_model.bin")), "model.pickle"),
    "shard links out": (lambda f: replace_by_link(max(f.glob("*.safetensors"))), "model.path"),
    "tensor in another shard": (
        lambda f: edit(f / INDEX, lambda i: place(i, Q, max(i["weight_map"].values()))),
        "model.index",
    ),
    "tensor that the index omits": (lambda f: edit(f / INDEX, lambda i: i["weight_map"].pop(Q)), "model.index"),
    "tensor in no shard": (
        lambda f: edit(f / INDEX, lambda i: place(i, "x", min(i["weight_map"].values()))),
        "model.index",
    ),
    "index without map": (lambda f: write(f / INDEX, "{}"), "model.index"),
    "index of numbers": (lambda f: write(f / INDEX, '{"weight_map": {"a": 1}}'), "model.index"),
    "index is no JSON": (lambda f: write(f / INDEX, ""), "model.index"),
    "index says a key twice": (
        lambda f: write(f / INDEX, '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'),
        "model.index",
    ),
}


@pytest.mark.parametrize("name", BAD_WHOLE)
def test_bad_folder(name: str, tmp_path: Path) -> None:
    refuse(tmp_path, *BAD_WHOLE[name], max_shard_bytes=10**9)


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards(name: str, tmp_path: Path) -> None:
    refuse(tmp_path, *BAD_SHARDS[name], max_shard_bytes=4000)


def refuse(tmp_path: Path, spoil: Callable[[Path], Any], code: str, *, max_shard_bytes: int) -> None:
    folder = tmp_path / "model"
    save(new(), folder, max_shard_bytes=max_shard_bytes)
    spoil(folder)
    with pytest.raises(ModelError) as error:
        load(folder)
    assert error.value.code == code
    assert error.value.what
    assert error.value.where
    assert error.value.fix


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(tmp_path / "none")
    assert error.value.code == "model.missing"


def test_nothing_is_read_of_a_bad_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(new(), tmp_path / "out")
    rewrite(tmp_path / "out", lambda tensors: tensors.update({"zz": torch.zeros(1)}))
    monkeypatch.setattr("longspan.model.tensorfile.Entry.read", lambda self: pytest.fail("a weight was read"))
    with pytest.raises(ModelError):
        load(tmp_path / "out")


def test_file_that_shrinks_after_its_check(tmp_path: Path) -> None:
    from longspan.model.tensorfile import read_entries

    save(new(), tmp_path / "out")
    entry = read_entries(tmp_path / "out" / WHOLE)["lm_head.weight"]
    truncate(tmp_path / "out" / WHOLE, -8)
    with pytest.raises(ModelError, match="ends in the middle"):
        entry.read()
