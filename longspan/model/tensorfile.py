"""Safetensors files, one tensor at a time: headers are checked before any weight is read. Nothing else is opened.

Format: u64 length of a JSON header, the header, then every tensor's bytes without gaps, little-endian.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from longspan.utils.errors import ModelError
from longspan.utils.files import storage_errors, without_duplicates

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {"U8": torch.uint8}  # of an optimizer's states, never of a model
NAMES = {dtype: name for name, dtype in (DTYPES | CODES).items()}


@runtime_checkable
class Stored(Protocol):
    """A tensor that is somewhere and can be read when its turn comes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, known before anything is read."""
        ...

    def read(self) -> Tensor:
        """The tensor, on any device, in any float type."""
        ...


@dataclass(frozen=True)
class Held:
    """A tensor in memory, as something to write."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its own type, in which `write_tensors` writes it unless told another."""
        return self.tensor.dtype

    def read(self) -> Tensor:
        """The tensor itself."""
        return self.tensor


@dataclass(frozen=True)
class Entry:
    """One tensor of a checked safetensors file; `start` is its first byte, counted from the start of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> Tensor:
        """The tensor on the CPU, in the file's type."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.start)
            got = file.readinto(tensor.flatten().view(torch.uint8).numpy().data)
        if got != tensor.nbytes:  # the file shrank after its header was checked
            raise _damaged(self.path, "it ends in the middle of a tensor")
        return tensor


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError("model.damaged", f"{path.name} is damaged: {why}", where=str(path), fix="copy the file again")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the data begin."""
    if not path.is_file():
        raise _damaged(path, "it is no ordinary file")
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(file_bytes - 8, MAX_HEADER_BYTES):
            raise _damaged(path, f"a header of {header_bytes} bytes in a file of {file_bytes}")
        text = file.read(header_bytes)
    try:
        header = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as cause:
        raise _damaged(path, f"its header is no JSON ({cause})") from cause
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table")
    header.pop("__metadata__", None)
    return header, 8 + header_bytes


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def read_entries(path: Path, *, codes: bool = False) -> dict[str, Entry]:
    """Every tensor of a file by name, without reading its weights.

    Raises `ModelError` when the header is no header, a tensor is of another type than float32, float16 or bfloat16
    (with `codes`: or bytes), sizes and byte ranges disagree, or the file is shorter or longer than its header says.
    """
    known = DTYPES | CODES if codes else DTYPES
    header, data_start = _read_header(path)
    entries, ranges = {}, []
    for name, record in header.items():
        if not isinstance(record, dict) or not _is_sizes(record.get("shape")):
            raise _damaged(path, f"no shape for {name!r}")
        if str(record.get("dtype")) not in known:
            raise ModelError(
                "model.dtype",
                f"{name} is of type {record.get('dtype')!r}; supported are {', '.join(known)}",
                where=str(path),
                fix="use the model's bfloat16, float16 or float32 weights",
            )
        dtype, span = known[record["dtype"]], record.get("data_offsets")
        if not _is_sizes(span) or len(span) != 2 or span[1] - span[0] != math.prod(record["shape"]) * dtype.itemsize:
            raise _damaged(path, f"the byte range of {name!r} does not fit its shape")
        entries[name] = Entry(path, dtype, tuple(record["shape"]), data_start + span[0])
        ranges.append(tuple(span))
    end = 0
    for start, stop in sorted(ranges):
        if start != end:
            raise _damaged(path, "tensors overlap, or leave gaps")
        end = stop
    have = path.stat().st_size - data_start
    if have != end:
        raise _damaged(path, f"it holds {have} bytes of weights, its header says {end}")
    return entries


def write_tensors(
    path: Path,
    tensors: Mapping[str, Stored],
    *,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a new file durably, tensor by tensor in the order given, and return its sha256, formed on the way.

    The bytes depend on the arguments alone; a `dtype` of None leaves every tensor, all of them `Held`, in its own type.
    `metadata` are words of the header that tell readers more.
    Raises `ModelError` when a value is NaN or infinite in `dtype`, `StorageError` when the disk cannot take it.
    """
    digest = hashlib.sha256()
    with storage_errors(path), path.open("xb") as file:
        header, _ = _layout(tensors, dtype, metadata or {})
        digest.update(header)
        file.write(header)
        for name, stored in tensors.items():
            own = _dtype(stored, dtype)
            tensor = stored.read().detach().to("cpu", own).contiguous()
            assert tuple(tensor.shape) == stored.shape
            if not torch.isfinite(tensor).all():
                raise ModelError(
                    "model.not-finite",
                    f"{name} is not finite in {str(own).removeprefix('torch.')}",
                    where=str(path),
                    fix="save in float32 or bfloat16; if that fails too, go back to an earlier checkpoint",
                )
            content = tensor.flatten().view(torch.uint8).numpy().data
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def file_bytes(tensors: Mapping[str, Stored], dtype: torch.dtype | None) -> int:
    """The size of the file that `write_tensors` would write."""
    header, data_bytes = _layout(tensors, dtype, {})
    return len(header) + data_bytes


def _dtype(stored: Stored, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        return dtype
    assert isinstance(stored, Held), "only what is in memory has a type of its own"
    return stored.dtype


def _layout(tensors: Mapping[str, Stored], dtype: torch.dtype | None, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The file up to its first tensor, and the bytes of all tensors."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, stored in tensors.items():
        own = _dtype(stored, dtype)
        start, end = end, end + math.prod(stored.shape) * own.itemsize
        entries[name] = {"dtype": NAMES[own], "shape": list(stored.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, so that readers may map them
    return len(text).to_bytes(8, "little") + text, end
