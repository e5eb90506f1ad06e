"""What a measurement is made of: random weights and tokens, attention left out, and where it ran."""

import os
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.attention.documents import runs_of
from longspan.attention.functional import Kernel, Need
from longspan.attention.layout import tokens_of
from longspan.attention.schemes.base import Scheme
from longspan.batch import Batch
from longspan.model.decoder import Decoder
from longspan.model.weights import load
from longspan.pipeline.rundir import versions
from longspan.plan.shapes import named_shape
from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape

THETA = 500_000.0  # of named shapes; a folder has its own


class Skipped(Kernel):
    """No attention at all: results of the right shapes, so that buffers, copies and linears can be tried alone."""

    name = "skipped"

    def reason_against(self, need: Need) -> str | None:  # noqa: ARG002
        """It serves everything, and is right about nothing: it is only ever forced."""
        return None

    def forward(self, q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """q in place of attention's output."""
        return q.clone(), torch.zeros(q.shape[:3], device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))

    def backward(self, do: Tensor, *tensors: Any, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the output for q, nothing for k and v."""
        _, k, v, *_rest = tensors
        return do.clone(), torch.zeros_like(k), torch.zeros_like(v)


def random_decoder(
    shape: ModelShape, frequencies: Frequencies, *, device: torch.device, dtype: torch.dtype, seed: int
) -> Decoder:
    """A decoder with random weights, made where and as it is used: never in float32 on the host first."""
    with torch.device("meta"):
        decoder = Decoder(shape, frequencies)
    decoder = decoder.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(0.0, 0.02, generator=generator)
    return decoder


def random_batch(rows: int, length: int, *, vocabulary: int, device: torch.device, seed: int) -> Batch:
    """Rows of random tokens, one document each, every token with a target but the last."""
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.randint(vocabulary, (rows, length), device=device, generator=generator)
    weights = torch.ones(rows, length, device=device)
    weights[:, -1] = 0 if length > 1 else 1
    return Batch(
        tokens=tokens,
        targets=tokens.roll(-1, dims=1),
        weights=weights,
        positions=torch.arange(length, device=device).expand(rows, length),
        spans=((0, length),) * rows,
    )


def warm_attention(
    scheme: Scheme, shape: ModelShape, *, rows: int, length: int, group: int, device: torch.device, dtype: torch.dtype
) -> None:
    """One head group forward and backward at full length: kernels are chosen and planned before time is taken.

    Of a scheme over ranks every rank calls this.
    """
    ratio, tokens = shape.heads // shape.kv_heads, tokens_of(scheme.layout(rows * length, scheme.rank))
    sizes = [(heads, tokens, shape.head_dim) for heads in (group * ratio, group * ratio, group, group)]
    do, q, k, v = (torch.randn(size, device=device, dtype=dtype) for size in sizes)
    runs = runs_of(((0, length),) * rows, length)
    for window in set(shape.windows):
        o, lse = scheme.forward(q, k, v, runs=runs, window=window)
        scheme.backward(do, q, k, v, o, lse, runs=runs, window=window)


def model_of(name: str, *, layers: int | None, tokens: int) -> tuple[ModelShape, Frequencies]:
    """Shape and frequencies of a model folder, or of a known shape for contexts of `tokens`, cut to so many layers.

    Raises `ConfigError` for an unknown name and `ModelError` for a folder that will not load.
    """
    folder = Path(name)
    if (folder / "config.json").is_file():
        found = load(folder, device="meta")  # sizes only
        count = min(layers or found.shape.layers, found.shape.layers)
        return found.shape.first_layers(count), found.frequencies
    shape = named_shape(name, layers=layers)
    base = RopeBase(rotary_dim=shape.head_dim, theta=THETA, trained_length=shape.trained_length)
    return shape, Default().frequencies(base, tokens)


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def all_versions() -> dict[str, str]:
    """Versions of packages, and of CUDA and cuDNN where there are any."""
    found = versions()
    if torch.version.cuda is not None:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    return found


def resident_bytes() -> int:
    """Pages of this process in memory now."""
    page = os.sysconf("SC_PAGE_SIZE")
    return int(Path("/proc/self/statm").read_text().split()[1]) * page


def peak_bytes(device: torch.device) -> int:
    """The most that live tensors of a GPU took since the last reset; elsewhere the most that this process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
