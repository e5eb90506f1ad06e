"""Disks that fill up, and what a kill left lying about."""

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from checkpoint_toys import names, save, state
from toy_training import store

from longspan.utils.errors import StorageError


class FullDisk:
    """Writes through `Path.open` fail after so many bytes, as on a disk that fills up."""

    def __init__(self, monkeypatch, room_bytes: int) -> None:
        self.room_bytes = room_bytes
        real = Path.open
        disk = self

        def opening(path, mode="r", *args, **kwargs):
            file = real(path, mode, *args, **kwargs)
            return _Counted(file, disk) if set(mode) & set("wax") else file

        monkeypatch.setattr(Path, "open", opening)


class _Counted:
    def __init__(self, file, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, content) -> int:
        room = self._disk.room_bytes
        self._disk.room_bytes -= len(content)
        if len(content) > room:
            self._file.write(content[: max(0, room)])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room_share", [0.0, 0.01, 0.2, 0.34, 0.7, 0.97, 0.9999])
def test_a_disk_that_fills_up_leaves_older_checkpoints_whole(tmp_path, room_share):
    saving = store(tmp_path)
    save(saving, 1)
    found = save(saving, 2)
    each_bytes = sum(path.stat().st_size for path in found.folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, int(room_share * each_bytes))
        with pytest.raises(StorageError) as caught:
            save(saving, 3)
    assert caught.value.code == "storage.full"
    assert names(tmp_path) == ["latest.json", "step-000001", "step-000002"]
    assert store(tmp_path).latest().progress.step == 2
    assert save(saving, 3).progress.step == 3, "it goes on when there is room again"


def test_space_is_checked_before_training(tmp_path, monkeypatch):
    model, updater = state()
    saving = store(tmp_path, keep=4)
    each_bytes = sum(path.stat().st_size for path in save(saving, 1).folder.glob("*.safetensors"))
    usage = namedtuple("usage", "total used free")
    # five fit when one is there already and there is room for four more; its manifest counts as well
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 4 * each_bytes))
    saving.prepare(model, updater)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 4 * each_bytes - 5000))
    with pytest.raises(StorageError) as caught:
        saving.prepare(model, updater)
    assert caught.value.code == "storage.space"


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    save(store(tmp_path), 1)
    (folder / "step-000002.tmp-0a1b2c3d").mkdir()
    (folder / "step-000002.tmp-0a1b2c3d" / "model.safetensors").write_bytes(b"half")
    (folder / ".latest.json.tmp-0a1b2c3d").write_bytes(b"{")
    (folder / "step-000003.damaged-1").mkdir()
    (folder / "notes").mkdir()
    store(tmp_path).prepare(*state())
    assert names(tmp_path) == ["latest.json", "notes", "step-000001", "step-000003.damaged-1"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(StorageError):
        store(tmp_path).prepare(*state())
