"""What the peers share: the command line, random tokens, timed passes, and the line of numbers."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def arguments(description: str) -> argparse.Namespace:
    """The flags of a peer; folders for packages are put in front of everything else."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", default="llama3-8b", help="a shape of longspan.plan.shapes, of Llama's kind")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--attention", choices=("cudnn", "flash"), default="cudnn")
    parser.add_argument("--warmup-tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--wheels", type=Path, help="a folder that pip filled with --target: packages of the peers")
    parser.add_argument("--commit", default="")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.wheels is not None:
        sys.path.insert(0, str(given.wheels))
    # Must be set before torch takes its first memory. Without it long cells die of fragmentation.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return given


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this one is. With several, rows are spread over all, and weights are on each."""

    rank: int = 0
    count: int = 1
    scheme: str = "local"
    mesh: dict[str, int] = field(default_factory=dict)

    def own(self, x: "torch.Tensor") -> "torch.Tensor":  # noqa: F821
        """This rank's consecutive part of some tokens, dim 1."""
        size = x.shape[1] // self.count
        return x[:, self.rank * size : (self.rank + 1) * size]

    def add_up(self, model: object, loss: "torch.Tensor") -> "torch.Tensor":  # noqa: F821
        """Gradients summed over ranks, as every data-parallel trainer does it; the summed loss comes back."""
        from torch import distributed

        if self.count > 1:
            for weight in model.parameters():
                distributed.all_reduce(weight.grad)
            loss = loss.detach().clone()
            distributed.all_reduce(loss)
        return loss


def meet(given: argparse.Namespace, *, scheme: str, axis: str) -> Ranks:
    """The ranks that torchrun started, as one axis of a mesh; one rank without it."""
    import torch
    from torch import distributed

    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if given.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if given.device == "cuda" else "gloo")
    mesh = {name: count if name == axis else 1 for name in ("replicate", "shard", "ring", "ulysses")}
    return Ranks(rank=distributed.get_rank(), count=count, scheme=scheme, mesh=mesh)


def loss_function(device: str):
    """Liger's summed cross entropy, which never holds whole logits: (head's weight, hidden, targets) to the loss.

    A target of -100 counts nothing. On a CPU it is plain cross entropy.
    """
    if device == "cpu":
        from torch.nn import functional

        return lambda weight, hidden, targets: functional.cross_entropy(
            (hidden @ weight.t()).float(), targets, reduction="sum"
        )
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")


def targets_of(ids: "torch.Tensor") -> "torch.Tensor":  # noqa: F821
    """The next token of every token of whole rows; the last has none."""
    targets = ids.roll(-1, dims=1)
    targets[:, -1] = -100
    return targets


def build(given: argparse.Namespace) -> "torch.nn.Module":  # noqa: F821 - imported late, after the folders are known
    """A Llama of transformers in bf16 with random weights, made on the device, gradients there from the start."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    from longspan.plan.shapes import named_shape

    shape = named_shape(given.shape, layers=given.layers)
    assert shape.family == "llama", "the peers run Llama's architecture"
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        max_position_embeddings=given.tokens,
        rms_norm_eps=shape.norm_epsilon,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device(given.device):
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    return model


def kernel(given: argparse.Namespace) -> object:
    """The context in which SDPA takes the kernel that was asked for."""
    from contextlib import nullcontext

    from torch.nn.attention import SDPBackend, sdpa_kernel

    if given.device == "cpu":
        return nullcontext()
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION if given.attention == "cudnn" else SDPBackend.FLASH_ATTENTION)


def measure(
    name: str,
    given: argparse.Namespace,
    model: object,
    step: Callable[[object, object], object],
    *,
    keep: str,
    ranks: Ranks | None = None,
    more: Callable[[], dict[str, object]] = dict,
) -> None:
    """Warm up on a short row, time whole ones, print the line. `step` takes ids and positions of whole rows and returns
    the loss; `more` tells what it found out about itself.
    """
    import torch
    from torch import distributed

    ranks = ranks or Ranks()
    weights = [t for p in model.parameters() for t in (p, p.grad)]
    held = sum(t.numel() * t.element_size() for t in weights)
    seconds, losses, problem = [], [], None
    try:
        for spent, loss in timed(given, model.config.vocab_size, step, ranks):
            seconds.append(spent)
            losses.append(loss)
    except torch.OutOfMemoryError as error:
        problem = f"out of memory: {str(error)[:200]}"
    peak = torch.cuda.max_memory_allocated() if given.device == "cuda" else None
    if ranks.rank == 0:
        own = line(name, given, keep=keep, seconds=seconds, peak=peak, held=held, losses=losses, why=problem)
        print(json.dumps(own | told(own, ranks) | more()), flush=True)
    if ranks.count > 1 and problem is None:  # after an error of memory the others may be anywhere
        distributed.destroy_process_group()


def timed(
    given: argparse.Namespace, vocabulary: int, step: Callable[[object, object], object], ranks: Ranks
) -> Iterator[tuple[float, float]]:
    """Seconds and loss of each whole row, after a short one."""
    import torch
    from torch import distributed

    def row(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)  # all ranks the same
        ids = torch.randint(0, vocabulary, (1, tokens), device=given.device)
        return ids, torch.arange(tokens, device=given.device)[None]

    def now() -> float:
        if given.device == "cuda":
            torch.cuda.synchronize()
        if ranks.count > 1:
            distributed.barrier()
        return time.perf_counter()

    if given.warmup_tokens:
        step(*row(min(given.warmup_tokens, given.tokens)))
    now()
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ids, positions = row(given.tokens)
    for _ in range(given.steps):
        start = now()
        loss = step(ids, positions)
        yield now() - start, float(loss.detach())


def told(line: dict[str, object], ranks: Ranks) -> dict[str, object]:
    """What lines of several ranks have beside the keys of all: speed is that of all together, MFU that of one."""
    if ranks.count == 1:
        return {}
    speed, mfu = line["tokens_per_second"], line["causal_mfu"]
    return {
        "mesh": ranks.mesh,
        "scheme": ranks.scheme,
        "ranks": ranks.count,
        "tokens_per_second_per_gpu": None if speed is None else speed / ranks.count,
        "share_of_single_gpu": None,
        "causal_mfu": None if mfu is None else mfu / ranks.count,
    }


def line(
    name: str,
    given: argparse.Namespace,
    *,
    keep: str,
    seconds: list[float],
    peak: int | None,
    held: int,
    losses: list[float],
    why: str | None,
) -> dict[str, object]:
    """The keys of our own lines, with what a peer cannot know left at null."""
    import resource

    import torch

    from longspan.pipeline.benchline import BenchLine, speed, today
    from longspan.plan.shapes import named_shape

    shape = named_shape(given.shape, layers=given.layers)
    gpu = given.device == "cuda"
    hardware = (
        torch.cuda.get_device_name() if gpu else f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    last = seconds[-1] if seconds and why is None else None
    rates = {"tokens_per_second": None, "causal_mfu": None}
    if last is not None:
        rates = speed(shape, (given.tokens,), seconds=last, hardware=hardware)
    return BenchLine(
        name=name,
        shape=given.shape,
        tokens=given.tokens,
        layers=shape.layers,
        keep=keep,
        segment=1,
        tile_tokens=None,
        group=None,
        hfu=None,
        peak_bytes=peak if why is None else None,
        predicted_peak_bytes=None,
        weight_and_gradient_bytes=held,
        host_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        stall_share=None,
        step_seconds=last,
        skipped_attention=False,
        command=" ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]),
        hardware=hardware,
        versions=peer_versions(),
        date=today(),
        commit=given.commit,
        more={
            "attention": given.attention if gpu else "cpu",
            "losses": losses,
            "all_step_seconds": seconds,
            "error": why,
        },
        **rates,
    ).to_json()


def peer_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    import contextlib
    import importlib.metadata

    import torch

    found = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for package in ("torch", "transformers", "deepspeed", "liger-kernel", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if torch.cuda.is_available():
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found
