"""Folders in and out: equal after a round trip, equal bytes, small memory, and a clear refusal for every bad folder."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weights_toys import SCALED, SHAPE, assert_equal, edit, new, tied

from longspan.model.families.base import family_named
from longspan.model.folder import INDEX, WHOLE
from longspan.model.weights import load, save
from longspan.utils.errors import ModelError, StorageError


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
    edit(
        base / "config.json",
        lambda c: c.update(eos_token_id=7, transformers_version="4.0", _name_or_path="elsewhere/x"),
    )
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
    """Counted, not measured: while one tensor of the file is read, no other is alive that is not the model's own."""
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
    load(tmp_path / "out", dtype=torch.bfloat16)
    assert len(alive) == len(list(new().parameters()))


def test_what_is_only_asked_has_no_gradients_and_the_type_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longspan.model import weights

    save(new(), tmp_path / "out")
    decoder = weights.load_to_read(tmp_path / "out", "cpu")
    assert {weight.dtype for weight in decoder.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in decoder.parameters())
    asked: list[torch.dtype] = []

    def noted(folder: Path, *, device: str, dtype: torch.dtype) -> object:
        asked.append(dtype)
        return new()

    monkeypatch.setattr(weights, "load", noted)
    weights.load_to_read(tmp_path / "out", "cuda")
    assert asked == [torch.bfloat16]
