"""The engine and its peers on one GPU, cell after cell (benchmarks/cells.py).

python benchmarks/engine_gpu.py --results benchmarks/results/engine-h200.jsonl --seconds 540 --wheels FOLDER
"""

import sys

from cells import PEERS, Cell, K, main


def ours(tokens: int, layers: int, *more: str, seconds: float) -> Cell:
    words = ("--tokens", str(tokens), "--layers", str(layers), *more)
    tail = " ".join(more).replace("--", "")
    name = f"longspan {tokens // K}K x {layers}{f' {tail}' if tail else ''}"
    return Cell(name, ("-m", "longspan", "bench", "engine", *words), seconds)


def peer(script: str, tokens: int, layers: int, attention: str, *, seconds: float, steps: int = 2) -> Cell:
    # The second step counts: in the first, peers lock their host memory and build plans, which ours does before. At 1M
    # tokens that is some seconds of three minutes, and one step has to do.
    words = ("--tokens", str(tokens), "--layers", str(layers), "--attention", attention, "--steps", str(steps))
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
    peer("alst_parts", 1024 * K, 2, "cudnn", seconds=260, steps=1),
    ours(1024 * K, 32, *STEP, "--keep", "inputs", "--segment", "4", "--skip-attention-compute", seconds=180),
    ours(512 * K, 16, "--shape", "llama3.2-1b", *STEP, *WARM, seconds=270),
    ours(32 * K, 32, *WARM, seconds=40),
    peer("plain", 32 * K, 32, "cudnn", seconds=45),
    ours(8 * K, 32, seconds=30),
    peer("plain", 8 * K, 32, "cudnn", seconds=30),
)

if __name__ == "__main__":
    sys.exit(main(CELLS, __doc__))
