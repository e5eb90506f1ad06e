"""The benchmark of evaluation: its cells are named and fit into one command, and run on a CPU with the demo's model."""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "evaluation_gpu.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("evaluation_gpu", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        sys.modules["evaluation_gpu"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def bench(script):
    given = argparse.Namespace(device="cpu", longest=4096, model=ROOT / "examples" / "laptop-base")
    return script.Bench(given)


def test_cells_have_names_of_their_own_and_fit_into_one_command(script):
    cells = script.cells(2**20, small=False)
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.seconds < 300 for cell in cells)
    assert {"rate 65536", "side by side 65536", "column 1048576", "grid 16384", "grid 1048576 context 2"} <= {
        cell.name for cell in cells
    }
    words = [sys.executable, str(SCRIPT), "--results", "unused", "--list"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    listed = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert len(listed.stdout.splitlines()) == len(cells), listed.stderr


def test_a_check_and_a_column(script, bench):
    assert script.check(bench)["branch_difference"] < 1e-4
    line = script.column(bench, tokens=1024)
    assert (line["contexts"], line["questions"], len(line["cells"])) == (1, 20, 20)
    assert line["seconds"] >= line["read_seconds"] > 0
    assert line["cost_in_prefills"] == pytest.approx(line["seconds"] / line["read_seconds"])


def test_one_context_of_a_grid_is_that_of_the_whole_grid(script, bench, monkeypatch):
    real = script.Grid
    monkeypatch.setattr(script, "Grid", lambda **more: real(**{**more, "depths": 4, "keys": 2}))
    whole = script.grid(bench, tokens=640, only=None)
    parts = [script.grid(bench, tokens=640, only=index) for index in range(3)]
    assert whole["contexts"] == 3
    added = [[sum(part["cells"][depth][i] for part in parts) for i in (0, 1)] for depth in range(4)]
    assert whole["cells"] == added


def test_lines_are_kept_found_again_and_summed_up(script, tmp_path):
    path, shared = tmp_path / "deep" / "lines.jsonl", {"hardware": "h", "model": "m", "commit": "c"}
    grid = {"tokens": 16, "wall_seconds": 2.0, "cells": [[1, 7], [0, 7]]}
    lines = [
        {"cell": "grid 16", **grid},
        {"cell": "grid 32 context 0", **grid, "tokens": 32},
        {"cell": "grid 32 context 1", **grid, "tokens": 32},
        {"cell": "column 32", "cost_in_prefills": 1.1},
        {"cell": "side by side 16", "speedup_over_per_cell": 15.0},
        {"cell": "rate 16", "share_of_engine_rate": 0.97},
        {"cell": "rate 32", "share_of_engine_rate": 0.95},
    ]
    for line in lines:
        script.write(path, {**line, **shared})
    script.write(path, {"cell": "other", **shared, "commit": "d"})
    with path.open("a") as file:
        file.write('{"cell": "half')
    found = script.finished(path, shared)
    assert list(found) == [line["cell"] for line in lines]
    told = script.summary(found)
    assert (told["grid_lengths"], told["grid_least_trials_a_cell"], told["grid_seconds"]) == ([16, 32], 7, 6.0)
    assert (told["column_cost_in_prefills"], told["speedup_over_per_cell"]) == (1.1, 15.0)
    assert told["share_of_engine_rate"] == 0.95
    assert json.loads(path.read_text().splitlines()[0])["cell"] == "grid 16"


@pytest.mark.slow
def test_rates_and_side_by_side(script, bench):
    line = script.rate(bench, tokens=512)
    assert line["prefill_tokens_per_second"] == pytest.approx(512 / line["prefill_seconds"])
    assert line["share_of_engine_rate"] > 0
    line = script.side_by_side(bench, tokens=1024)
    assert line["speedup_over_per_cell"] > 2
