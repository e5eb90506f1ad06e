"""What the peers share: the command line, random tokens, timed passes, and the line of numbers."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
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
    name: str, given: argparse.Namespace, model: object, step: Callable[[object, object], object], *, keep: str
) -> None:
    """Warm up on a short row, time whole ones, print the line. `step` takes ids and positions, returns the loss."""
    import torch

    def row(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(0, model.config.vocab_size, (1, tokens), device=given.device)
        return ids, torch.arange(tokens, device=given.device)[None]

    def synchronize() -> None:
        if given.device == "cuda":
            torch.cuda.synchronize()

    weights = [t for p in model.parameters() for t in (p, p.grad)]
    held = sum(t.numel() * t.element_size() for t in weights)
    seconds, losses, problem = [], [], None
    try:
        if given.warmup_tokens:
            step(*row(min(given.warmup_tokens, given.tokens)))
        synchronize()
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ids, positions = row(given.tokens)
        for _ in range(given.steps):
            start = time.perf_counter()
            loss = step(ids, positions)
            synchronize()
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss.detach()))
    except torch.OutOfMemoryError as error:
        problem = f"out of memory: {str(error)[:200]}"
    peak = torch.cuda.max_memory_allocated() if given.device == "cuda" else None
    print(json.dumps(line(name, given, keep=keep, seconds=seconds, peak=peak, held=held, losses=losses, why=problem)))


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
