"""A safetensors file written tensor by tensor and hashed on the way, so that no second copy of the state is made."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

TYPES = {torch.float32: "F32"}  # weights and moments are float32 masters


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write float32 tensors durably and return the file's sha256; the caller turns `OSError` into its own.

    Source of the layout: the format section of the safetensors README (8 bytes of header length, JSON, data).
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for content in _pieces(tensors):
            digest.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, no data read."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and content of every tensor in a safetensors file, one at a time, mapped from disk."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            yield name, file.get_tensor(name)


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """The size of the file that `write_tensors` would write."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins on a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield _header(tensors)
    for tensor in tensors.values():
        yield tensor.detach().cpu().contiguous().reshape(-1).numpy().data.cast("B")
