"""The comparison of buckets goes on where it was cut off, trains arms on their tokens, reads curves right."""

import json
import os
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = "--size tiny --vocabulary 300 --length 128 --shortest 16 --tokens 2048 --step-tokens 512 --evaluations 2"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=240, cwd=ROOT, env=environment
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pack"), random.Random(0)
    words = [
        "river",
        "mill",
        "seven",
        "grey",
        "stones",
        "morning",
        "boats",
        "bread",
        "market",
        "rain",
        "children",
        "song",
    ]
    (folder / "texts").mkdir()
    for number in range(120):
        text = " ".join(rng.choice(words) for _ in range(rng.choice([6, 12, 25])))
        (folder / "texts" / f"{number}.txt").write_text(text)
    (folder / "texts" / "binary").write_bytes(b"\xff\xfe")
    words_ = ["--source", str(folder / "texts"), "--to", str(folder / "t.tar.xz"), "--vocabulary", "300"]
    done = run("benchmarks/buckets_data.py", *words_, "--held-out-share", "0.2")
    assert done.returncode == 0, done.stderr
    return folder / "t.tar.xz"


def test_runs_are_done_once_and_told_in_a_table(packed: Path, tmp_path: Path) -> None:
    results = tmp_path / "deep" / "lines.jsonl"
    words = ["benchmarks/buckets_gpu.py", "compare", "--data", str(packed), "--results", str(results), *TINY.split()]
    words += ["--eval-tokens", "512", "--seeds", "0", "--arms", "concat", "masked", "buckets", "buckets 5/4"]
    first = run(*words)
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["concat", "masked", "buckets", "buckets 5/4"]
    assert [line["run_tokens"] for line in lines] == [2_048, 2_048, 2_048, 2_560]
    assert len({line["train_sha256"] for line in lines}) == 1
    assert len({line["curve"][0]["all"] for line in lines}) == 1, "one model at first"
    assert all(len(line["curve"]) == 3 and line["curve"][-1]["step"] == line["steps"] for line in lines[:3])
    spread = {line["arm"]: line["text"]["mean_context_tokens"] for line in lines}
    assert 60 < spread["concat"] <= 63.5, "rows of 128 in one piece, but for the end of the text"
    assert spread["masked"] < spread["concat"]
    assert list(lines[0]["by_length"]) == ["128"]
    assert len(lines[2]["by_length"]) > 1
    results.write_bytes(results.read_bytes()[:-30])  # a kill in the last line
    again = run(*words)
    assert again.stdout.count("# there already") == 3
    assert [json.loads(line)["arm"] for line in results.read_text().splitlines()] == [line["arm"] for line in lines]
    assert "| buckets 5/4 | 0 | 2,560 |" in again.stdout


def test_no_run_begins_that_cannot_end(packed: Path, tmp_path: Path) -> None:
    results = tmp_path / "lines.jsonl"
    words = ["benchmarks/buckets_gpu.py", "compare", "--data", str(packed), "--results", str(results), *TINY.split()]
    done = run(*words, "--eval-tokens", "512", "--arms", "concat", "--seeds", "0", "1", "2", "--seconds", "0.1")
    assert done.returncode == 1
    assert "no time left for: concat, seed 1" in done.stdout
    assert len(results.read_text().splitlines()) == 1


def test_time_to_a_loss_is_read_off_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    seconds_to = import_module("buckets_gpu").seconds_to
    curve = [{"seconds": 0.0, "all": 9.0}, {"seconds": 10.0, "all": 5.0}, {"seconds": 20.0, "all": 4.0}]
    assert seconds_to({"curve": curve}, 9.5) == 0.0
    assert seconds_to({"curve": curve}, 7.0) == 5.0
    assert seconds_to({"curve": curve}, 4.25) == 17.5
    assert seconds_to({"curve": curve}, 3.9) is None
