"""A rank that waits where no exception can reach it ends with a word; one that works for long does not."""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from rank_functions import NEVER, Reached, computing, gloo_waiting, synchronising
from ranks import collect, end_ranks, start_ranks

from longspan.parallel.mesh import Mesh
from longspan.parallel.pulse import BEATS, Place, Progress, lost
from longspan.parallel.watch import Watch, end_process

DEADLINE_SECONDS = 4.0
IN_LAYER = "waited in vain in ring of keys, step 1, backward of layer 12: rank 1 "
IN_GLOO = r"waited in vain in ring \d: rank 1 "
GONE, ASLEEP = "is gone or stopped, last seen in ", "is alive, but got no further than "
LOST = [
    (synchronising, Mesh(ring=3), "stopped", IN_LAYER + GONE + "first"),
    (synchronising, Mesh(ring=3), "killed", IN_LAYER + GONE + "first"),
    (synchronising, Mesh(ring=2), "asleep", IN_LAYER + ASLEEP + "first"),
    (gloo_waiting, Mesh(ring=3), "stopped", IN_GLOO + GONE + "ring 1"),
]


def test_ranks_that_wait_in_vain_end_by_themselves(tmp_path):
    """All at once, because they mostly wait."""
    started = []
    try:
        for number, (asked, mesh, how, said) in enumerate(LOST):
            folder = tmp_path / str(number)
            folder.mkdir()
            processes = start_ranks(
                mesh.ranks, asked, mesh, how, str(folder), folder=folder, deadline_seconds=DEADLINE_SECONDS
            )
            started.append((processes, asked, folder, said, time.monotonic()))
        for processes, function, folder, said, start in started:
            for rank in [rank for rank in range(len(processes)) if rank != 1]:
                process, told = processes[rank][0], folder / f"stderr-{rank}"
                process.join(60)
                assert process.exitcode == 75, told.read_text()
                assert re.search(f"error: rank {rank} {said} .parallel.lost.", told.read_text()), told.read_text()
                assert function is gloo_waiting or "the main thread is at" in told.read_text()
            assert time.monotonic() - start < 4 * DEADLINE_SECONDS  # the start of all processes included
    finally:
        for processes, *_ in started:
            end_ranks(processes)


def test_ranks_that_compute_for_several_deadlines_live():
    with tempfile.TemporaryDirectory() as folder:
        processes = start_ranks(2, computing, 5.0, folder=folder, deadline_seconds=2.0)
        try:
            assert collect(processes, deadline_seconds=60) == ["third", "third"]
        finally:
            end_ranks(processes)


class Signs:
    """A pulse as the watch sees it."""

    beats, quiet_beats, found = 0, 0, ""

    def culprits(self):
        return "rank 7 did it"


@pytest.fixture
def watch():
    """A watch whose thread has stopped, to be asked by hand, with 20 beats to its deadline."""
    ended = []
    found = Watch(Signs(), Progress(), rank=0, deadline_seconds=2.0, beat_seconds=0.1, end=lambda *a: ended.append(a))
    found.stop()
    found.ended = ended
    return found


def beats_until_lost(watch, *, beating=True, most=100):
    for beat in range(most):
        watch._pulse.beats += beating
        if culprits := watch._lost(watch._look()):
            return beat, culprits
    return None


def test_a_rank_that_does_not_wait_is_not_lost(watch):
    assert beats_until_lost(watch) is None
    assert beats_until_lost(watch, beating=False) is None  # the store may go before a rank that needs it no more


def test_waiting_in_one_exchange(watch):
    with watch._progress.within("a test"):
        assert beats_until_lost(watch) == (21 + BEATS - 1, "rank 7 did it")


def test_waiting_for_what_has_no_deadline(watch):
    with watch._progress.within("a test", patient=True):
        assert beats_until_lost(watch) is None
        watch._pulse.quiet_beats = 10  # but not for the dead
        assert beats_until_lost(watch) == (0, "rank 7 did it")


def test_a_device_that_waits_and_one_that_computes(watch):
    progress = watch._progress
    for delays, lost_at in (([NEVER, NEVER], None), ([0.0, NEVER], 25)):
        progress._waits.clear()
        progress._mark = map(Reached, delays).__next__
        with progress.within("a test", waits=True):
            pass
        found = beats_until_lost(watch)
        assert (found and found[0]) == lost_at


def test_a_rank_that_moves_is_not_lost(watch):
    watch._pulse.quiet_beats = 50
    for _ in range(30):
        with watch._progress.within("a test"):
            pass
        assert watch._lost(watch._look()) == ""
    assert beats_until_lost(watch)[0] == 9  # silence for half the deadline, and no move for as long


def test_what_another_rank_found(watch):
    watch._pulse.found = "rank 3 is gone"
    assert beats_until_lost(watch) == (BEATS - 1, "rank 3 is gone")


def test_a_store_that_does_not_answer(watch):
    with watch._progress.within("a test"):
        beat, culprits = beats_until_lost(watch, beating=False)
    assert beat == 10
    assert culprits.startswith("the store of the ranks gives no answer")


def test_a_store_that_stops_answering_while_it_is_asked(watch):
    watch._pulse.culprits = lambda: time.sleep(30)
    watch._seconds = 0.01
    assert watch._culprits().startswith("the store of the ranks gives no answer")


def test_an_exception_on_its_way_speaks_for_itself():
    ended, progress = [], Progress()
    signs = Signs()
    signs.found, progress.failed = "rank 3 is gone", True
    watch = Watch(signs, progress, rank=0, deadline_seconds=0.2, beat_seconds=0.01, end=lambda *a: ended.append(a))
    watch._thread.join(5)
    assert not watch._thread.is_alive()
    assert not ended


def test_the_place_of_a_device_behind_its_host():
    progress = Progress()
    marks = [Reached(NEVER) for _ in range(4)]
    progress._mark = iter(marks).__next__
    for operation in ("first", "second"):
        with progress.within(operation, waits=True):
            pass
    seen = []
    for mark in [None, *marks]:
        if mark is not None:
            mark.at = 0.0
        seen.append(progress.look())
    assert seen == [
        Place(0, "start"),
        Place(1, "first", waits=True),
        Place(1, "first"),
        Place(2, "second", waits=True),
        Place(2, "second"),
    ]


def test_a_device_that_failed_is_left_to_the_main_thread():
    class Failed:
        def query(self):
            raise RuntimeError("device-side assert")

    progress = Progress(Failed)
    with progress.within("a test", waits=True):
        pass
    assert progress.look() == Place(1, "a test")


def test_the_end_is_told_to_people_and_to_the_agent(tmp_path, capfd):
    """As torch's own reader finds it."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file, said = tmp_path / "error.json", "rank 3 waited in vain in a test: rank 7 did it [parallel.lost]"
    error = lost(3, Place(1, "a test", waits=True), "rank 7 did it", where="here")
    with patch("os._exit", side_effect=SystemExit) as ended, pytest.raises(SystemExit):
        end_process(error, "line 1\n", error_file=file)
    assert ended.call_args.args == (75,)
    assert f"line 1\nerror: {said}\n  where: here\n  do: " in capfd.readouterr().err
    failure = ProcessFailure(local_rank=3, pid=7, exitcode=75, error_file=str(file))
    assert failure.message["message"].startswith(said)
    assert failure.message["extraInfo"]["py_callstack"].startswith(f"line 1\n{said}")
    assert abs(failure.timestamp - time.time()) < 60


def test_an_error_file_that_cannot_be_written_hides_nothing(tmp_path, capfd):
    error = lost(3, Place(1, "a test"), "rank 7 did it", where="here")
    with patch("os._exit", side_effect=SystemExit), pytest.raises(SystemExit):
        end_process(error, "", error_file=tmp_path / "missing" / "error.json")
    told = capfd.readouterr().err
    assert "missing" in told
    assert "error: rank 3 gives up after a test: rank 7 did it" in told


SCRIPT = """
    import time
    from longspan.parallel.dist import join, launched
    from longspan.parallel.exchange import all_reduce_
    import torch

    world = join(launched(), device_type="cpu", deadline_seconds=2.0)
    all_reduce_(torch.ones(1), world.everyone, operation="first").wait()
    if world.launch.rank == 1:
        time.sleep(300)
    with world.everyone.within("second"):
        time.sleep(300)
"""


def test_torchrun_tells_it_and_ends_the_others(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    said = "rank 0 waited in vain in second: rank 1 is alive, but got no further than first"
    assert ended.stderr.count(said) >= 2, ended.stderr  # by the rank, and by the agent at the end
    assert "exitcode  : 75" in ended.stderr
