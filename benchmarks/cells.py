"""Cells of a benchmark, one after another, in one command that can be cut off and started again.

Every cell is processes of its own and ends in one JSON line (longspan/pipeline/benchline.py), which is printed and
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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
K = 1024
# The machine may have no network but this address, and no name that leads there.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node")
PARTING_SECONDS = 20.0  # that torchrun gets to end its ranks


@dataclass(frozen=True)
class Cell:
    """One measurement: its name, its words after `python`, and about how many seconds it takes with its start.

    `ranks` above one are started by torchrun. `single` names the cell on one GPU that it is compared with.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    ranks: int = 1
    single: str = ""


def main(cells: Sequence[Cell], description: str) -> int:
    """Run all that have no line yet, as far as the time goes; 1 if some are missing then."""
    given = arguments(description)
    cells = [cell for cell in cells if re.search(given.only, cell.name)]
    if given.list:
        print("\n".join(f"{cell.seconds:5.0f} s  {cell.name}" for cell in cells))
        return 0
    if not given.hardware:
        names = gpus()
        given.hardware = names[0]
        cells = [cell for cell in cells if cell.ranks <= len(names)]
    end = time.monotonic() + given.seconds
    missed = 0
    for cell in cells:
        left = end - time.monotonic()
        if cell.name in finished(given.results, commit=given.commit, hardware=given.hardware):
            print(f"# there already: {cell.name}", flush=True)
        elif cell.seconds > left:
            missed += 1
            print(f"# no time left for: {cell.name}", flush=True)
        else:
            missed += not run(cell, given, limit=left)
    return int(missed > 0)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--only", default="", help="a regular expression that a cell's name must hold")
    parser.add_argument("--wheels", type=Path, help="a folder that pip filled with --target")
    parser.add_argument("--commit", default="", help="kept with every line; there may be no git where this runs")
    parser.add_argument("--hardware", help="instead of the GPU's name, to look for lines that are there already")
    parser.add_argument("--more", default="", help="words that every cell gets, such as '--device cpu --shape tiny'")
    parser.add_argument("--list", action="store_true", help="only name the cells")
    return parser.parse_args()


def gpus() -> list[str]:
    """The GPUs' names as the driver tells them, which is what lines carry."""
    found = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return [name.strip() for name in found.stdout.splitlines()]


def lines(results: Path, *, commit: str, hardware: str) -> Iterator[dict[str, object]]:
    """The lines for this commit and hardware; a half-written last line is none."""
    for text in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        with suppress(ValueError):
            line = json.loads(text)
            if line.get("commit") == commit and line.get("hardware") == hardware:
                yield line


def finished(results: Path, *, commit: str, hardware: str) -> set[object]:
    """Cells that have a line."""
    return {line.get("cell") for line in lines(results, commit=commit, hardware=hardware)}


def run(cell: Cell, given: argparse.Namespace, *, limit: float) -> bool:
    """Run one cell, print and keep its line; whether there was one."""
    start = time.monotonic()
    found = output(cell, given, limit=limit)
    if found is None:
        print(f"# stopped, the time is over: {cell.name}", flush=True)
        return False
    code, out, errors = found
    line = last_line(out)
    if line is None:
        print(f"# failed ({code}): {cell.name}\n{errors[-6000:]}", flush=True)
        return False
    if cell.single:
        line["share_of_single_gpu"] = share(line, cell.single, given)
    text = json.dumps({"cell": cell.name, "seconds": round(time.monotonic() - start, 1), **line})
    print(text, flush=True)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return True


def output(cell: Cell, given: argparse.Namespace, *, limit: float) -> tuple[int, str, str] | None:
    """Exit code, output and errors of a cell's processes; None if they had to be stopped."""
    launch = (*TORCHRUN, str(cell.ranks)) if cell.ranks > 1 else ()
    words = [sys.executable, *launch, *cell.words, *given.more.split(), "--commit", given.commit]
    folders = [str(ROOT), *([str(given.wheels)] if given.wheels else [])]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # A session of its own, so that everything a cell has started ends with it.
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        stop(process)
        return None
    return process.returncode, out, errors


def stop(process: subprocess.Popen[str]) -> None:
    """End a cell. torchrun's ranks have sessions of their own: it must be asked to end them."""
    process.terminate()
    try:
        process.communicate(timeout=PARTING_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def last_line(out: str) -> dict[str, object] | None:
    """The JSON object that ends an output, or None."""
    for text in reversed(out.strip().splitlines()[-20:]):
        with suppress(ValueError):
            value = json.loads(text)
            if isinstance(value, dict) and "tokens" in value:
                return value
    return None


def share(line: dict[str, object], single: str, given: argparse.Namespace) -> float | None:
    """A GPU's tokens a second as a share of those of one GPU that works alone; None where one of them is not known."""
    found = lines(given.results, commit=given.commit, hardware=given.hardware)
    alone = next((other.get("tokens_per_second") for other in found if other.get("cell") == single), None)
    own = line.get("tokens_per_second_per_gpu")
    return own / alone if isinstance(own, float) and isinstance(alone, float) else None
