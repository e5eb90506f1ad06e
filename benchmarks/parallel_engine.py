"""The engine over the GPUs of one host: one measurement and one line, from every rank that torchrun starts.

    torchrun --standalone --nproc-per-node 2 benchmarks/parallel_engine.py --scheme ulysses --tokens 262144 --layers 4

`longspan` is installed or on PYTHONPATH. Other words are those of `longspan bench engine`; `--tokens` counts the whole
row, over all ranks. Without torchrun this is one device. `--profile` runs one more step under torch's profiler and
tells what communication shows.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from exposed import Shares, shares_of_trace
from torch import Tensor, distributed

from longspan.attention.layout import tokens_of
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import Local
from longspan.batch import Batch
from longspan.engine import pointwise
from longspan.engine.precision import compute_dtype
from longspan.engine.run import Engine
from longspan.parallel.dist import Launch, World, join, launched
from longspan.parallel.mesh import AXES, Mesh
from longspan.parallel.weights import Weights, Whole, place_weights
from longspan.pipeline.bench import step_of, updater_of, weight_dtype, workload_of
from longspan.pipeline.benchline import BenchLine, today
from longspan.pipeline.benchparts import (
    Skipped,
    all_versions,
    hardware,
    model_of,
    peak_bytes,
    random_batch,
    random_decoder,
    resident_bytes,
    warm_attention,
)
from longspan.pipeline.benchsettings import BenchSettings
from longspan.pipeline.machine import probe
from longspan.pipeline.meshes import scheme_of
from longspan.pipeline.overrides import override
from longspan.plan.account import Plan
from longspan.plan.choose import choose
from longspan.plan.flops import hardware_flops, model_flops, share_of_peak
from longspan.rope.frequencies import Frequencies
from longspan.train.optimizer import Updater

DEADLINE_SECONDS = 900.0  # between two exchanges lies at most the attention of one call


@dataclass(frozen=True)
class Ranks:
    """Who takes part, and how a row is spread over them; one device has no world."""

    mesh: Mesh
    world: World | None

    @property
    def count(self) -> int:
        return self.mesh.ranks

    @property
    def first(self) -> bool:
        return self.world is None or self.world.launch.rank == 0


def main() -> None:
    given, words = arguments()
    settings = override(BenchSettings(), words, prog="benchmarks/parallel_engine.py")
    if settings is None:
        return
    assert settings.rows == 1, "one row is spread over the ranks"
    launch = launched() or Launch(rank=0, ranks=1)
    kind = "cpu" if settings.device == "cpu" or not torch.cuda.is_available() else "cuda"
    world = join(launch, device_type=kind, deadline_seconds=DEADLINE_SECONDS) if launch.ranks > 1 else None
    device = world.device if world else torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    line = measure(given, settings, Ranks(mesh_of(given, launch.ranks), world), device)
    if line is not None:
        print(json.dumps(line.to_json(), allow_nan=False), flush=True)
    if world:
        world.leave()


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=("local", "ring", "gather", "ulysses", "grid"), default="local")
    parser.add_argument("--inside", type=int, default=2, help="ranks of the inner axis of the grid")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_known_args()


# -- what is measured --------------------------------------------------------------------------------------------------


def mesh_of(given: argparse.Namespace, count: int) -> Mesh:
    """The mesh that a scheme wants of the ranks that there are."""
    if given.scheme == "ulysses":
        return Mesh(ulysses=count)
    if given.scheme == "grid":
        return Mesh(ring=count // given.inside, ulysses=given.inside)
    return Mesh(ring=count, across="gather" if given.scheme == "gather" else "ring")


def plan_of(settings: BenchSettings, ranks: Ranks, device: torch.device) -> tuple[Plan, Frequencies]:
    """One plan for all ranks: for the least memory that any of them sees."""
    shape, frequencies = model_of(settings.shape, layers=settings.layers, tokens=settings.tokens)
    work = workload_of(settings, shape, device, weight_dtype(settings, device))
    local = -(-settings.tokens // ranks.count)
    work = replace(work, tokens=local, lengths=(settings.tokens,), mesh=ranks.mesh)
    seen = probe(device, folder=settings.anchors).part(ranks.count)
    device_bytes, host_bytes = least([seen.device_bytes, seen.host_bytes], ranks)
    plan = choose(work, settings.engine, replace(seen, device_bytes=int(device_bytes), host_bytes=int(host_bytes)))
    assert plan.choice.keep != "everything", "autograd knows no ranks: say --keep attention"
    return plan, frequencies


@dataclass(frozen=True)
class Made:
    """What runs on this rank, and the bytes of its weights and gradients."""

    engine: Engine
    scheme: Scheme
    updater: Updater | None
    held_bytes: int


def build(settings: BenchSettings, plan: Plan, ranks: Ranks, device: torch.device, frequencies: Frequencies) -> Made:
    """Decoder, scheme, weights, engine and updater of this rank."""
    dtype = weight_dtype(settings, device)
    decoder = random_decoder(plan.work.shape, frequencies, device=device, dtype=dtype, seed=settings.seed)
    kernel = Skipped() if settings.skip_attention_compute else None
    scheme: Scheme = Local(kernel=kernel, merge=pointwise.merge_)
    weights: Weights = Whole(decoder)
    if ranks.world is not None:
        scheme = scheme_of(ranks.mesh, ranks.world, plan.choice, kernel=kernel)
        kept = compute_dtype(decoder)
        weights = place_weights(decoder, decoder.parts, world=ranks.world, mesh=ranks.mesh, dtype=kept)
    updater = updater_of(decoder, settings, weights)
    if updater is None:
        for weight in weights.kept.values():
            weight.grad = torch.zeros_like(weight)
    tokens = max(tokens_of(scheme.layout(settings.tokens, rank)) for rank in range(scheme.ranks))
    engine = Engine(decoder, plan.choice, tokens=tokens, folder=settings.anchors, scheme=scheme, weights=weights)
    engine.store.measure = device.type == "cuda"
    tensors = [t for p in weights.kept.values() for t in (p, p.grad) if t is not None]
    return Made(engine, scheme, updater, sum(t.numel() * t.element_size() for t in tensors))


def measure(given: argparse.Namespace, settings: BenchSettings, ranks: Ranks, device: torch.device) -> BenchLine | None:
    """Build, warm up, measure; the line comes back on the first rank."""
    plan, frequencies = plan_of(settings, ranks, device)
    if ranks.first:
        print("\n".join(plan.account()), file=sys.stderr, flush=True)
    before = resident_bytes()
    made = build(settings, plan, ranks, device, frequencies)
    engine, step = made.engine, step_of(made.engine, made.updater)
    warm_up(step, plan, settings, made.scheme, device)
    engine.store.stall_seconds()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    batch = batch_of(settings.tokens, plan, settings, device)
    seconds, losses = [], []
    for _ in range(settings.steps):
        start = meet(device, ranks)
        loss = step(batch)
        seconds.append(meet(device, ranks) - start)
        losses.append(float(loss) / settings.tokens)
    stall = engine.store.stall_seconds() / sum(seconds)
    peak = peak_bytes(device) - (0 if device.type == "cuda" else before)
    last, peak, stall, host = most([seconds[-1], peak, stall, engine.host.taken_bytes], ranks)
    shares = profiled(step, batch, device, ranks) if given.profile else {}
    if not ranks.first:
        return None
    numbers = Numbers(seconds=last, peak=int(peak), stall=stall, host=int(host), held=made.held_bytes)
    more = told(settings, plan, ranks, last) | {"losses": losses, "all_step_seconds": seconds} | shares
    return line_of(settings, plan, device, numbers, more)


def batch_of(tokens: int, plan: Plan, settings: BenchSettings, device: torch.device) -> Batch:
    """One row of random tokens, the same on all ranks."""
    return random_batch(1, tokens, vocabulary=plan.work.shape.vocabulary, device=device, seed=settings.seed)


def warm_up(
    step: Callable[[Batch], Tensor], plan: Plan, settings: BenchSettings, scheme: Scheme, device: torch.device
) -> None:
    """A short row, and one head group at full length: without it the first pass would build the kernels' plans."""
    if not settings.warmup_tokens:
        return
    step(batch_of(min(settings.warmup_tokens, settings.tokens), plan, settings, device))
    if device.type == "cuda" and not settings.skip_attention_compute:
        warm_attention(
            scheme,
            plan.work.shape,
            rows=1,
            length=settings.tokens,
            group=plan.choice.group,
            device=device,
            dtype=torch.bfloat16,
        )


def profiled(
    step: Callable[[Batch], Tensor], batch: Batch, device: torch.device, ranks: Ranks
) -> dict[str, float | None]:
    """Shares of one more step, of the rank where each is largest; nothing is known without a GPU."""
    if device.type != "cuda":
        step(batch)
        return dict.fromkeys(Shares.__dataclass_fields__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        meet(device, ranks)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step(batch)
            torch.cuda.synchronize(device)
        profile.export_chrome_trace(str(path))
        found = asdict(shares_of_trace(path))
    return dict(zip(found, most(list(found.values()), ranks), strict=True))


# -- over ranks --------------------------------------------------------------------------------------------------------


def meet(device: torch.device, ranks: Ranks) -> float:
    """The time when all ranks are here and the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if ranks.count > 1:
        distributed.barrier()
    return time.perf_counter()


def most(values: Sequence[float], ranks: Ranks) -> list[float]:
    """Each value where it is largest."""
    found = torch.tensor(values, dtype=torch.float64)
    if ranks.count > 1:
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return found.tolist()


def least(values: Sequence[float], ranks: Ranks) -> list[float]:
    """Each value where it is smallest."""
    return [-value for value in most([-value for value in values], ranks)]


# -- the line ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """What was measured, of the rank where it is largest."""

    seconds: float
    peak: int
    stall: float
    host: int
    held: int


def told(settings: BenchSettings, plan: Plan, ranks: Ranks, seconds: float) -> dict[str, Any]:
    """What these lines have beside the keys of all."""
    count, choice, mesh = ranks.count, plan.choice, ranks.mesh
    across = mesh.across if mesh.ring > 1 else "local"
    return {
        "mesh": dict(zip(AXES, mesh.sizes, strict=True)),
        "scheme": across if mesh.ulysses == 1 else "ulysses" if mesh.ring == 1 else "grid",
        "ranks": count,
        "tokens_per_second_per_gpu": settings.tokens / seconds / count,
        "share_of_single_gpu": None,
        "kv_width": choice.kv_width,
        "query_width": choice.query_width,
        "local_tokens": plan.work.tokens,
        "gradient": choice.gradient,
        "anchors": {tier: choice.anchors.count(tier) for tier in ("device", "host", "disk")},
        "optimizer": settings.optimizer,
        "update": settings.update,
        "predicted_seconds": plan.seconds.total,
        "predicted_parts": plan.memory.parts,
        "predicted_phase": plan.memory.peak_phase,
        "predicted_host_bytes": plan.memory.host_bytes,
    }


def line_of(
    settings: BenchSettings, plan: Plan, device: torch.device, numbers: Numbers, more: dict[str, Any]
) -> BenchLine:
    """Bytes are those of one rank; tokens a second are those of all together, MFU and HFU the mean of their GPUs."""
    work, choice = plan.work, plan.choice
    count = work.mesh.ranks
    flops = model_flops(work.shape, (settings.tokens,)) / count
    run = hardware_flops(work.shape, (settings.tokens,), choice) / count
    skipped = settings.skip_attention_compute
    peak = None if skipped else plan.machine.peak_flops
    return BenchLine(
        name="longspan, attention skipped" if skipped else "longspan",
        shape=settings.shape,
        tokens=settings.tokens,
        layers=work.shape.layers,
        keep=choice.keep,
        segment=choice.segment,
        tile_tokens=choice.tile_tokens,
        group=choice.group,
        tokens_per_second=settings.tokens / numbers.seconds,
        causal_mfu=share_of_peak(flops, seconds=numbers.seconds, peak_flops=peak),
        hfu=share_of_peak(run, seconds=numbers.seconds, peak_flops=peak),
        peak_bytes=numbers.peak,
        predicted_peak_bytes=plan.memory.device_bytes,
        weight_and_gradient_bytes=numbers.held,
        host_peak_bytes=numbers.host,
        stall_share=numbers.stall,
        step_seconds=numbers.seconds,
        skipped_attention=skipped,
        command=" ".join(["benchmarks/parallel_engine.py", *sys.argv[1:]]),
        hardware=hardware(device),
        versions=all_versions(),
        date=today(),
        commit=settings.commit,
        more=more,
    )


if __name__ == "__main__":
    main()
