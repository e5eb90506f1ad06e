import errno
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import toy_training
from checkpoint_toys import names, save, state
from safetensors.torch import load_file
from toy_training import decoder, frequencies, run, store

from longspan.train import manifest, shardfiles
from longspan.train.checkpoint import Progress
from longspan.utils.errors import CheckpointError, Interrupted, StorageError

FILES = ("model.safetensors", "optimizer.safetensors", "manifest.json")


def test_what_is_saved_comes_back(tmp_path):
    saving = store(tmp_path)
    model, updater = state(3)
    model.frequencies = frequencies(theta=77.0, length=64)
    progress = Progress(step=12, stage=1, step_in_stage=5, rows_in_stage=20, tokens=999, skipped_in_a_row=1)
    saving.save(progress, decoder=model, updater=updater)
    found = store(tmp_path).latest()
    assert found.progress == progress
    other, other_updater = state(4)
    found.restore(other, other_updater)
    assert other.frequencies == model.frequencies
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
    wanted, got = updater.tensors(), other_updater.tensors()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    weights_only = decoder(5)
    found.restore(weights_only)
    assert torch.equal(weights_only.embed.weight, model.embed.weight)


def test_files_are_plain_safetensors_and_json_with_true_hashes(tmp_path):
    model, updater = state(2)
    store(tmp_path).save(Progress(step=1), decoder=model, updater=updater)
    folder = tmp_path / "checkpoints" / "step-000001"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())
    moments = load_file(folder / "optimizer.safetensors")
    for name in dict(model.named_parameters()):
        assert torch.equal(moments[f"exp_avg/{name}"], updater.tensors()[f"exp_avg/{name}"])
        assert moments[f"step/{name}"] == 1.0
    told = json.loads((folder / "manifest.json").read_text())["content"]
    for name in FILES[:2]:
        content = (folder / name).read_bytes()
        assert told["files"][name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert told["versions"] == toy_training.VERSIONS | {"device": "cpu", "threads": 1, "ranks": 1}
    assert told["identity"] == {"recipe": {"seed": 1}}
    assert told["frequencies"]["theta"] == 100.0


def test_the_newest_are_kept(tmp_path):
    saving = store(tmp_path, keep=3)
    for step in (1, 2, 5, 9, 1_000_000):
        save(saving, step)
    assert names(tmp_path) == ["latest.json", "step-000005", "step-000009", "step-1000000"]
    assert store(tmp_path).latest().progress.step == 1_000_000


def test_retention_counts_whole_checkpoints_only(tmp_path):
    for step in (1, 2, 3):
        save(store(tmp_path, keep=3), step)
    damage(tmp_path / "checkpoints" / "step-000002" / "model.safetensors", 100)
    told = []
    save(store(tmp_path, keep=3, warn=told.append), 4)
    assert names(tmp_path) == ["latest.json", "step-000001", "step-000002.damaged-1", "step-000003", "step-000004"]
    assert "step-000002" in told[0]


def damage(path: Path, position: int, *, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_every_flipped_bit_is_found(tmp_path):
    saving = store(tmp_path)
    save(saving, 1)
    save(saving, 2)
    newest, copy = tmp_path / "checkpoints" / "step-000002", tmp_path / "copy"
    shutil.copytree(newest, copy)
    chance = random.Random(0)
    for _ in range(300):
        path = newest / chance.choice(FILES)
        damage(path, chance.randrange(path.stat().st_size), bit=chance.randrange(8))
        told = []
        assert store(tmp_path, warn=told.append).latest().progress.step == 1, path.name
        assert len(told) == 1
        assert path.name in told[0]
        aside = newest.with_name("step-000002.damaged-1")
        assert aside.is_dir()
        shutil.rmtree(aside)
        shutil.copytree(copy, newest)
    assert store(tmp_path).latest().progress.step == 2


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "empty", "longer", "gone", "swapped"])
def test_files_that_are_not_whole_are_found(tmp_path, name, how):
    saving = store(tmp_path)
    save(saving, 1, seed=1)
    save(saving, 2, seed=2)
    path = tmp_path / "checkpoints" / "step-000002" / name
    content = path.read_bytes()
    changed = {"cut": content[:-7], "empty": b"", "longer": content + b"\0"}
    if how == "gone":
        path.unlink()
    elif how == "swapped":
        path.write_bytes((tmp_path / "checkpoints" / "step-000001" / name).read_bytes())
    else:
        path.write_bytes(changed[how])
    told = []
    assert store(tmp_path, warn=told.append).latest().progress.step == 1
    assert "step-000002.damaged-1" in names(tmp_path)
    assert len(told) == 1


def test_a_checkpoint_under_the_name_of_another_step_is_found(tmp_path):
    save(store(tmp_path), 1)
    shutil.copytree(tmp_path / "checkpoints" / "step-000001", tmp_path / "checkpoints" / "step-000002")
    assert store(tmp_path).latest().progress.step == 1
    assert "step-000002.damaged-1" in names(tmp_path)


def test_damaged_folders_get_new_names_and_none_whole_means_none(tmp_path):
    for _ in range(2):
        save(store(tmp_path), 1)
        (tmp_path / "checkpoints" / "step-000001" / "manifest.json").write_text("{}")
        assert store(tmp_path).latest() is None
    assert names(tmp_path) == ["latest.json", "step-000001.damaged-1", "step-000001.damaged-2"]


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path):
    wanted = run(tmp_path / "unbroken")
    run(tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "step-000007" / "optimizer.safetensors", 5000)
    seen = []
    got = run(tmp_path / "run", hook=seen.append)
    assert [metrics.step for metrics in seen] == [7]
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), wanted.parameters(), strict=True))


@pytest.mark.parametrize("text", ["", "{", '{"folder": "step-000001", "step": 1}', '{"folder": "../x", "step": 9}'])
def test_a_stale_or_damaged_pointer_misleads_nobody(tmp_path, text):
    saving = store(tmp_path)
    save(saving, 1)
    save(saving, 2)
    pointer = tmp_path / "checkpoints" / "latest.json"
    pointer.write_text(text)
    assert store(tmp_path).latest().progress.step == 2
    assert json.loads(pointer.read_text()) == {"folder": "step-000002", "step": 2}


def test_another_recipe_is_refused_with_the_differences(tmp_path):
    save(store(tmp_path, identity={"recipe": {"seed": 1, "stages": [{"length": 8}]}, "data": "abc"}), 1)
    other = store(tmp_path, identity={"recipe": {"seed": 2, "stages": [{"length": 8}, {"length": 16}]}, "data": "abc"})
    with pytest.raises(CheckpointError) as caught:
        other.latest()
    assert caught.value.code == "checkpoint.other-recipe"
    assert "recipe.seed: 1, now 2" in caught.value.what
    assert "recipe.stages.1.length: nothing, now 16" in caught.value.what
    assert "data" not in caught.value.what
    assert "step-000001" in names(tmp_path), "a refused checkpoint is not a damaged one"


def stopped_run(folder: Path) -> None:
    seen = []
    with pytest.raises(Interrupted):
        run(folder, hook=seen.append, stop=lambda: len(seen) == 3)


def test_going_on_with_the_same_versions_says_nothing(tmp_path):
    told = []
    stopped_run(tmp_path / "run")
    run(tmp_path / "run", warn=told.append)
    assert told == []


def test_going_on_with_other_versions_or_threads_is_told_once_and_works(tmp_path, monkeypatch):
    told, seen = [], []
    stopped_run(tmp_path / "run")
    monkeypatch.setattr(toy_training, "VERSIONS", {"longspan": "test", "torch": "9.9"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    run(tmp_path / "run", warn=told.append, hook=seen.append)
    (text,) = told
    assert "step-000003" in text
    assert "its bits may differ" in text
    assert f'(torch: "{torch.__version__}", now "9.9"; threads: 1, now 64)' in text
    assert [metrics.step for metrics in seen] == [4, 5, 6, 7]
    assert store(tmp_path / "run").latest().versions == {
        "longspan": "test",
        "torch": "9.9",
        "device": "cpu",
        "threads": 64,
        "ranks": 1,
    }


def test_going_on_with_another_device_says_that_the_bits_will_differ(tmp_path):
    told = []
    saving = store(tmp_path, warn=told.append)
    found = save(saving, 1)
    saving.warn_of_other_bits(found, decoder().to("meta"))
    assert "its bits will differ" in told[0]
    assert 'device: "cpu", now "meta"' in told[0]


def test_long_lists_of_differences_are_cut(tmp_path):
    save(store(tmp_path, identity={str(key): 0 for key in range(20)}), 1)
    with pytest.raises(CheckpointError, match="and 8 more"):
        store(tmp_path, identity={str(key): 1 for key in range(20)}).latest()


def test_another_model_is_refused_before_anything_is_changed(tmp_path):
    found = save(store(tmp_path), 1)
    wide, updater = state(width=24)
    before = [weight.detach().clone() for weight in wide.parameters()]
    with pytest.raises(CheckpointError, match=r"embed\.weight") as caught:
        found.restore(wide, updater)
    assert caught.value.code == "checkpoint.other-model"
    assert all(torch.equal(a, b) for a, b in zip(before, wide.parameters(), strict=True))


def test_a_newer_format_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SCHEMA", 3)
    monkeypatch.setattr(manifest, "READABLE", (3,))
    path = tmp_path / "checkpoints" / "step-000001"
    save(store(tmp_path), 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError) as caught:
        store(tmp_path).latest()
    assert caught.value.code == "checkpoint.schema"
    assert path.is_dir()


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    """It knew one rank only and did not say so."""
    save(store(tmp_path), 1, seed=3)
    path = tmp_path / "checkpoints" / "step-000001" / "manifest.json"
    content = json.loads(path.read_text())["content"]
    assert content["schema"] == 2
    assert content["versions"].pop("ranks") == 1
    content["schema"] = 1
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, "content": content}))
    told, model, updater = [], *state(4)
    saving = store(tmp_path, warn=told.append)
    found = saving.latest()
    found.restore(model, updater)
    saving.warn_of_other_bits(found, model)
    assert told == []
    assert torch.equal(model.embed.weight, state(3)[0].embed.weight)


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    save(store(tmp_path), 1)

    def failing(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "sha256", failing)
    with pytest.raises(StorageError) as caught:
        store(tmp_path).latest()
    monkeypatch.undo()
    assert caught.value.code == "storage.read"
    path = tmp_path / "checkpoints" / "step-000001" / "manifest.json"
    path.rename(path.with_name("kept"))
    path.mkdir()  # reading it now gives an error of the system, not a missing file
    with pytest.raises(StorageError):
        store(tmp_path).latest()
    assert "step-000001" in names(tmp_path)


def test_bytes_that_come_back_wrong_are_noticed_while_older_ones_are_kept(tmp_path, monkeypatch):
    saving = store(tmp_path)
    save(saving, 1)
    save(saving, 2)
    real = shardfiles.write_tensors

    def lying(path, tensors, **options):
        digest = real(path, tensors, **options)
        damage(path, 3000)
        return digest

    monkeypatch.setattr(shardfiles, "write_tensors", lying)
    with pytest.raises(StorageError) as caught:
        save(saving, 3)
    assert caught.value.code == "storage.verify"
    assert names(tmp_path) == ["latest.json", "step-000001", "step-000002", "step-000003.damaged-1"]
