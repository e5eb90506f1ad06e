"""The engine and its peers over the GPUs of one host, cell after cell (benchmarks/cells.py).

    python benchmarks/parallel_gpu.py --results benchmarks/results/parallel-h200.jsonl --seconds 540 --wheels FOLDER

Cells for more GPUs than there are do not count. A cell on several GPUs tells its speed as a share of that of one.
"""

import sys

from cells import PEERS, ROOT, Cell, K, main

ENGINE = str(ROOT / "benchmarks" / "parallel_engine.py")
WARM = ("--warmup-tokens", "16384", "--steps", "2")
STEP = ("--optimizer", "adamw8", "--update", "inside", "--host-gib", "110", "--warmup-tokens", "16384")


def single(tokens: int, layers: int, *, seconds: float) -> Cell:
    """The engine on one GPU."""
    words = (ENGINE, "--tokens", str(tokens), "--layers", str(layers), *WARM)
    return Cell(name_of(tokens, layers, "one GPU"), words, seconds)


def ours(tokens: int, layers: int, ranks: int, scheme: str, *more: str, tail: str = "", seconds: float) -> Cell:
    """The engine under a scheme; a whole step with its update has no cell on one GPU beside it."""
    words = (ENGINE, "--scheme", scheme, "--tokens", str(tokens), "--layers", str(layers), *more)
    name = name_of(tokens, layers, f"{scheme}{tail}, {ranks} GPUs")
    return Cell(name, words, seconds, ranks=ranks, single="" if STEP[0] in more else name_of(tokens, layers, "one GPU"))


def peer(script: str, tokens: int, layers: int, ranks: int, *, seconds: float) -> Cell:
    """Somebody else's context parallelism; the second step counts, as their first builds plans and locks memory."""
    words = (str(PEERS / f"{script}.py"), "--tokens", str(tokens), "--layers", str(layers), "--steps", "2")
    name = f"{script} {tokens // K}K x {layers}, {ranks} GPUs"
    return Cell(name, words, seconds, ranks=ranks, single=name_of(tokens, layers, "one GPU"))


def name_of(tokens: int, layers: int, how: str) -> str:
    return f"longspan {tokens // K}K x {layers} {how}"


# The most important first: a session may end after any of them.
CELLS = (
    single(256 * K, 4, seconds=65),
    ours(256 * K, 4, 2, "ulysses", *WARM, seconds=60),
    ours(256 * K, 4, 2, "ring", *WARM, seconds=60),
    single(64 * K, 32, seconds=65),
    ours(64 * K, 32, 2, "ulysses", *WARM, seconds=60),
    ours(64 * K, 32, 2, "ring", *WARM, seconds=60),
    peer("torch_context", 256 * K, 4, 2, seconds=95),
    peer("alst_parts", 256 * K, 4, 2, seconds=95),
    ours(256 * K, 4, 2, "ulysses", *WARM, "--profile", tail=" profiled", seconds=75),
    ours(256 * K, 4, 2, "ring", *WARM, "--profile", tail=" profiled", seconds=75),
    ours(256 * K, 4, 2, "gather", *WARM, seconds=60),
    ours(512 * K, 32, 2, "ulysses", *STEP, tail=" whole step", seconds=430),
    peer("torch_context", 64 * K, 32, 2, seconds=110),
    peer("alst_parts", 64 * K, 32, 2, seconds=110),
    ours(64 * K, 32, 2, "ulysses", *WARM, "--profile", tail=" profiled", seconds=70),
    *(ours(256 * K, 4, ranks, scheme, *WARM, seconds=60) for ranks in (4, 8) for scheme in ("ulysses", "ring", "grid")),
)

if __name__ == "__main__":
    sys.exit(main(CELLS, __doc__))
