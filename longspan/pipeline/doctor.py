"""Looking over the machine before work: versions, memory, disk, and kernels tested against the reference."""

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.attention.functional import Need
from longspan.attention.kernels import attend
from longspan.attention.reference import reference_attention
from longspan.attention.selection import verdicts
from longspan.pipeline.proof import largest

NEEDED_PYTHON, NEEDED_TORCH = (3, 11), (2, 11)
KEYS = 67  # tokens of the small rows on which kernels are tried; no round number
NEEDED_MEMORY_BYTES, NEEDED_DISK_BYTES = 2 * 2**30, 2**30
OPTIONAL = {
    "transformers": "checks that an export gives equal logits",
    "trackio": "a tracker",
    "wandb": "a tracker",
    "tensorboard": "a tracker",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's table. `ok` is None for what is only told; `fix` says what to do when it is False."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""


def examine(folder: Path) -> tuple[Check, ...]:
    """Every check of this machine; `folder` is where runs will be written."""
    return (
        _python(),
        _torch(),
        *_devices(),
        _memory(),
        _disk(folder),
        *(_kernels(device) for device in _available()),
        *(_engine_kernels(device) for device in _available()),
        *(_optional(package, use) for package, use in OPTIONAL.items()),
    )


def _available() -> list[torch.device]:
    return [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def _python() -> Check:
    ok = sys.version_info[:2] >= NEEDED_PYTHON
    return Check(name="python", ok=ok, detail=platform.python_version(), fix="install Python 3.11 or newer")


def _torch() -> Check:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return Check(name="torch", ok=(major, minor) >= NEEDED_TORCH, detail=detail, fix="pip install -U torch")


def _devices() -> list[Check]:
    cpu = Check(name="cpu", ok=None, detail=f"{os.cpu_count()} cores, {platform.machine()}")
    if not torch.cuda.is_available():
        return [cpu, Check(name="gpu", ok=None, detail="none; small models train on the CPU")]
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [cpu, *(Check(name="gpu", ok=None, detail=f"{g.name}, {g.total_memory / 2**30:.0f} GiB") for g in gpus)]


def _memory() -> Check:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{total_bytes / 2**30:.1f} GiB"
    return Check(name="memory", ok=total_bytes >= NEEDED_MEMORY_BYTES, detail=detail, fix="2 GiB are the least")


def _disk(folder: Path) -> Check:
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    detail = f"{free_bytes / 2**30:.1f} GiB free at {existing}"
    return Check(name="disk", ok=free_bytes >= NEEDED_DISK_BYTES, detail=detail, fix="free some space")


def _kernels(device: torch.device) -> Check:
    """A kernel that is missing or broken is a finding, not the end of the examination."""
    fix = "reinstall torch for this machine"
    # Kernels on a GPU run in bfloat16, whose rounding step is 2^-8; on a CPU in float32.
    dtype, limit = (torch.bfloat16, 0.03) if device.type == "cuda" else (torch.float32, 1e-4)
    try:
        error = attention_error(device, dtype)
    except RuntimeError as cause:  # what torch raises, a kernel that it lacks included
        return Check(name=f"attention on {device}", ok=False, detail=str(cause).splitlines()[0], fix=fix)
    detail = f"differs from the reference by {error:.1e} of its largest value (limit {limit:g})"
    return Check(name=f"attention on {device}", ok=error <= limit, detail=detail, fix=fix)


def _engine_kernels(device: torch.device) -> Check:
    """Which kernel the engine takes for what, and which of those that fit failed their self-test."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    common: dict[str, Any] = {"device": device, "dtype": dtype, "head_dim": 128, "ratio": 4}
    needs = {
        "long rows": Need(**common),
        "documents": Need(**common, short=True),
        "windows": Need(**common, window=True, short=True),
    }
    chosen, faults = [], []
    for form, need in needs.items():
        found = verdicts(need)
        sound = [verdict.kernel.name for verdict in found if not verdict.reason]
        chosen.append(f"{form}: {sound[0] if sound else 'none'}")
        fitting = (verdict for verdict in found if verdict.reason and verdict.kernel.reason_against(need) is None)
        faults += [f"{verdict.kernel.name} fails on {form}: {verdict.reason}" for verdict in fitting]
    ok = not any(line.endswith(": none") for line in chosen)
    detail = "; ".join([", ".join(chosen), *faults])
    return Check(name=f"engine on {device}", ok=ok, detail=detail, fix="reinstall torch for this machine")


def attention_error(device: torch.device, dtype: torch.dtype) -> float:
    """How far every form of attention is from the reference in float64: the worst over outputs and gradients.

    The forms: whole rows, a window, documents in a row, and a few queries after many keys, where partial results are
    merged. The largest difference of each tensor is divided by the tensor's largest value.
    """
    forms: tuple[tuple[int, dict[str, Any]], ...] = (
        (KEYS, {}),
        (KEYS, {"window": 13}),
        (KEYS, {"spans": ((0, 30, KEYS),)}),
        (20, {}),
    )
    return largest([_form_error(device, dtype, queries=queries, options=options) for queries, options in forms])


def _form_error(device: torch.device, dtype: torch.dtype, *, queries: int, options: dict[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, queries, 16), (1, 2, KEYS, 16), (1, 2, KEYS, 16))
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    trains = queries == KEYS  # merged results serve long prompts and have no gradient
    fast = [x.clone().requires_grad_(trains) for x in inputs]
    slow = [x.double().requires_grad_(trains) for x in inputs]
    found = attend(fast[0], fast[1], fast[2], **options)
    wanted = reference_attention(slow[0], slow[1], slow[2], **options)[0]
    pairs = [(found.detach(), wanted.detach())]
    if trains:
        gradients = (torch.autograd.grad(o.square().sum(), x) for o, x in ((found, fast), (wanted, slow)))
        pairs += zip(*gradients, strict=True)
    return torch.stack([(a.double() - b).abs().max() / b.abs().max() for a, b in pairs]).max()


def _optional(package: str, use: str) -> Check:
    try:
        detail = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        detail = f"not installed ({use})"
    return Check(name=package, ok=None, detail=detail)
