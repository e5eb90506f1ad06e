"""Rows built ahead: the same rows in the same order, never more than a step early, and no thread left behind."""

import threading

import pytest
import torch
from toy_training import batches, plan, train_in

from longspan.train.ahead import RowsAhead, to_device
from longspan.utils.errors import DataError, Interrupted

STEPS = [[(0, 0, 2), (0, 2, 2)], [(0, 4, 2), (0, 6, 1)], [(1, 0, 3)]]
PATIENCE_SECONDS = 20


def others() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rows")]


def test_batches_come_in_the_order_asked_and_are_those_of_the_builder():
    asked = []

    def build(*request):
        asked.append(request)
        return batches(*request)

    with RowsAhead(build, STEPS, pin=False) as rows:
        got = [list(rows.step()) for _ in STEPS]
        assert list(rows.step()) == [], "there is no step after the last"
    assert asked == [request for step in STEPS for request in step]
    for step, found in zip(STEPS, got, strict=True):
        for request, batch in zip(step, found, strict=True):
            want = batches(*request)
            assert batch.spans == want.spans
            for field in ("tokens", "targets", "weights", "positions"):
                assert torch.equal(getattr(batch, field), getattr(want, field))
    assert not others()


def test_the_next_step_is_built_while_this_one_is_worked_on_and_no_more():
    built = {request: threading.Event() for step in STEPS for request in step}

    def build(*request):
        built[request].set()
        return batches(*request)

    with RowsAhead(build, STEPS, pin=False) as rows:
        list(rows.step())  # from here on the device would work on step 0
        assert all(built[request].wait(PATIENCE_SECONDS) for request in STEPS[1])
        assert not built[STEPS[2][0]].wait(0.05), "two steps ahead"
        list(rows.step())
        assert built[STEPS[2][0]].wait(PATIENCE_SECONDS)


def test_a_failing_builder_raises_where_its_rows_are_asked_for():
    def build(stage, first_row, count):
        if first_row == 4:
            raise DataError("data.gone", "the file is gone")
        return batches(stage, first_row, count)

    with RowsAhead(build, STEPS, pin=False) as rows:
        assert len(list(rows.step())) == 2, "the step before the failure is whole"
        with pytest.raises(DataError, match="the file is gone"):
            list(rows.step())
    assert not others()


def test_a_failing_builder_fails_the_run_and_earlier_steps_are_seen(tmp_path):
    def build(stage, first_row, count):
        if first_row >= 8:
            raise DataError("data.gone", "the file is gone")
        return batches(stage, first_row, count)

    steps = []
    with pytest.raises(DataError):
        train_in(tmp_path, [plan(steps=4)], batches=build, hook=lambda: steps.append(1))
    assert len(steps) == 2
    assert not others()


def test_no_thread_is_left_after_an_interruption(tmp_path):
    with pytest.raises(Interrupted):
        train_in(tmp_path, [plan(steps=4)], stop=lambda: True)
    assert not others()


def test_what_is_not_begun_is_given_up_when_the_block_ends():
    release, asked = threading.Event(), []

    def build(*request):
        asked.append(request)
        release.wait(PATIENCE_SECONDS)
        return batches(*request)

    rows = RowsAhead(build, [[(0, row, 1) for row in range(50)]], pin=False)
    with rows:
        threading.Timer(0.05, release.set).start()
    assert len(asked) < 50
    assert not others()


def test_a_batch_moves_with_all_its_parts():
    moved = to_device(batches(0, 0, 2), torch.device("meta"))
    assert {part.device.type for part in (moved.tokens, moved.targets, moved.weights, moved.positions)} == {"meta"}
    assert moved.spans == batches(0, 0, 2).spans
