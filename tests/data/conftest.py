"""Tokenizers and stores small enough for every test."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from longspan.data.store import SHARD_BYTES, Origin, StoreWriter, TokenStore
from longspan.data.tokenize import train_tokenizer

WORDS = [
    "the",
    "of",
    "lantern",
    "harbour",
    "walked",
    "under",
    "seventeen",
    "quiet",
    "stones",
    "toward",
    "morning",
    "it's",
    "can't",
    "river",
    "glass",
]


def prose(characters: int, *, seed: int = 0) -> str:
    """Words, digits and line ends at random."""
    rng = random.Random(seed)
    parts = []
    while sum(map(len, parts[-1:])) + len(parts) * 5 < characters * 2:
        parts.append(rng.choice(WORDS) + rng.choice([" ", " ", " ", ", ", ".\n", f" {rng.randrange(10_000)} "]))
    return "".join(parts)[:characters]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([prose(30_000, seed=1)], vocabulary=320)


def write_store(
    folder: Path, documents: Sequence[Sequence[int]], *, vocabulary: int, separator: int, shard_bytes: int = SHARD_BYTES
) -> TokenStore:
    origin = Origin(
        vocabulary=vocabulary, separator=separator, tokenizer_sha256="none", fingerprint="test", quarantine={}
    )
    with StoreWriter(folder, origin, shard_bytes=shard_bytes) as writer:
        for number, ids in enumerate(documents):
            writer.add(f"document-{number}", [np.array(ids, dtype=np.uint32)])
        writer.finish()
    return TokenStore.open(folder)


@pytest.fixture(scope="session")
def make_store() -> Callable[..., TokenStore]:
    return write_store


@pytest.fixture(scope="session")
def make_prose() -> Callable[..., str]:
    return prose
