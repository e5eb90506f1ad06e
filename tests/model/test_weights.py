"""Folders in and out: equal after a round trip, equal bytes, small memory, and a clear refusal for every bad folder."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longspan.model.decoder import Decoder
from longspan.model.families.base import family_named
from longspan.model.folder import INDEX, WHOLE
from longspan.model.weights import load, save
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape
from longspan.utils.errors import ModelError, StorageError

SHAPE = ModelShape(
    family="qwen3",
    layers=2,
    width=12,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=20,
    vocabulary=33,
    norm_epsilon=1e-6,
    tied=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=False,
    qk_norm=True,
    windows=(None, 5),
    trained_length=16,
)
PLAIN = Frequencies(theta=1e4, factors=(1.0,) * 3, attention_factor=1.0, length=16, trained_length=16)
SCALED = Frequencies(theta=1e4, factors=(1.0, 1.5, 4.0), attention_factor=1.25, length=64, trained_length=16)


def new(shape: ModelShape = SHAPE, frequencies: Frequencies = PLAIN) -> Decoder:
    decoder = Decoder(shape, frequencies)
    decoder.initialise(0)
    return decoder


def tied_shape() -> ModelShape:
    return family_named("llama").shape(
        {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 9,
            "tie_word_embeddings": True,
            "max_position_embeddings": 16,
        }
    )


def tied() -> Decoder:
    return new(
        tied_shape(), Frequencies(theta=1e4, factors=(1.0,) * 2, attention_factor=1.0, length=16, trained_length=16)
    )


def assert_equal(first: Decoder, second: Decoder) -> None:
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("shards", [1, 2, 9])
def test_round_trip(shards: int, tmp_path: Path) -> None:
    decoder = new(frequencies=SCALED)
    bytes_total = 4 * SHAPE.parameters
    save(decoder, tmp_path / "out", max_shard_bytes=bytes_total if shards == 1 else bytes_total // shards)
    again = load(tmp_path / "out")
    assert_equal(decoder, again)
    assert again.frequencies == SCALED
    assert again.shape.windows == SHAPE.windows
    assert (tmp_path / "out" / INDEX).exists() is (shards > 1)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) >= shards
    assert not list(tmp_path.glob(".*")), "nothing is left beside the folder"


def test_safetensors_own_reader_reads_ours(tmp_path: Path) -> None:
    decoder = new()
    save(decoder, tmp_path / "out", max_shard_bytes=2000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    names = family_named("qwen3").names(SHAPE)
    assert set(index["weight_map"]) == set(names.values())
    assert index["metadata"]["total_size"] == 4 * SHAPE.parameters
    for ours, weight in decoder.named_parameters():
        with safe_open(tmp_path / "out" / index["weight_map"][names[ours]], "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert torch.equal(file.get_tensor(names[ours]), weight)


def test_we_read_what_safetensors_own_writer_wrote(tmp_path: Path) -> None:
    save(new(), tmp_path / "out")
    path = tmp_path / "out" / WHOLE
    tensors = load_file(path)
    path.unlink()
    save_file(tensors, path)
    assert_equal(new(), load(tmp_path / "out"))


def test_limit_of_a_shard_is_kept(tmp_path: Path) -> None:
    save(new(), tmp_path / "out", max_shard_bytes=3000)
    for path in (tmp_path / "out").glob("*.safetensors"):
        sizes = [tensor.nbytes for tensor in load_file(path).values()]
        assert sum(sizes) <= 3000 or len(sizes) == 1


def test_same_decoder_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(new(), tmp_path / name, max_shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_out_and_in(dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = new()
    save(decoder, tmp_path / "out", dtype=dtype)
    assert {weight.dtype for weight in load_file(tmp_path / "out" / WHOLE).values()} == {dtype}
    again = load(tmp_path / "out")
    for name, weight in decoder.named_parameters():
        assert torch.equal(again.state_dict()[name], weight.to(dtype).float())
    assert {weight.dtype for weight in load(tmp_path / "out", dtype=dtype).parameters()} == {dtype}
    save(load(tmp_path / "out", dtype=dtype), tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text())["torch_dtype"] == str(dtype)[6:]


def test_tied_head_is_not_written(tmp_path: Path) -> None:
    save(tied(), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / WHOLE)
    assert_equal(tied(), load(tmp_path / "out"))


def test_copy_of_a_tied_embedding_and_old_rotary_tables_are_passed_over(tmp_path: Path) -> None:
    save(tied(), tmp_path / "out")
    path = tmp_path / "out" / WHOLE
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, path)
    assert_equal(tied(), load(tmp_path / "out"))


def test_what_travels_and_what_does_not(tmp_path: Path) -> None:
    save(new(), tmp_path / "base")
    base = tmp_path / "base"
    edit(base / "config.json", lambda c: c.update(eos_token_id=7, transformers_version="4.0", _name_or_path="/home/x"))
    edit(base / "config.json", lambda c: c.update(dtype="float16", my_note="kept"))
    (base / "tokenizer.json").write_text('{"model": 1}')
    (base / "tokenizer_config.json").write_text('{"model_max_length": 16, "eos_token": "é"}')
    (base / "chat_template.jinja").write_text("{{ x }}")
    (base / "generation_config.json").write_text('{"eos_token_id": 7}')
    (base / "modeling_evil.py").write_text("raise SystemExit")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    decoder = load(base)
    decoder.frequencies = SCALED
    save(decoder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {
        "eos_token": "é",
        "model_max_length": 64,
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["eos_token_id"], config["my_note"], config["max_position_embeddings"]) == (7, "kept", 64)
    assert not {"_name_or_path", "dtype", "transformers_version"} & config.keys()
    assert (config["use_sliding_window"], config["sliding_window"]) == (True, 5)


def test_a_new_model_says_that_it_has_no_special_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save(tied(), tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)


def test_snapshot_of_the_hub_cache(tmp_path: Path) -> None:
    """There every file of a snapshot is a link to `../../blobs/`."""
    save(new(), tmp_path / "plain")
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate((tmp_path / "plain").iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert_equal(new(), load(snapshot))


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


@pytest.mark.parametrize("there", ["file", "folder"])
def test_a_model_is_never_overwritten(there: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if there == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    with pytest.raises(ModelError) as error:
        save(new(), target)
    assert error.value.code == "model.exists"
    assert (target if there == "file" else target / "mine.txt").read_text() == "mine"


def test_an_empty_folder_and_the_rest_of_a_killed_save_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("x")
    save(new(), tmp_path / "out")
    assert_equal(new(), load(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (1e38, torch.float16)])
def test_weights_that_are_not_finite(value: float, dtype: torch.dtype | None, tmp_path: Path) -> None:
    decoder = new()
    with torch.no_grad():
        decoder.norm.weight[3] = value
    with pytest.raises(ModelError) as error:
        save(decoder, tmp_path / "out", dtype=dtype)
    assert error.value.code == "model.not-finite"
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as error:
        save(new(), tmp_path / "out")
    assert error.value.code == "storage.full"
    assert not list(tmp_path.iterdir())


def test_shape_that_the_family_cannot_say(tmp_path: Path) -> None:
    import dataclasses

    shape = dataclasses.replace(SHAPE, windows=(3, 5))
    with pytest.raises(ModelError) as error:
        save(new(shape), tmp_path / "out")
    assert error.value.code == "model.inexpressible"


def test_source_that_is_gone(tmp_path: Path) -> None:
    decoder = new()
    decoder.source = tmp_path / "gone"
    with pytest.raises(ModelError) as error:
        save(decoder, tmp_path / "out")
    assert error.value.code == "model.source"


def test_memory_of_load_is_the_model_and_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not measured: while one tensor of the file is read, no other is alive."""
    import weakref

    from longspan.model.tensorfile import Entry

    save(new(), tmp_path / "out")
    alive: list[weakref.ref[torch.Tensor]] = []
    plain = Entry.read

    def counted(self: Entry) -> torch.Tensor:
        assert not any(reference() is not None for reference in alive)
        tensor = plain(self)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Entry, "read", counted)
    load(tmp_path / "out")
    assert len(alive) == len(list(new().parameters()))
