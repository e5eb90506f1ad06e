"""Saves that training does not wait for: what is saved is the state at the request, and no error is lost."""

import json
import threading
from pathlib import Path

import pytest
import torch
from checkpoint_ranks import fill, made, save, store_for, wrong

from longspan.engine.hostmemory import HostMemory
from longspan.train import shardfiles
from longspan.train.checkpoint import Progress
from longspan.train.peers import Peers
from longspan.utils.errors import Interrupted, LongspanError, StorageError


class Disk:
    """Writes of tensors wait until `release` is set, or fail with `error`."""

    def __init__(self, monkeypatch) -> None:
        self.release, self.reached = threading.Event(), threading.Event()
        self.error: Exception | None = None
        real = shardfiles.write_tensors

        def write(path, tensors, **options):
            self.reached.set()
            assert self.release.wait(60)
            if self.error is not None:
                raise self.error
            return real(path, tensors, **options)

        monkeypatch.setattr(shardfiles, "write_tensors", write)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps_on(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.startswith("step-") and ".tmp-" not in name]


def full() -> StorageError:
    return StorageError("storage.full", "the disk is full")


def test_what_is_saved_is_the_state_at_the_request(tmp_path, disk):
    decoder, states = made(None)
    theta = decoder.frequencies.theta
    with store_for(tmp_path, saving="async") as store:
        store.prepare(decoder, states)
        save(store, decoder, states, 1)
        assert disk.reached.wait(60), "it is being written"
        fill(decoder, states, 2)
        decoder.frequencies = None  # of the next stage
        disk.release.set()
    other, other_states = made(None)
    found = store_for(tmp_path).latest()
    found.restore(other, other_states)
    assert wrong(other, other_states, 1) == []
    assert other.frequencies.theta == theta
    assert found.progress == Progress(step=1, tokens=7)


def test_latest_moves_when_the_checkpoint_is_on_disk(tmp_path, disk):
    decoder, states = made(None)
    with store_for(tmp_path, saving="async") as store:
        store.prepare(decoder, states)
        disk.release.set()
        save(store, decoder, states, 1)
        store.finish()
        assert json.loads((tmp_path / "latest.json").read_text())["step"] == 1
        disk.release.clear()
        disk.reached.clear()
        save(store, decoder, states, 2)
        assert disk.reached.wait(60)
        assert steps_on(tmp_path) == ["step-000001"]
        assert json.loads((tmp_path / "latest.json").read_text())["step"] == 1
        assert store_for(tmp_path).latest().progress.step == 1
        disk.release.set()
        store.finish()
        assert json.loads((tmp_path / "latest.json").read_text())["step"] == 2


def test_one_save_at_a_time_in_order(tmp_path, disk):
    decoder, states = made(None)
    with store_for(tmp_path, saving="async", keep=3) as store:
        store.prepare(decoder, states)
        save(store, decoder, states, 1)
        threading.Timer(0.2, disk.release.set).start()
        save(store, decoder, states, 2)
        assert "step-000001" in steps_on(tmp_path), "the second waits for the first, whose copy it takes over"
    assert steps_on(tmp_path) == ["step-000001", "step-000002"]
    for step in (2, 1):
        other, other_states = made(None)
        found = store_for(tmp_path).latest()
        found.restore(other, other_states)
        assert wrong(other, other_states, step) == []
        (found.folder / "manifest.json").unlink()


def test_the_error_of_a_save_is_raised_by_the_next(tmp_path, disk):
    decoder, states = made(None)
    store = store_for(tmp_path, saving="async")
    store.prepare(decoder, states)
    disk.error = full()
    disk.release.set()
    save(store, decoder, states, 1)
    with pytest.raises(StorageError, match="the disk is full"):
        save(store, decoder, states, 2)
    assert names(tmp_path) == []
    disk.error = None
    save(store, decoder, states, 3)
    store.finish()
    assert steps_on(tmp_path) == ["step-000003"]


def failed_run(folder: Path, error: BaseException | None, **changes) -> None:
    """A run whose save is in flight when it ends, or fails."""
    decoder, states = made(None)
    with store_for(folder, saving="async", **changes) as store:
        store.prepare(decoder, states)
        save(store, decoder, states, 1)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, Interrupted()])
def test_the_error_of_the_last_save_is_raised_at_the_end(tmp_path, disk, error):
    disk.error = full()
    disk.release.set()
    with pytest.raises(StorageError, match="the disk is full"):
        failed_run(tmp_path, error)


def test_a_run_that_fails_still_gets_its_last_save(tmp_path, disk):
    threading.Timer(0.3, disk.release.set).start()
    with pytest.raises(KeyError):
        failed_run(tmp_path, KeyError())
    assert steps_on(tmp_path) == ["step-000001"]


def test_a_run_that_fails_tells_of_a_save_that_failed_too(tmp_path, disk):
    told = []
    disk.error = full()
    disk.release.set()
    with pytest.raises(KeyError):
        failed_run(tmp_path, KeyError(), warn=told.append)
    (text,) = told
    assert "lost" in text
    assert "the disk is full" in text


class _Peers(Peers):
    deadline_seconds = 0.05


def test_a_run_that_fails_does_not_wait_for_ranks_that_do_not_come(tmp_path, disk):
    with pytest.raises(KeyError):
        failed_run(tmp_path, KeyError(), peers=_Peers())
    assert steps_on(tmp_path) == []
    disk.release.set()


def test_who_stops_the_process_at_once_does_not_wait_for_the_disk(tmp_path, disk):
    with pytest.raises(KeyboardInterrupt):
        failed_run(tmp_path, KeyboardInterrupt())
    assert steps_on(tmp_path) == []
    disk.release.set()


def test_no_room_for_the_copy_is_said_before_training(tmp_path, monkeypatch):
    def refuse(memory, count):
        raise LongspanError("engine.host-memory", f"the system will not lock {count:,} bytes of host memory")

    decoder, states = made(None)
    wanted = sum(-(-tensor.nbytes // 4096) * 4096 for tensor in (*decoder.parameters(), *states.tensors().values()))
    monkeypatch.setattr(HostMemory, "reserve", refuse)
    with pytest.raises(LongspanError) as caught:
        store_for(tmp_path, saving="async").prepare(decoder, states)
    assert caught.value.code == "checkpoint.host-memory"
    assert f"{wanted:,} bytes" in caught.value.what
    assert 'train.save = "blocking"' in caught.value.fix
    store_for(tmp_path).prepare(decoder, states)


def test_the_copy_is_taken_once_and_given_back(tmp_path, monkeypatch):
    taken = []
    real = HostMemory.free
    monkeypatch.setattr(HostMemory, "free", lambda memory: (taken.append(memory.taken_bytes), real(memory)))
    decoder, states = made(None)
    with store_for(tmp_path, saving="async") as store:
        store.prepare(decoder, states)
        for step in (1, 2, 3):
            save(store, decoder, states, step)
    wanted = sum(-(-tensor.nbytes // 4096) * 4096 for tensor in (*decoder.parameters(), *states.tensors().values()))
    assert taken[-1] == wanted
    assert torch.cuda.is_available() or taken.count(wanted) == 1
