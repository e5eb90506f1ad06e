"""The scripts of benchmarks/ start, resume and stop; the plain peer finds the loss that transformers finds."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from longspan.pipeline.benchline import KEYS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "engine_gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_gpu"] = module
    spec.loader.exec_module(module)
    return module


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_cells_have_names_of_their_own_and_fit_into_one_command(script: ModuleType) -> None:
    names = [cell.name for cell in script.CELLS]
    assert len(set(names)) == len(names)
    assert all(cell.seconds < 540 for cell in script.CELLS)
    listed = run(str(SCRIPT), "--results", "unused", "--list")
    assert len(listed.stdout.splitlines()) == len(names)


def test_a_cell_is_run_once_for_a_commit_and_machine(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "lines.jsonl"
    words = [str(SCRIPT), "--results", str(results), "--only", "^longspan 8K x 32$", "--commit", "abc"]
    words += ["--more", "--device cpu --shape tiny --tokens 64 --layers 1", "--seconds", "200"]
    first = run(*words, "--hardware", "unknown yet")
    assert first.returncode == 0, first.stdout + first.stderr
    line = json.loads(results.read_text())
    assert set(KEYS) <= line.keys()
    assert line["cell"] == "longspan 8K x 32"
    assert json.loads(first.stdout) == line
    again = run(*words, "--hardware", line["hardware"])
    assert "there already" in again.stdout
    assert len(results.read_text().splitlines()) == 1


def test_no_cell_begins_that_cannot_end(tmp_path: Path) -> None:
    stopped = run(str(SCRIPT), "--results", str(tmp_path / "x"), "--seconds", "10", "--hardware", "none")
    assert stopped.returncode == 1
    assert "no time left for: longspan 64K x 32 device-gib 38" in stopped.stdout
    assert not (tmp_path / "x").exists()


def test_half_a_line_is_no_result(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(
        json.dumps({"cell": "one", "commit": "a", "hardware": "h"})
        + "\n"
        + json.dumps({"cell": "two", "commit": "b", "hardware": "h"})
        + '\n{"cell": "three", "comm'
    )
    assert script.finished(path, commit="a", hardware="h") == {"one"}
    assert script.last_line('noise\n{"tokens": 1}\nDestroyed.') == {"tokens": 1}
    assert script.last_line("noise") is None


def test_plain_peer_prints_our_keys() -> None:
    peer = run(
        str(ROOT / "benchmarks" / "peers" / "plain.py"),
        *("--shape", "tiny", "--tokens", "64", "--device", "cpu", "--warmup-tokens", "16", "--commit", "abc"),
    )
    assert peer.returncode == 0, peer.stderr
    line = json.loads(peer.stdout.splitlines()[-1])
    assert set(KEYS) <= line.keys()
    assert line["tokens_per_second"] == pytest.approx(64 / line["step_seconds"])
    assert line["losses"][0] == pytest.approx(5.55, abs=0.15)  # ln 257: nothing is learnt yet
