"""Words as hashes: runs of them can be found, counted and compared with numpy, in time linear in the text."""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from longspan.data.filters.base import Hashes

WORD, NO_WORD = re.compile(r"\w+"), re.compile(r"\W")
STRETCH_CHARACTERS = 2**20
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of an earlier word is lost


@lru_cache(maxsize=2**18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def words(text: str) -> tuple[Hashes, NDArray[np.int64]]:
    """The hash of every word, upper and lower case alike, and where each begins and ends in the text."""
    hashes, places = [np.empty(0, dtype=np.uint64)], [np.empty((0, 2), dtype=np.int64)]
    for found in _stretches(text):
        hashes.append(np.array([_hash(match[0].lower()) for match in found], dtype=np.uint64))
        places.append(np.array([match.span() for match in found], dtype=np.int64).reshape(-1, 2))
    return np.concatenate(hashes), np.concatenate(places)


def word_hashes(text: str) -> Hashes:
    """The hashes alone, for a third of the memory."""
    found = [np.empty(0, dtype=np.uint64)]
    found += [np.array([_hash(match[0].lower()) for match in part], dtype=np.uint64) for part in _stretches(text)]
    return np.concatenate(found)


def _stretches(text: str) -> Iterator[list[re.Match[str]]]:
    """The words of a text, some at a time: a match takes far more memory than the word that it stands for."""
    start = 0
    while start < len(text):
        border = NO_WORD.search(text, min(len(text), start + STRETCH_CHARACTERS))
        stop = border.start() if border else len(text)
        yield list(WORD.finditer(text, start, stop))
        start = max(stop, start + 1)


def runs(hashes: Hashes, length: int) -> Hashes:
    """A hash of each run of `length` neighbours; empty when there are fewer."""
    count = len(hashes) - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        total = mixed(total * MULTIPLIER + hashes[offset : offset + count])
    return total


def mixed(values: Hashes) -> Hashes:
    """The values with their bits stirred, so that high ones depend on low ones. Source: splitmix64's finaliser."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def covered(starts: NDArray[np.bool_], length: int, total: int) -> NDArray[np.bool_]:
    """Which of `total` words lie in a run of `length` whose first word is marked in `starts`."""
    change = np.zeros(total + 1, dtype=np.int64)
    first = np.flatnonzero(starts)
    np.add.at(change, first, 1)
    np.add.at(change, np.minimum(first + length, total), -1)
    return np.cumsum(change[:-1]) > 0
