"""What probes that rearrange a text share."""

import numpy as np

from longspan.probes.base import Encode, Ids
from longspan.utils.errors import DataError


def inside(text: str, encode: Encode) -> list[int]:
    """Ids of `text` as they stand inside a longer text: some tokenizers put a space before whatever comes first."""
    anchor = encode("x")
    both = encode("x" + text)
    return both[len(anchor) :] if both[: len(anchor)] == anchor else encode(text)


def joined(*parts: Ids | list[int]) -> Ids:
    """Ids one after another."""
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def refuse_short(room: int, length: int) -> None:
    """Raise `DataError` when there is no room for text."""
    if room < 1:
        raise DataError(
            "probe.length-short",
            f"{length} tokens are too few for the lines and the question of this probe",
            fix="ask for a greater length or for fewer lines",
        )
