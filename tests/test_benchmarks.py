"""The scripts of benchmarks/ start, resume and stop; the plain peer finds the loss that transformers finds."""

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from longspan.model.decoder import Decoder
from longspan.model.weights import save
from longspan.pipeline.benchline import KEYS
from longspan.plan.shapes import named_shape
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPT, PARALLEL = BENCHMARKS / "engine_gpu.py", BENCHMARKS / "parallel_gpu.py"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun sets it: lines tell the threads


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("cells", monkeypatch)


def run(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=ONE_THREAD
    )


@pytest.mark.parametrize("name", ["engine_gpu", "parallel_gpu", "eight_gpus"])
def test_cells_have_names_of_their_own_and_fit_into_one_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = module(name, monkeypatch)
    found = program.cells(8) if name == "eight_gpus" else program.CELLS
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names)
    assert all(cell.seconds < 540 for cell in found)
    assert {cell.single for cell in found} - {""} <= set(names)
    listed = run(str(BENCHMARKS / f"{name}.py"), "--results", "unused", "--list")
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


def test_half_a_line_is_no_result(cells: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(
        json.dumps({"cell": "one", "commit": "a", "hardware": "h"})
        + "\n"
        + json.dumps({"cell": "two", "commit": "b", "hardware": "h"})
        + '\n{"cell": "three", "comm'
    )
    assert cells.finished(path, commit="a", hardware="h") == {"one"}
    assert cells.last_line('noise\n{"tokens": 1}\nDestroyed.') == {"tokens": 1}
    assert cells.last_line("noise") is None


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


# -- several ranks -----------------------------------------------------------------------------------------------------


def test_ranks_tell_their_share_of_one_device(tmp_path: Path) -> None:
    """The cell of one device, then one of two ranks, as torchrun starts them; then both are there already."""
    results, hardware = tmp_path / "lines.jsonl", f"cpu, {os.cpu_count()} cores, 1 threads"
    words = [str(PARALLEL), "--results", str(results), "--only", "256K x 4 (one GPU|ulysses, 2)", "--commit", "abc"]
    words += ["--more", "--device cpu --shape tiny --tokens 96 --layers 1 --keep attention --group 2"]
    words += ["--hardware", hardware, "--seconds", "500"]
    first = run(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    alone, two = (json.loads(text) for text in results.read_text().splitlines())
    assert set(KEYS) <= two.keys()
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert (two["scheme"], two["ranks"], two["local_tokens"]) == ("ulysses", 2, 48)
    assert two["mesh"] == {"replicate": 1, "shard": 1, "ring": 1, "ulysses": 2}
    assert two["tokens_per_second"] == pytest.approx(96 / two["step_seconds"])
    assert two["tokens_per_second_per_gpu"] == pytest.approx(two["tokens_per_second"] / 2)
    wanted = two["tokens_per_second_per_gpu"] / alone["tokens_per_second"]
    assert two["share_of_single_gpu"] == pytest.approx(wanted)
    assert run(*words).stdout.count("# there already") == 2


@pytest.mark.slow
def test_eight_ranks_of_any_scheme_make_the_same_step(tmp_path: Path) -> None:
    """Whole steps of the program for eight GPUs, on eight processes; its filled cells tell that they are."""
    shape = replace(named_shape("tiny"), heads=8, kv_heads=2, head_dim=8)
    frequencies = Default().frequencies(RopeBase(rotary_dim=8, theta=1e4, trained_length=512), 512)
    decoder = Decoder(shape, frequencies)
    decoder.initialise(0)
    save(decoder, tmp_path / "model")
    results = tmp_path / "lines.jsonl"
    words = [str(BENCHMARKS / "eight_gpus.py"), "--results", str(results), "--commit", "abc", "--hardware", "none"]
    words += ["--only", "128K x 32 (ulysses|grid|ring)|2048K x 32", "--seconds", "2000", "--more"]
    words += [f"--device cpu --shape {tmp_path / 'model'} --tokens 200 --layers 2 --optimizer adamw --steps 2"]
    done = run(*words, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    *steps, filled = [json.loads(text) for text in results.read_text().splitlines()]
    assert [line["scheme"] for line in steps] == ["ulysses", "grid", "ring"]
    assert [line["mesh"]["ring"] for line in steps] == [1, 2, 8]
    for line in steps[1:]:
        assert line["losses"] == pytest.approx(steps[0]["losses"], rel=1e-5)
    assert filled["skipped_attention"] is True
    assert (filled["causal_mfu"], filled["keep"]) == (None, "inputs")
    assert filled["losses"] != pytest.approx(steps[0]["losses"], rel=1e-5)


def test_a_cell_that_is_stopped_leaves_no_rank_behind(cells: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "sleep.py"
    script.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(100)\n"
    )
    given = argparse.Namespace(more="", commit="", wheels=None, results=tmp_path / "none", hardware="none")
    assert not cells.run(cells.Cell("asleep", (str(script),), 1.0, ranks=2), given, limit=8.0)
    pids = [int((tmp_path / rank).read_text()) for rank in "01"]
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)  # 0: only asks
    except ProcessLookupError:
        return False
    return True


def test_communication_is_exposed_where_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a count of every unit of time."""
    exposed = module("exposed", monkeypatch)
    names = ["ncclDevKernel_SendRecv(...)", "sm90_gemm", "Memcpy HtoD (Pinned -> Device)", "Memcpy DtoD", "Memset"]
    for seed in range(20):
        draw = random.Random(seed)
        events = [
            {"name": draw.choice(names), "ts": draw.randrange(100), "dur": draw.randrange(1, 12)} for _ in range(14)
        ]
        at = [{e["name"] for e in events if e["ts"] <= moment < e["ts"] + e["dur"]} for moment in range(120)]
        busy = [moment for moment, running in enumerate(at) if running]
        whole = busy[-1] + 1 - busy[0]
        nccl, copy = names[0], names[2]
        found = exposed.shares_of_events(events)
        assert found.exchange_share == pytest.approx(sum(nccl in x for x in at) / whole)
        exposed_exchange = sum(nccl in x and not x - {nccl, copy} for x in at)
        assert found.exposed_exchange_share == pytest.approx(exposed_exchange / whole)
        assert found.exposed_copy_share == pytest.approx(sum(x == {copy} for x in at) / whole)
        assert found.idle_share == pytest.approx(1 - len(busy) / whole)


@pytest.mark.slow
def test_torch_peer_prints_our_keys() -> None:
    """Without ranks: torch's context parallelism has no kernel for a CPU."""
    peer = run(
        str(BENCHMARKS / "peers" / "torch_context.py"),
        *("--shape", "tiny", "--tokens", "64", "--device", "cpu", "--warmup-tokens", "16"),
    )
    assert peer.returncode == 0, peer.stderr
    assert set(KEYS) <= json.loads(peer.stdout.splitlines()[-1]).keys()
