"""A reader of GGUF version 3 files: metadata, and tensors of types F32, F16, Q4_1 and Q8_0 as float32.

The file is not trusted: every count, length and offset is checked against the bytes that are there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from longspan.utils.errors import ModelError

MAX_HEADER_BYTES = 32 * 2**20  # metadata and tensor records; a vocabulary of 250,000 takes a third of it
MAX_DIMS = 4
ALIGNMENT = 32
STRING, ARRAY = 8, 9
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
# Tensor types: (name, weights a block, bytes a block).
BLOCKS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}


def dequantise(raw: np.ndarray, kind: str) -> np.ndarray:
    """Float32 weights from the bytes of whole blocks.

    Q4_1: float16 d and m, then 16 bytes; weight i < 16 is d · low nibble i + m, weight 16 + i is d · high nibble i + m.
    Q8_0: float16 d, then 32 signed bytes q; d · q. F32 and F16 are what they are.
    """
    weights: np.ndarray
    if kind == "Q8_0":
        blocks = raw.reshape(-1, 34)
        weights = _float16(blocks[:, :2]) * blocks[:, 2:].view(np.int8)
    elif kind == "Q4_1":
        blocks = raw.reshape(-1, 20)
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        weights = _float16(blocks[:, :2]) * nibbles + _float16(blocks[:, 2:4])
    else:
        weights = _float16(raw) if kind == "F16" else raw.view("<f4")
    flat: np.ndarray = weights.ravel()
    return flat


def _float16(raw: np.ndarray) -> np.ndarray:
    """Float32 values of little-endian float16 bytes; the last dim halves."""
    values: np.ndarray = np.ascontiguousarray(raw).view("<f2")
    return values.astype(np.float32)


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a checked file; `start` is its first byte, counted from the start of the file."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    length_bytes: int

    def read(self) -> Tensor:
        """The weights, float32, on the CPU."""
        raw = np.fromfile(self.path, dtype=np.uint8, count=self.length_bytes, offset=self.start)
        return torch.from_numpy(dequantise(raw, self.kind).reshape(self.shape))


@dataclass(frozen=True)
class GGUF:
    """A whole file: metadata by key (arrays as lists) and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: Path) -> GGUF:
    """Read metadata and tensor records, no weights. Raises `ModelError` for whatever does not fit the bytes."""
    if not path.is_file():
        raise ModelError("model.missing", "there is no such file", where=str(path), fix="check the path")
    with path.open("rb") as file:
        return _Reader(file, path).read()


class _Reader:
    """Takes a file's header apart, piece by piece, never past `MAX_HEADER_BYTES` or the end of the file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.file_bytes = path.stat().st_size
        self.left = min(self.file_bytes, MAX_HEADER_BYTES)

    def read(self) -> GGUF:
        if self.take(4) != b"GGUF":
            raise self.damaged("it does not begin with GGUF")
        version = self.number(4)
        if version != 3:
            raise self.damaged(f"version {version} is not supported, 3 is")
        tensors, pairs = self.number(10), self.number(10)
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string()
            if key in metadata:
                raise self.damaged(f"key {key!r} stands twice")
            metadata[key] = self.value(self.number(4))
        records: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = self.string()
            if name in records:
                raise self.damaged(f"tensor {name!r} stands twice")
            records[name] = self.record(name)
        return GGUF(metadata, self.placed(records, metadata.get("general.alignment", ALIGNMENT)))

    def damaged(self, why: str) -> ModelError:
        return ModelError(
            "model.gguf", f"{self.path.name} cannot be read: {why}", where=str(self.path), fix="copy the file again"
        )

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.damaged(f"its header needs {count} bytes where {self.left} may follow")
        self.left -= count
        return self.file.read(count)

    def number(self, kind: int) -> Any:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def string(self) -> str:
        try:
            return self.take(self.number(10)).decode()
        except UnicodeDecodeError as cause:
            raise self.damaged("a text in its header is no UTF-8") from cause

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(self.number(4), self.number(10))
        if kind not in NUMBERS:
            raise self.damaged(f"value type {kind} is unknown")
        return self.number(kind)

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            return [self.string() for _ in range(count)]  # each takes 8 bytes at least, so `take` bounds the count
        if kind not in NUMBERS:
            raise self.damaged(f"arrays of type {kind} are not supported")
        dtype = np.dtype(NUMBERS[kind])
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return values

    def record(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        """Type, shape (slowest dim first), offset and length of a tensor."""
        dims = self.number(4)
        if not 1 <= dims <= MAX_DIMS:
            raise self.damaged(f"{name} has {dims} dims")
        shape = tuple(self.number(10) for _ in range(dims))[::-1]
        kind, offset = self.number(4), self.number(10)
        if kind not in BLOCKS:
            have = ", ".join(known for known, _, _ in BLOCKS.values())
            raise self.damaged(f"{name} is of tensor type {kind}; supported are {have}")
        label, block_weights, block_bytes = BLOCKS[kind]
        if 0 in shape or shape[-1] % block_weights:
            raise self.damaged(f"{name} is {list(shape)}, its rows are no whole blocks of {block_weights}")
        return label, shape, offset, math.prod(shape) // block_weights * block_bytes

    def placed(
        self, records: dict[str, tuple[str, tuple[int, ...], int, int]], alignment: Any
    ) -> dict[str, GGUFTensor]:
        """The tensors with their places in the file. None may overlap, so reading all is bounded by the file."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"alignment {alignment!r} is no power of two")
        data_start = -(-self.file.tell() // alignment) * alignment
        end = 0
        for name, (_, _, offset, length_bytes) in sorted(records.items(), key=lambda item: item[1][2]):
            if offset < end or offset % alignment:
                raise self.damaged(f"{name} overlaps another tensor or is not aligned")
            end = offset + length_bytes
        if data_start + end > self.file_bytes:
            raise self.damaged(f"its tensors need {data_start + end} bytes, it has {self.file_bytes}")
        return {
            name: GGUFTensor(self.path, kind, shape, data_start + offset, length_bytes)
            for name, (kind, shape, offset, length_bytes) in records.items()
        }
