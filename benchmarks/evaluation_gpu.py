"""Evaluation on one GPU at up to a million tokens, cell after cell; cut off anywhere, the same command goes on.

    PYTHONPATH=. python benchmarks/evaluation_gpu.py --results benchmarks/results/evaluation-h200.jsonl --commit abc

Every cell ends in one JSON line, appended at once. Cells whose line is there already, for the same commit, model and
hardware, are left out; a cell is not begun when its estimate does not fit into what is left of `--seconds`. Without
`--model FOLDER` the model has SmolLM2-135M's shape and random weights: the time does not depend on them, and as every
answer is wrong, every answer is decoded too, which is the dearest case. Text and tokenizer are those of examples/.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from evaluation_parts import Bench

from longspan.engine.anchors import anchor_keys
from longspan.engine.kept import Keep, layer_bytes
from longspan.engine.prefill import Branches, Prefill
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Rows
from longspan.eval.tasks.grid import Grid
from longspan.pipeline.benchline import today
from longspan.pipeline.benchparts import all_versions, hardware, peak_bytes, random_batch
from longspan.plan.flops import share_of_peak
from longspan.plan.machine import peak_flops
from longspan.plan.shapes import named_shape
from longspan.probes.needle import Needle
from longspan.utils.errors import LongspanError

K = 1024
Line = dict[str, Any]


class Stop(Exception):
    """The engine's forward pass is over: what follows is not measured."""


@dataclass(frozen=True)
class Cell:
    """One measurement: its name, what runs it, and about how many seconds it takes."""

    name: str
    run: Callable[["Bench"], Line]
    seconds: float


def ask(bench: Bench, task: Grid, *, only: int | None = None) -> Line:
    """Run a grid (or one of its contexts) and add its seconds up."""
    texts = bench.texts
    material = Material(documents=texts, encode=texts.encode, decode=texts.decode, seed=1, text_id="examples/novels")
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(Path(folder) / "rows.jsonl")
        desk = Desk(
            reader=bench.reader(),
            material=material,
            rows=rows,
            model_id="bench",
            stop=lambda: False,
            advance=lambda _: None,
        )
        start = time.monotonic()
        if only is None:
            found = task.run(desk).rows
        else:
            place = {"length": task.lengths[0], "trial": only, "pack": 0}
            context = task.rebuild(material, place)
            found = tuple(desk.ask(context, task=task.name, length=place["length"], cluster=str(only), spec={}))
        wall = time.monotonic() - start
    hits: dict[int, list[int]] = {}
    for row in found:
        cell = hits.setdefault(int(row["depth"] * task.depths), [0, 0])
        cell[0] += row["hit"]
        cell[1] += 1
    seconds, read_seconds = sum(row["seconds"] for row in found), sum(row["read_seconds"] for row in found)
    return {
        "tokens": task.lengths[0],
        "contexts": len({row["context"] for row in found}),
        "questions": len(found),
        "wall_seconds": wall,
        "seconds": seconds,
        "read_seconds": read_seconds,
        "cost_in_prefills": seconds / read_seconds,
        "cells": [hits[depth] for depth in sorted(hits)],
    }


# -- the cells --------------------------------------------------------------------------------------------------------


def check(bench: Bench) -> Line:
    return {"tokens": 150, "branch_difference": bench.reader().check()}


def rate(bench: Bench, *, tokens: int) -> Line:
    """Prefill against the forward pass of the training engine, on the same tokens; the better of two each."""
    decoder, shape = bench.decoder(), bench.decoder().shape
    prefill, ids = Prefill(decoder), bench.ids(tokens)
    ours = min(bench.timed(partial(prefill.read, ids)) for _ in range(2))
    del prefill
    best: dict[int, float] = {}
    for group in sorted({1, shape.kv_heads}):
        keys = anchor_keys(shape.layers, keep="inputs", segment=1)
        choice = EngineChoice(keep="inputs", segment=1, group=group, anchors=("device",) * len(keys))
        engine = Engine(decoder, choice, tokens=tokens)
        batch = random_batch(1, tokens, vocabulary=shape.vocabulary, device=bench.device, seed=0)
        best[group] = min(engine_forward(bench, engine, batch) for _ in range(2))
        del engine
    theirs = min(best.values())
    return {
        "tokens": tokens,
        "prefill_seconds": ours,
        "prefill_tokens_per_second": tokens / ours,
        "engine_forward_seconds": {f"group {group}": seconds for group, seconds in best.items()},
        "share_of_engine_rate": theirs / ours,
        "mfu": share_of_peak(bench.flops(tokens), seconds=ours, peak_flops=peak_flops(hardware(bench.device))),
    }


def engine_forward(bench: Bench, engine: Engine, batch: Any) -> float:
    """From the start of the forward pass to that of the loss."""
    at: dict[str, float] = {}

    def mark(name: str) -> None:
        bench.wait()
        at[name] = time.monotonic()
        if name == "loss":
            raise Stop

    engine.mark = mark
    try:
        engine.forward_backward(batch, divisor=1.0)
    except Stop:
        return at["loss"] - at["forward"]
    raise AssertionError("the engine has no phase called loss")


def column(bench: Bench, *, tokens: int) -> Line:
    """A needle at each of 20 depths in one context."""
    return ask(bench, Grid(probe=Needle(), lengths=(tokens,), depths=20, trials=1, pack=True))


def grid(bench: Bench, *, tokens: int, only: int | None) -> Line:
    """20 depths, 7 needles each, in 3 contexts: 21 trials a cell."""
    task = Grid(probe=Needle(), lengths=(tokens,), depths=20, trials=3, keys=7, pack=True)
    return ask(bench, task, only=only)


def side_by_side(bench: Bench, *, tokens: int) -> Line:
    """The same 20 depths, one needle each: all in one context, and one context a depth."""
    warm = Grid(probe=Needle(), lengths=(tokens,), depths=1, trials=1)
    ask(bench, warm)
    packed = ask(bench, Grid(probe=Needle(), lengths=(tokens,), depths=20, trials=1, pack=True))
    apart = ask(bench, Grid(probe=Needle(), lengths=(tokens,), depths=20, trials=1))
    each = [entry["wall_seconds"] / entry["questions"] for entry in (packed, apart)]
    return {
        "tokens": tokens,
        "packed_seconds": packed["wall_seconds"],
        "per_cell_seconds": apart["wall_seconds"],
        "questions": packed["questions"],
        "speedup_over_per_cell": each[1] / each[0],
    }


def large(bench: Bench, *, tokens: int, layers: int, keep: Keep) -> Line:
    """Llama-3-8B's shape at full width and few layers: what one layer takes does not depend on how many there are."""
    shape = named_shape("llama3-8b", layers=layers)
    decoder = bench.random(shape, theta=500_000.0, length=tokens)
    prefill = Prefill(decoder, keep)
    prefill.read(bench.ids(tokens // 8))  # kernels are tried and plans built, which takes seconds
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    kept: list[Any] = []
    read = bench.timed(lambda: kept.append(prefill.read(bench.ids(tokens))))
    questions = [random.Random(i).choices(range(2000), k=20) for i in range(40)]
    asked = bench.timed(lambda: Branches(prefill, kept[0], count=40, room_tokens=20).extend(questions))
    whole = named_shape("llama3-8b")
    each = layer_bytes(whole, tokens, prefill.dtype, codes=keep.codes)
    return {
        "tokens": tokens,
        "layers": layers,
        "kept": "fp8" if keep.codes else "exact",
        "layers_on_device": kept[0].on_device,
        "read_seconds": read,
        "ask_40_seconds": asked,
        "peak_bytes": peak_bytes(bench.device),
        "kept_bytes_of_32_layers": each * whole.layers,
        "weight_bytes_of_32_layers": whole.parameters * 2,
    }


def cells(longest: int, *, small: bool) -> tuple[Cell, ...]:
    """The most important first. `small` cuts everything down, to try the program."""
    lengths = [longest >> shift for shift in range(6, -1, -1)]
    apart, whole = (longest >> 4, longest >> 2) if not small else (longest // 2, longest // 2)
    found = [
        Cell("check", check, 20),
        Cell(f"rate {apart}", partial(rate, tokens=apart), 25),
        Cell(f"rate {whole}", partial(rate, tokens=whole), 60),
        Cell(f"side by side {apart}", partial(side_by_side, tokens=apart), 40),
        Cell(f"column {longest}", partial(column, tokens=longest), 130),
    ]
    for tokens in lengths:
        pieces = (None,) if tokens < longest // 2 else (0, 1, 2)
        for only in pieces:
            name = f"grid {tokens}" if only is None else f"grid {tokens} context {only}"
            share = (tokens / longest) ** 2 * (3 if only is None else 1)
            found.append(Cell(name, partial(grid, tokens=tokens, only=only), 12 + 110 * share))
    host, codes = Keep(place="host"), Keep(place="device", codes=True)
    if not small:
        found += [
            Cell(f"8b {longest} x 2 host", partial(large, tokens=longest, layers=2, keep=host), 90),
            Cell(f"8b {longest} x 1 fp8", partial(large, tokens=longest, layers=1, keep=codes), 50),
        ]
    return tuple(found)


# -- one after another ------------------------------------------------------------------------------------------------


def main() -> int:
    given = arguments()
    plan = cells(given.longest, small=given.longest < 64 * K)
    if given.list:
        print("\n".join(f"{cell.seconds:5.0f} s  {cell.name}" for cell in plan))
        return 0
    end = time.monotonic() + given.seconds
    bench = Bench(given)
    shared = {"hardware": hardware(bench.device), "model": bench.model, "commit": given.commit}
    missed = 0
    for cell in plan:
        if cell.name in finished(given.results, shared):
            print(f"# there already: {cell.name}", flush=True)
        elif cell.seconds > end - time.monotonic():
            missed += 1
            print(f"# no time left for: {cell.name}", flush=True)
        else:
            missed += not run(cell, bench, given, shared)
    if not missed and "summary" not in finished(given.results, shared):
        write(given.results, {"cell": "summary", **summary(finished(given.results, shared)), **shared})
    return int(missed > 0)


def run(cell: Cell, bench: Bench, given: argparse.Namespace, shared: Line) -> bool:
    """One cell, its line printed and kept; whether there was one."""
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    try:
        found = cell.run(bench)
    except (LongspanError, RuntimeError, AssertionError, MemoryError) as error:  # the others may still run
        print(f"# failed: {cell.name}: {type(error).__name__}: {error}", flush=True)
        return False
    line = {"cell": cell.name, "cell_seconds": round(time.monotonic() - start, 2), **found, **shared}
    line |= {"peak_bytes": peak_bytes(bench.device), "versions": all_versions(), "date": today()}
    line["command"] = f"python benchmarks/evaluation_gpu.py --longest {given.longest} --device {given.device}"
    write(given.results, line)
    return True


def write(results: Path, line: Line) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def finished(results: Path, shared: Line) -> dict[str, Line]:
    """The lines of this commit, model and hardware by cell; a half-written last line is none."""
    found: dict[str, Line] = {}
    for text in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if all(line.get(key) == value for key, value in shared.items()):
            found[line["cell"]] = line
    return found


def summary(lines: dict[str, Line]) -> Line:
    """What the promises speak of, from the lines of all cells."""
    grids = [line for name, line in lines.items() if name.startswith("grid ")]
    trials: dict[int, int] = {}
    for line in grids:
        trials[line["tokens"]] = trials.get(line["tokens"], 0) + min(count for _, count in line["cells"])
    return {
        "grid_lengths": sorted(trials),
        "grid_least_trials_a_cell": min(trials.values()),
        "grid_seconds": sum(line["wall_seconds"] for line in grids),
        "column_cost_in_prefills": next(v["cost_in_prefills"] for k, v in lines.items() if k.startswith("column")),
        "speedup_over_per_cell": next(v["speedup_over_per_cell"] for k, v in lines.items() if k.startswith("side")),
        "share_of_engine_rate": min(v["share_of_engine_rate"] for k, v in lines.items() if k.startswith("rate")),
        "date": today(),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=470.0)
    parser.add_argument("--model", type=Path, help="a model folder with the vocabulary of examples/ or a larger one")
    parser.add_argument("--longest", type=int, default=1024 * K, help="the longest context, a power of two")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--commit", default="", help="kept with every line; there may be no git where this runs")
    parser.add_argument("--list", action="store_true", help="only name the cells")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
