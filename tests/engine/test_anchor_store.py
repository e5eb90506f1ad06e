"""Anchors come back as they were written, from every tier, whole or by head, also when a slot is written again."""

import errno
import gc
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.engine import hostmemory
from longspan.engine.diskfile import DiskFile
from longspan.engine.hostmemory import HostMemory, aligned, parse_cpu_list
from longspan.engine.store import SlotShape, Store
from longspan.utils.errors import LongspanError, StorageError

CPU = torch.device("cpu")
TOKENS = SlotShape(None, (6,), torch.float32)
HEADS = SlotShape(4, (3,), torch.float32)
SCALARS = SlotShape(4, (), torch.float64)
TIERS = ["device", "host", "disk"]


def store_of(tokens, tile, folder=None):
    return Store(CPU, tokens=tokens, tile_tokens=tile, host=HostMemory(CPU), folder=folder)


def tile_of(value, shape, tile):
    return value[tile] if shape.heads is None else value[:, tile]


def fill(store, slot, value):
    for index, tile in enumerate(store.tiles):
        store.save(slot, index, tile_of(value, slot.shape, tile))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("shape", [TOKENS, HEADS, SCALARS], ids=["tokens", "heads", "scalars"])
@pytest.mark.parametrize("tile", [1, 4, 7, 23, 50])
def test_tiles_come_back(tier, shape, tile, tmp_path):
    store = store_of(23, tile, tmp_path)
    slot, value = store.slot(shape, tier), torch.randn(shape.of(23)).to(shape.dtype)
    fill(store, slot, value)
    for index, (found,) in enumerate(store.read_tiles(slot)):
        assert torch.equal(found, tile_of(value, shape, store.tiles[index]))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_heads_come_back_with_all_their_tokens(tier, group, tmp_path):
    store = store_of(23, 5, tmp_path)
    slots = [store.slot(shape, tier) for shape in (HEADS, SCALARS)]
    values = [torch.randn(slot.shape.of(23)).to(slot.shape.dtype) for slot in slots]
    for slot, value in zip(slots, values, strict=True):
        fill(store, slot, value)
    groups = [slice(start, min(start + group, 4)) for start in range(0, 4, group)]
    for heads, found in zip(groups, store.read_heads(groups, *slots), strict=True):
        for part, value in zip(found, values, strict=True):
            assert torch.equal(part, value[heads])


@settings(max_examples=50)
@given(data=st.data())
def test_a_gradient_that_takes_the_place_of_what_is_read(data):
    # Backward reads tile i and writes it again while tile i + 1 is on its way already.
    tokens, tile = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 12))
    store = store_of(30, tile)
    slot = store.slot(TOKENS, data.draw(st.sampled_from(["device", "host"])))
    store.begin(tokens)
    value = torch.randn(tokens, 6)
    fill(store, slot, value)
    for _ in range(3):
        reader = store.read_tiles(slot)
        if data.draw(st.booleans()):
            reader.start()
        for index, (found,) in enumerate(reader):
            out = store.target(slot, index)
            torch.add(found, 1.0, out=out)
            store.commit(slot, index)
    for index, (found,) in enumerate(store.read_tiles(slot)):
        torch.testing.assert_close(found, value[store.tiles[index]] + 3)


@pytest.mark.parametrize("tier", TIERS)
def test_shorter_batches_and_then_the_longest_again(tier, tmp_path):
    store = store_of(23, 5, tmp_path)
    slot = store.slot(HEADS, tier)
    for tokens in (23, 4, 11, 23):
        store.begin(tokens)
        value = torch.randn(HEADS.of(tokens))
        fill(store, slot, value)
        (found,) = next(iter(store.read_heads([slice(0, 4)], slot)))
        assert torch.equal(found, value)


def test_host_memory_has_the_exact_size_and_is_used_again():
    host = HostMemory(CPU)
    host.reserve(3 * aligned(10_000))
    pieces = [host.take(10_000) for _ in range(3)]
    assert [len(piece) for piece in pieces] == [10_000] * 3
    assert host.taken_bytes == 3 * aligned(10_000)
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    assert [int(piece[0]) for piece in pieces] == [0, 1, 2]
    assert [int(piece[-1]) for piece in pieces] == [0, 1, 2]
    host.reset()
    again = host.take(10_000)
    assert again.data_ptr() == pieces[0].data_ptr()
    host.take(2 * aligned(10_000) + 1)  # does not fit behind it: a new arena, the old one stays whole
    assert host.taken_bytes == 3 * aligned(10_000) + aligned(2 * aligned(10_000) + 1)
    host.free()
    assert host.taken_bytes == 0


def test_a_reserve_that_fits_takes_nothing():
    host = HostMemory(CPU)
    host.reserve(aligned(50_000))
    host.reset()
    host.reserve(aligned(50_000))
    assert host.taken_bytes == aligned(50_000)


def test_what_is_too_small_for_the_next_engine_is_not_kept_beside_it():
    host = HostMemory(CPU)
    host.reserve(aligned(50_000))
    host.take(50_000)
    host.reserve(aligned(30_000))  # the first piece is in use: both are there
    assert host.taken_bytes == aligned(50_000) + aligned(30_000)
    host.reset()
    host.reserve(aligned(200_000))
    assert host.taken_bytes == aligned(200_000)


def test_host_memory_that_is_not_given_is_told(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(hostmemory.mmap, "mmap", refuse)
    with pytest.raises(LongspanError, match=r"will not give 8,192 bytes .*Cannot allocate memory") as error:
        HostMemory(torch.device("cpu")).reserve(5000)
    assert error.value.code == "engine.host-memory"
    assert all(key in error.value.fix for key in ("engine.farthest", "train.optimizer.states"))


@pytest.mark.filterwarnings("error")
def test_a_file_may_be_dropped_while_it_is_written(tmp_path):
    class Late:  # the event of a copy that is still on its way
        __class__ = torch.cuda.Event

        def synchronize(self):
            gate.wait()

    gate = threading.Event()
    file = DiskFile(tmp_path, [4096], host=HostMemory(CPU))
    file.begin_write(0)
    file.end_write(0, Late(), 4096)
    (thread,) = file._pool._threads
    del file  # now the thread holds the last reference
    gc.collect()
    gate.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match="the disk is full"):
        DiskFile(tmp_path, [100], host=HostMemory(CPU))


def test_a_file_that_was_cut_short_is_told(tmp_path):
    file = DiskFile(tmp_path, [4096], host=HostMemory(CPU))
    file.begin_write(0).fill_(1)
    file.end_write(0, None, 4096)
    assert int(file.read(0, 4000, 96)[-1]) == 1
    file.used(None)
    os.truncate(file._file, 10)
    with pytest.raises(StorageError, match="cut short"):
        file.read(0, 0, 4096)


def test_lists_of_processors():
    assert parse_cpu_list("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert parse_cpu_list("") == set()
