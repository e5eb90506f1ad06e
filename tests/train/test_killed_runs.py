"""F1, F2, F6 of the fault matrix: a run that was killed and started again ends with the same bits."""

import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

LAST = "step-000007"


def assert_same(folder: Path, unbroken: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        got, wanted = load_file(folder / "checkpoints" / LAST / name), load_file(unbroken / "checkpoints" / LAST / name)
        assert got.keys() == wanted.keys()
        assert all(got[key].tobytes() == wanted[key].tobytes() for key in wanted)
    assert lines(folder) == lines(unbroken)
    assert json.loads((folder / "checkpoints" / "latest.json").read_text())["step"] == 7
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (unbroken / "checkpoints").iterdir()), "nothing is left lying about"


def lines(folder: Path) -> list[dict]:
    values = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in values]


def test_unbroken_run_keeps_two_checkpoints(unbroken):
    names = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert names == ["latest.json", "step-000006", LAST]
    assert [line["step"] for line in lines(unbroken)] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["tokens"] for line in lines(unbroken)] == [32, 64, 96, 128, 176, 224, 272]


@pytest.mark.parametrize("step", range(1, 8))
def test_killed_after_a_step(run_child, unbroken, tmp_path, step):
    folder = tmp_path / "run"
    assert run_child(folder, "step", step) == -9
    assert run_child(folder) == 0
    assert_same(folder, unbroken)


def test_killed_at_every_file_operation_of_a_save(run_child, unbroken, tmp_path):
    """The run starts where it has two checkpoints and a line of metrics too many; one save and one deletion follow."""
    start = tmp_path / "start"
    assert run_child(start, "step", 7) == -9
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(start, folder)
        if (status := run_child(folder, "operation", number)) == 0:
            break
        assert status == -9
        assert run_child(folder) == 0
        assert_same(folder, unbroken)
    assert number > 30


@pytest.mark.parametrize("number", range(1, 40, 6))
def test_killed_at_a_file_operation_of_a_new_run(run_child, unbroken, tmp_path, number):
    folder = tmp_path / "run"
    assert run_child(folder, "operation", number) == -9
    assert run_child(folder) == 0
    assert_same(folder, unbroken)


@pytest.mark.parametrize("number", range(1, 70, 6))
def test_killed_at_a_file_operation_of_a_save_while_training_goes_on(run_child, unbroken, tmp_path, number):
    """F3: steps that came after the request have changed the weights that are being saved."""
    folder = tmp_path / "run"
    assert run_child(folder, "operation-async", number) == -9
    assert run_child(folder) == 0
    assert_same(folder, unbroken)


def test_a_run_that_does_not_wait_for_its_saves_is_the_same_run(run_child, unbroken, tmp_path):
    assert run_child(tmp_path / "run", "none-async") == 0
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.parametrize("fault", ["time", "time-async"])
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_at_any_moment(run_child, unbroken, tmp_path, seed, fault):
    folder, chance = tmp_path / "run", random.Random(seed)
    for _ in range(6):
        if run_child(folder, fault, chance.uniform(0.01, 0.15)) == 0:
            break
    assert run_child(folder) == 0
    assert_same(folder, unbroken)


@pytest.mark.parametrize("fault", ["signals", "signals-async"])
@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_sigterm_saves_the_last_finished_step(run_child, unbroken, tmp_path, step, fault):
    folder = tmp_path / "run"
    assert run_child(folder, fault, step) == 75
    assert json.loads((folder / "checkpoints" / "latest.json").read_text())["step"] == step
    assert run_child(folder) == 0
    assert_same(folder, unbroken)
