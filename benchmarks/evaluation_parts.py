"""What the evaluation benchmark works with: the model, the text, the clock."""

import argparse
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longspan.data.tokenize import encode_document, load_tokenizer, plain_encode
from longspan.eval.context import DecoderReader
from longspan.model.decoder import Decoder
from longspan.model.weights import load
from longspan.pipeline.benchparts import random_decoder
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = ModelShape(
    family="llama",
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    mlp_width=1536,
    vocabulary=49152,
    norm_epsilon=1e-5,
    tied=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None,) * 30,
    trained_length=8192,
)


class Texts:
    """The novels as documents: ids without separators, with the form of a token store."""

    def __init__(self) -> None:
        tokenizer = load_tokenizer(ROOT / "examples" / "laptop-base" / "tokenizer.json")
        self.encode = plain_encode(tokenizer)
        self.decode = partial(tokenizer.decode, skip_special_tokens=False)
        files = sorted((ROOT / "examples" / "texts" / "novels").glob("*.txt"))
        self._ids = [encode_document(file.read_text(encoding="utf-8"), tokenizer).astype("int64") for file in files]

    @property
    def lengths(self) -> Any:
        return np.array([len(ids) + 1 for ids in self._ids])

    def read(self, document: int, start: int, length: int) -> Any:
        return self._ids[document][start : start + length]


class Bench:
    """The model, the text, the clock."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.device = torch.device(given.device)
        self.longest = given.longest
        self.texts = Texts()
        self.model = str(given.model) if given.model else "SmolLM2-135M shape, random weights"
        self.given_model: Path | None = given.model

    @cache  # noqa: B019 - one bench lives as long as the process
    def decoder(self) -> Decoder:
        if self.given_model:
            return load(self.given_model, device=str(self.device), dtype=torch.float32).eval()
        return self.random(SMOLLM2, theta=100_000.0, length=self.longest)

    def random(self, shape: ModelShape, *, theta: float, length: int) -> Decoder:
        base = RopeBase(rotary_dim=shape.head_dim, theta=theta, trained_length=shape.trained_length)
        frequencies = Default().frequencies(base, length)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return random_decoder(shape, frequencies, device=self.device, dtype=dtype, seed=0)

    @cache  # noqa: B019
    def reader(self) -> DecoderReader:
        return DecoderReader(self.decoder())

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds of some work, until the device has done it."""
        self.wait()
        start = time.monotonic()
        work()
        self.wait()
        return time.monotonic() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ids(self, tokens: int) -> torch.Tensor:
        return torch.randint(0, 2000, (tokens,), generator=torch.Generator().manual_seed(1))

    def flops(self, tokens: int) -> float:
        """Of one causal forward pass: matrices and attention."""
        shape = self.decoder().shape
        matrices = shape.parameters - shape.vocabulary * shape.width
        return 2.0 * matrices * tokens + 2.0 * shape.layers * shape.heads * shape.head_dim * tokens**2
