"""Checkpoints over ranks: saved on some, read on others; what happens to one rank, all hear of."""

import hashlib
import json
import pickle
import pickletools
import shutil
from pathlib import Path

import checkpoint_ranks
import pytest
import torch
from checkpoint_ranks import made, small, store_for, whole, wrong
from ranks import collect, end_ranks, run_ranks, start_ranks
from safetensors.torch import load_file, safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as library_save

from longspan.train.shardfiles import SavedTensors
from longspan.utils.errors import CheckpointError, StorageError
from longspan.utils.values import canonical_sha256

# (replicate, shard) over as many ranks; None is one rank with whole tensors.
SAVED = {"whole": None, "1x2": (1, 2), "1x3": (1, 3), "1x4": (1, 4), "2x2": (2, 2)}
READ = SAVED | {"1x1": (1, 1), "2x1": (2, 1)}


def ranks_of(mesh) -> int:
    return 1 if mesh is None else mesh[0] * mesh[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of steps 1 and 2, written by every mesh, half of them while training went on."""
    found = {}
    for number, (name, mesh) in enumerate(SAVED.items()):
        found[name] = tmp_path_factory.mktemp("saved") / name
        saving = ("async", "blocking")[number % 2]
        empty = run_ranks(ranks_of(mesh), checkpoint_ranks.saved, str(found[name]), mesh, saving)
        assert (empty[-1] > 0) == (name == "1x4"), "9 rows over four ranks are 3, 3, 3 and 0"
    return found


@pytest.fixture
def three(folders, tmp_path) -> Path:
    """A copy of what three ranks wrote."""
    return shutil.copytree(folders["1x3"], tmp_path / "three")


@pytest.mark.parametrize("name", READ)
def test_saved_on_any_ranks_and_read_on_any_others(folders, name):
    mesh = READ[name]
    places = [str(folder) for folder in folders.values()]
    for rank in run_ranks(ranks_of(mesh), checkpoint_ranks.loaded, mesh, places, 2):
        assert rank == [[2, []]] * len(SAVED)


def whole_tensors() -> dict[str, torch.Tensor]:
    decoder, states = made(None)
    everything = dict(decoder.named_parameters()) | states.tensors()
    return {name: whole(name, tensor.shape, seed=2, dtype=tensor.dtype) for name, tensor in everything.items()}


@pytest.mark.parametrize("name", SAVED)
def test_every_number_is_written_once_in_plain_files(folders, name):
    """The pieces are put together by their offsets with the library's reader of files."""
    wanted = whole_tensors()
    found = {key: torch.full_like(tensor, 77) for key, tensor in wanted.items()}
    written = dict.fromkeys(wanted, 0)
    folder = folders[name] / "step-000002"
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            places = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
        for key, piece in load_file(path).items():
            written[key] += piece.numel()
            if piece.ndim == 0:
                found[key].copy_(piece)
            else:
                start = places[key]["saved_offsets"][0] if places else 0
                found[key][start : start + len(piece)] = piece
            assert piece.dtype == wanted[key].dtype
    assert written == {key: tensor.numel() for key, tensor in wanted.items()}
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    told = json.loads((folder / "manifest.json").read_text())["content"]
    assert told["versions"]["ranks"] == ranks_of(SAVED[name])
    assert sorted([*told["files"], "manifest.json"]) == sorted(path.name for path in folder.iterdir())


def test_replicas_share_the_work(folders):
    sizes = [path.stat().st_size for path in (folders["2x2"] / "step-000002").glob("*.safetensors")]
    assert len(sizes) == 8
    assert sum(path.stat().st_size for path in (folders["whole"] / "step-000002").iterdir()) * 0.1 < min(sizes)


def looks_like_pickle(content: bytes) -> bool:
    try:
        return len(list(pickletools.genops(content))) > 1
    except Exception:  # noqa: BLE001 - whatever stops the reader, it is no pickle
        return False


@pytest.mark.parametrize("name", SAVED)
def test_nothing_in_the_folder_is_a_pickle(folders, name):
    assert looks_like_pickle(b"(dp0\n.")
    files = [path for path in folders[name].rglob("*") if path.is_file()]
    assert len(files) > 4
    for path in files:
        assert not looks_like_pickle(path.read_bytes()), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            load_file(path)


def hostile(canary: Path) -> bytes:
    """A pickle that makes a folder when it is read."""
    return f"cos\nmkdir\n(V{canary}\ntR.".encode()


def test_planted_pickles_and_strange_files_are_not_read(three, tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(hostile(canary))
    assert canary.exists(), "the planted bytes do what they are meant to"
    canary.rmdir()
    folder = three / "step-000002"
    for name in (".metadata", "__0_0.distcp", "model-00004-of-00004.safetensors", "rng.pt", "optimizer.npy"):
        (folder / name).write_bytes(hostile(canary))
    shutil.copy(three / "step-000001" / "model-00001-of-00003.safetensors", folder / "model.safetensors")
    for mesh in (None, (1, 2)):
        for ((step, faults, _),) in run_ranks(ranks_of(mesh), checkpoint_ranks.newest, [str(three)], mesh):
            assert (step, faults) == (2, [])
    assert not canary.exists()


FAULTS = {  # what the rank itself raises, and what the others do
    "full": (("StorageError", "storage.full"), ("StorageError", "storage.full")),
    "nan": (("ModelError", "model.not-finite"), ("ModelError", "model.not-finite")),
    "bug": (("ValueError", None), ("LongspanError", "checkpoint.rank")),
    "plan": (("LongspanError", "checkpoint.rank"), ("LongspanError", "checkpoint.rank")),
}


@pytest.mark.parametrize("saving", ["blocking", "async"])
def test_an_error_of_one_rank_is_an_error_of_all(tmp_path, saving):
    answers = run_ranks(3, checkpoint_ranks.one_rank_fails, str(tmp_path), list(FAULTS), 1, saving)
    for number, (fault, (own, others)) in enumerate(FAULTS.items()):
        assert tuple(answers[1][number][:2]) == own
        for rank in (0, 2):
            kind, code, what = answers[rank][number]
            assert (kind, code) == others
            assert "rank 1" in what
        folder = tmp_path / fault
        assert sorted(path.name for path in folder.iterdir()) == ["latest.json", "step-000001", "step-000003"]
        decoder, states = made(None)
        store_for(folder).latest().restore(decoder, states)
        assert wrong(decoder, states, 3) == []


def test_ranks_agree_on_values_and_on_the_first_failure():
    for rank, (values, led, failure) in enumerate(run_ranks(3, checkpoint_ranks.agreed)):
        assert values == [{"rank": number, "text": "é" * number} for number in range(3)]
        assert led == "of 0"
        words = "words of 1" if rank == 1 else "rank 1: words of 1"
        assert failure == ["LongspanError", "a.code", words]


def test_ranks_that_see_other_folders_are_refused(tmp_path):
    for rank, failures in enumerate(run_ranks(2, checkpoint_ranks.other_folder, str(tmp_path / "run"))):
        for kind, code, what in failures:
            assert (kind, code) == ("CheckpointError", "checkpoint.not-shared")
            assert what == ("rank 1: " if rank == 0 else "") + "this folder is not the one that rank 0 sees"


def test_damage_is_found_by_all_ranks_alike(folders, tmp_path):
    """A flipped bit, a cut end and a lost file, of every file."""
    cases = {}
    for name in sorted(path.name for path in (folders["1x3"] / "step-000002").iterdir()):
        for how in ("flipped", "cut", "gone"):
            folder = shutil.copytree(folders["1x3"], tmp_path / f"{name}-{how}")
            cases[folder] = name
            path = folder / "step-000002" / name
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.unlink()
            if how != "gone":
                path.write_bytes(content if how == "flipped" else content[:-3])
    assert len(cases) == 3 * 7
    answers = run_ranks(2, checkpoint_ranks.newest, [str(folder) for folder in cases], (1, 2))
    for number, (folder, name) in enumerate(cases.items()):
        found = [rank[number] for rank in answers]
        assert [(step, faults) for step, faults, _ in found] == [(1, [])] * 2
        assert len(found[0][2]) == 1, "rank 0 tells it, once"
        assert name in found[0][2][0]
        assert found[1][2] == []
        names = sorted(entry.name for entry in folder.iterdir())
        assert names == ["latest.json", "step-000001", "step-000002.damaged-1"]


def test_a_disk_that_does_not_answer_one_rank_is_no_damage(three):
    for bad_rank, heard in enumerate(
        zip(*run_ranks(2, checkpoint_ranks.one_rank_cannot_read, str(three)), strict=True)
    ):
        assert [answer[:2] for answer in heard] == [["StorageError", "storage.read"]] * 2
        assert f"rank {bad_rank}" in heard[1 - bad_rank][2]
    assert (three / "step-000002").is_dir()


def rewrite(folder: Path, change) -> None:
    """Change the content of a manifest and give it the hash that fits."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())["content"]
    change(content)
    path.write_text(json.dumps({"sha256": canonical_sha256(content), "content": content}))


def test_a_share_that_is_left_out_is_not_read_over(three):
    """Sizes and hashes agree; the numbers of one rank are missing."""
    rewrite(three / "step-000002", lambda content: content["files"].pop("model-00002-of-00003.safetensors"))
    found = store_for(three).latest()
    decoder, states = made(None)
    with pytest.raises(CheckpointError, match=r"numbers of .* are there") as caught:
        found.restore(decoder, states)
    assert caught.value.code == "checkpoint.damaged"


@pytest.mark.parametrize("name", ["../step-000001/model-00001-of-00003.safetensors", "model.pt", "/etc/hostname"])
def test_a_manifest_cannot_name_other_files(three, name):
    rewrite(three / "step-000002", lambda content: content["files"].update({name: {"bytes": 1, "sha256": ""}}))
    assert store_for(three).latest().progress.step == 1


def test_a_file_that_is_none_of_tensors_is_damage_also_where_its_hash_is_right(three):
    """As whoever rewrites the manifest too may leave it."""
    path = three / "step-000002" / "model-00001-of-00003.safetensors"
    path.write_bytes(b"\xff" * 100)
    record = {"bytes": 100, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite(three / "step-000002", lambda content: content["files"].update({path.name: record}))
    found = store_for(three).latest()
    with pytest.raises(CheckpointError) as caught:
        found.restore(*made(None))
    assert caught.value.code == "checkpoint.damaged"
    path.unlink()
    with pytest.raises(StorageError) as lost:
        found.restore(*made(None))
    assert lost.value.code == "storage.read"


def test_a_file_that_goes_while_it_is_read_is_a_storage_error(three):
    folder = three / "step-000002"
    names = [path.name for path in folder.glob("model-*")]
    tensors = SavedTensors(folder, names)
    for name in names:
        (folder / name).unlink()
    with pytest.raises(StorageError) as caught:
        tensors.fill(dict(small().named_parameters()))
    assert caught.value.code == "storage.read"


def test_files_of_the_library_are_read_too(tmp_path):
    """The library's own writer: an independent hand for the format that the reader expects."""
    wanted = {name: tensor for name, tensor in whole_tensors().items() if "/" not in name}
    with pytest.warns(UserWarning, match="single process"):
        library_save(
            wanted, storage_writer=HuggingFaceStorageWriter(str(tmp_path), save_distributed=True), no_dist=True
        )
    (path,) = tmp_path.iterdir()
    found = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    tensors = SavedTensors(tmp_path, [path.name])
    tensors.fill(found)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert tensors.forms["blocks.0.up.weight"] == "float32 (9, 16)"


@pytest.mark.parametrize("saving", ["blocking", "async"])
def test_a_rank_that_dies_in_a_save_is_named(tmp_path, saving):
    place = tmp_path / "meeting"
    place.mkdir()
    folder = tmp_path / "run"
    processes = start_ranks(2, checkpoint_ranks.one_rank_dies, str(folder), saving, folder=place, deadline_seconds=4.0)
    try:
        good, (kind, code, what) = processes[0][1].recv()
    finally:
        end_ranks(processes)
    assert good
    assert (kind, code) == ("LongspanError", "parallel.lost")
    assert "rank 1 is gone or stopped" in what
    assert store_for(folder).latest().progress.step == 1


KILLS = [
    ("async", 0, range(1, 40, 6)),
    ("async", 1, range(2, 12, 4)),
    pytest.param("blocking", 0, range(1, 40), marks=pytest.mark.slow),
    pytest.param("async", 0, range(1, 40), marks=pytest.mark.slow),
    pytest.param("blocking", 1, range(1, 10), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("saving", "rank", "operations"), KILLS)
def test_killed_at_file_operations_of_a_save_over_ranks(tmp_path, saving, rank, operations):
    """Whatever operation of one rank is its last: one process alone reads a whole checkpoint afterwards."""
    steps = []
    for number in operations:
        folder, place = tmp_path / str(number), tmp_path / f"meeting-{number}"
        place.mkdir()
        arguments = (str(folder), rank, number, saving)
        processes = start_ranks(2, checkpoint_ranks.killed_at, *arguments, folder=place, deadline_seconds=60.0)
        try:
            processes[rank][0].join(60)
            assert processes[rank][0].exitcode in (-9, 0)
            lived = processes[rank][0].exitcode == 0
            if lived:
                assert collect(processes, deadline_seconds=60) == [True, True]
        finally:
            end_ranks(processes)
        decoder, states = made(None)
        found = store_for(folder).latest()
        found.restore(decoder, states)
        assert wrong(decoder, states, found.progress.step) == []
        pointed = json.loads((folder / "latest.json").read_text())["step"]
        assert pointed == found.progress.step, "a look-up mends the pointer"
        store_for(folder).prepare(decoder, states)
        assert not list(folder.glob("*.tmp-*"))
        steps.append(found.progress.step)
    assert lived, "the last number lies behind the last operation"
    assert set(steps) == {2, 3}, "some kills came before the rename, others after it"
