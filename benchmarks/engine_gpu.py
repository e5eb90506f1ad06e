"""The engine and its peers on one GPU, cell after cell, in one command that can be cut off and started again.

    python benchmarks/engine_gpu.py --results benchmarks/results/engine-h200.jsonl --seconds 540 --wheels FOLDER

Every cell is a process of its own and ends in one JSON line (longspan/pipeline/benchline.py), which is printed and
appended at once. Cells whose line is there already, for the same commit and hardware, are left out. A cell is not begun
when its estimate does not fit into what is left of `--seconds`, and is stopped when the time is over.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
K = 1024


@dataclass(frozen=True)
class Cell:
    """One measurement: its name, its words after `python`, and about how many seconds it takes with its start."""

    name: str
    words: tuple[str, ...]
    seconds: float


def ours(tokens: int, layers: int, *more: str, seconds: float) -> Cell:
    words = ("--tokens", str(tokens), "--layers", str(layers), *more)
    tail = " ".join(more).replace("--", "")
    name = f"longspan {tokens // K}K x {layers}{f' {tail}' if tail else ''}"
    return Cell(name, ("-m", "longspan", "bench", "engine", *words), seconds)


def peer(script: str, tokens: int, layers: int, attention: str, *, seconds: float) -> Cell:
    # The second step counts: in the first, peers lock their host memory and build plans, which ours does before.
    words = ("--tokens", str(tokens), "--layers", str(layers), "--attention", attention, "--steps", "2")
    name = f"{script} {tokens // K}K x {layers} {attention}"
    return Cell(name, (str(PEERS / f"{script}.py"), *words), seconds)


# The most important first: a session may end after any of them. `--device-gib` makes the planner send anchors to the
# host although the device has room, where peers keep theirs: the same speed is wanted at a far lower peak.
WARM = ("--warmup-tokens", "16384")
STEP = ("--optimizer", "adamw8", "--update", "inside")
CELLS = (
    ours(64 * K, 32, "--device-gib", "38", *WARM, seconds=60),
    peer("alst_parts", 64 * K, 32, "cudnn", seconds=75),
    ours(128 * K, 16, "--device-gib", "25", *WARM, seconds=65),
    peer("alst_parts", 128 * K, 16, "cudnn", seconds=90),
    ours(256 * K, 4, "--device-gib", "17", *WARM, seconds=50),
    peer("alst_parts", 256 * K, 4, "cudnn", seconds=80),
    peer("alst_parts", 64 * K, 32, "flash", seconds=85),
    ours(256 * K, 32, *STEP, *WARM, seconds=215),
    ours(1024 * K, 2, *WARM, seconds=170),
    ours(1024 * K, 32, *STEP, "--keep", "inputs", "--segment", "4", "--skip-attention-compute", seconds=180),
    ours(512 * K, 16, "--shape", "llama3.2-1b", *STEP, *WARM, seconds=185),
    ours(32 * K, 32, *WARM, seconds=40),
    peer("plain", 32 * K, 32, "cudnn", seconds=45),
    ours(8 * K, 32, seconds=30),
    peer("plain", 8 * K, 32, "cudnn", seconds=30),
)


def main() -> int:
    given = arguments()
    cells = [cell for cell in CELLS if re.search(given.only, cell.name)]
    if given.list:
        print("\n".join(f"{cell.seconds:5.0f} s  {cell.name}" for cell in cells))
        return 0
    done = finished(given.results, commit=given.commit, hardware=given.hardware or gpu())
    end = time.monotonic() + given.seconds
    missed = 0
    for cell in cells:
        left = end - time.monotonic()
        if cell.name in done:
            print(f"# there already: {cell.name}", flush=True)
        elif cell.seconds > left:
            missed += 1
            print(f"# no time left for: {cell.name}", flush=True)
        else:
            missed += not run(cell, given, limit=left)
    return int(missed > 0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--only", default="", help="a regular expression that a cell's name must hold")
    parser.add_argument("--wheels", type=Path, help="a folder that pip filled with --target")
    parser.add_argument("--commit", default="", help="kept with every line; there may be no git where this runs")
    parser.add_argument("--hardware", help="instead of the GPU's name, to look for lines that are there already")
    parser.add_argument("--more", default="", help="words that every cell gets, such as '--device cpu --shape tiny'")
    parser.add_argument("--list", action="store_true", help="only name the cells")
    return parser.parse_args()


def gpu() -> str:
    """The GPU's name as the driver tells it, which is what lines carry."""
    found = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return found.stdout.splitlines()[0].strip()


def finished(results: Path, *, commit: str, hardware: str) -> set[str]:
    """Cells that have a line for this commit and hardware; a half-written last line is none."""
    found = set()
    for text in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("commit") == commit and line.get("hardware") == hardware:
            found.add(line.get("cell"))
    return found


def run(cell: Cell, given: argparse.Namespace, *, limit: float) -> bool:
    """Run one cell, print and keep its line; whether there was one."""
    words = [sys.executable, *cell.words, *given.more.split(), "--commit", given.commit]
    folders = [str(ROOT), *([str(given.wheels)] if given.wheels else [])]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    start = time.monotonic()
    # A session of its own, so that everything a cell has started ends with it.
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        print(f"# stopped, the time is over: {cell.name}", flush=True)
        return False
    line = last_line(out)
    if line is None:
        print(f"# failed ({process.returncode}): {cell.name}\n{errors[-3000:]}", flush=True)
        return False
    text = json.dumps({"cell": cell.name, "seconds": round(time.monotonic() - start, 1), **line})
    print(text, flush=True)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return True


def last_line(out: str) -> dict[str, object] | None:
    """The JSON object that ends an output, or None."""
    for text in reversed(out.strip().splitlines()[-3:]):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict) and "tokens" in value:
            return value
    return None


if __name__ == "__main__":
    sys.exit(main())
