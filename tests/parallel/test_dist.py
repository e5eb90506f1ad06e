"""Coming together, parting, and the name of a rank that is lost."""

import contextlib
import tempfile
from unittest.mock import patch

import pytest
import torch
from rank_functions import failing, losing
from ranks import answer_of, end_ranks, run_ranks, start_ranks
from torch import distributed

from longspan.parallel.dist import ALONE, Launch, join, launched
from longspan.parallel.mesh import Mesh
from longspan.utils.errors import LongspanError

SAID = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_what_torchrun_says():
    with patch.dict("os.environ", SAID):
        assert launched() == Launch(rank=3, ranks=8, local_rank=1, local_ranks=4)
    with patch.dict("os.environ", {**dict.fromkeys(SAID, "")}):
        assert launched() is None


@pytest.mark.parametrize("change", [{"RANK": ""}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-1"}])
def test_half_an_answer_of_torchrun(change):
    with patch.dict("os.environ", {**SAID, **change}), pytest.raises(LongspanError) as caught:
        launched()
    assert caught.value.code == "parallel.launch"
    assert f"{next(iter(change))}='{next(iter(change.values()))}'" in caught.value.where


def test_ranks_that_do_not_come(tmp_path):
    store = distributed.FileStore(str(tmp_path / "store"), 2)
    with pytest.raises(LongspanError) as caught:
        join(Launch(rank=0, ranks=2), device_type="cpu", deadline_seconds=0.5, store=store)
    assert caught.value.code == "parallel.join"
    assert "rank 0 of 2 did not meet the others within 0.5 s" in caught.value.what


def test_a_rank_that_raises_is_told():
    with pytest.raises(RuntimeError, match=r"rank 1 failed:\n(.|\n)*ValueError: planted"):
        run_ranks(2, failing)


GONE = "rank 1 is gone or stopped, last seen in"
LOST = [
    (Mesh(ring=3), "killed", "ring", f"{GONE} ring 1"),
    (Mesh(ring=2, ulysses=2), "killed", "gather", f"{GONE} gather 1"),
    (Mesh(ring=2), "asleep", "exchange", "rank 1 is alive, but got no further than exchange 1"),
]


def test_a_lost_rank_ends_the_others_by_name():
    """All at once, because they mostly wait. In a mesh of 2 x 2, rank 1 exchanges with rank 3 only."""
    deadline = 4.0
    with contextlib.ExitStack() as stack:
        started = []
        for mesh, how, name, said in LOST:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            processes = start_ranks(mesh.ranks, losing, mesh, how, name, folder=folder, deadline_seconds=deadline)
            stack.callback(end_ranks, processes)
            started.append((processes, mesh, name, said))
        for processes, mesh, name, said in started:
            for rank in [3] if mesh.ulysses > 1 else [rank for rank in range(mesh.ranks) if rank != 1]:
                assert processes[rank][1].poll(60), "a rank waits for ever"
                code, what, seconds = answer_of(processes[rank][1], rank)
                assert code == "parallel.lost"
                assert what.startswith(f"rank {rank} waited in vain in {name} "), what
                assert what.endswith(said), what
                assert seconds < 3 * deadline


def test_an_axis_of_one_tells_too():
    with pytest.raises(LongspanError, match="rank 0 waited in vain in a test: a rank is lost"), ALONE.within("a test"):
        raise RuntimeError("gone")


def test_a_full_memory_is_no_lost_rank():
    with pytest.raises(torch.OutOfMemoryError), ALONE.within("a test"):
        raise torch.OutOfMemoryError("full")
