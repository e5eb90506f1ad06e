"""The field's own table on all GPUs of one host: Llama-3-8B's shapes from 128K to 5M tokens, and peers beside it.

    python benchmarks/eight_gpus.py --results benchmarks/results/eight-h200.jsonl --seconds 540 --wheels FOLDER

It is made for eight GPUs and takes `--ranks 4` too. Cells of whole steps run all 32 layers, forward, backward and
update. From 2M tokens on a step would take longer than a command may: a few layers give the time of one, and
`skip-attention-compute` fills all buffers of all 32, which lines tell.
"""

import sys

from cells import PEERS, ROOT, Cell, K, main

ENGINE = str(ROOT / "benchmarks" / "parallel_engine.py")
WARM = ("--warmup-tokens", "16384")
STEP = ("--optimizer", "adamw8", "--update", "inside")
FILLED = ("--skip-attention-compute", "--keep", "inputs", "--segment", "4")
# A step of these on eight H100s, as published for UPipe (arXiv:2602.21196): 0.1, 0.4, 1.3 and 4.6 minutes.
WHOLE = {128: 70, 256: 95, 512: 150, 1024: 330}
LONG = {2048: (4, 260), 3072: (2, 280), 5120: (2, 500)}  # thousand tokens: layers, seconds


def ours(tokens: int, layers: int, ranks: int, scheme: str, *more: str, seconds: float) -> Cell:
    words = (ENGINE, "--scheme", scheme, "--tokens", str(tokens), "--layers", str(layers), *more)
    tail = " filled" if FILLED[0] in more else " whole step" if STEP[0] in more else ""
    return Cell(f"longspan {tokens // K}K x {layers} {scheme}{tail}, {ranks} GPUs", words, seconds, ranks=ranks)


def peer(script: str, tokens: int, layers: int, ranks: int, *, seconds: float) -> Cell:
    words = (str(PEERS / f"{script}.py"), "--tokens", str(tokens), "--layers", str(layers), "--steps", "2")
    return Cell(f"{script} {tokens // K}K x {layers}, {ranks} GPUs", words, seconds, ranks=ranks)


def cells(ranks: int) -> tuple[Cell, ...]:
    """The most important first: a session may end after any of them."""
    slower = 8 / ranks  # of the estimates, which are for eight
    grid = ("--inside", str(ranks // 2))  # pairs of neighbours in the ring
    whole = [
        ours(size * K, 32, ranks, "ulysses", *STEP, *WARM, seconds=40 + (seconds - 40) * slower)
        for size, seconds in WHOLE.items()
    ]
    schemes = [
        ours(size * K, 32, ranks, scheme, *more, *STEP, *WARM, seconds=40 + (WHOLE[size] - 40) * slower)
        for scheme, more in (("grid", grid), ("ring", ()))
        for size in (128, 512)
    ]
    peers = [
        peer(script, size * K, layers, ranks, seconds=seconds)
        for size, layers, seconds in ((128, 32, 130), (512, 8, 150))
        for script in ("torch_context", "alst_parts")
    ]
    long = [
        ours(size * K, layers, ranks, "ulysses", *WARM, seconds=40 + (seconds - 40) * slower)
        for size, (layers, seconds) in LONG.items()
    ]
    filled = [ours(size * K, 32, ranks, "ulysses", *STEP, *FILLED, seconds=300) for size in LONG]
    return (*whole, *peers, *schemes, *long, *filled)


def taken() -> int:
    """The word `--ranks N`, removed; eight without it."""
    if "--ranks" not in sys.argv:
        return 8
    place = sys.argv.index("--ranks")
    count = int(sys.argv[place + 1])
    del sys.argv[place : place + 2]
    return count


if __name__ == "__main__":
    sys.exit(main(cells(taken()), __doc__))
