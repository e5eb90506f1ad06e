"""What a model knows of the canaries that were planted in its training: their keys against foils, group by group."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from longspan.data.canaries import Insertion, foils
from longspan.model.decoder import Decoder

FOILS = 16


@torch.inference_mode()
def advantage(decoder: Decoder, entry: Insertion, filler: Sequence[int]) -> float:
    """How much likelier the planted value is after its key than after 16 foils, in nats of all its tokens.

    What the value alone has taught, whatever came before it, cancels: a pair across a border of documents is at 0.
    `filler` is other text that stands between key and value, as in training.
    """
    between = list(filler[: max(0, entry.distance - len(entry.key))])
    keys = [entry.key, *foils(entry, FOILS, vocabulary=decoder.shape.vocabulary)]
    rows = torch.tensor([[*key, *between, *entry.value] for key in keys], device=decoder.device)
    logits = decoder.logits(decoder.hidden(rows)[:, -len(entry.value) - 1 : -1])
    losses = functional.cross_entropy(logits.transpose(1, 2), rows[:, -len(entry.value) :], reduction="none")
    likelihoods = -losses.double().sum(dim=1)
    return float(likelihoods[0] - likelihoods[1:].mean())


def canary_scores(
    decoder: Decoder, maps: Mapping[int, Sequence[Insertion]], filler: Sequence[int]
) -> list[dict[str, Any]]:
    """One record for each stage, group and number of repeats: the mean advantage over its pairs, and its error.

    The error is the standard error over pairs; None for one pair alone.
    """
    found: defaultdict[tuple[int, str, int], list[float]] = defaultdict(list)
    for stage, insertions in maps.items():
        for entry in {entry.id: entry for entry in insertions}.values():
            found[stage, entry.group, entry.repeats].append(advantage(decoder, entry, filler))
    return [
        {
            "stage": stage,
            "group": group,
            "repeats": repeats,
            "pairs": len(values),
            "advantage_nats": round(sum(values) / len(values), 4),
            "standard_error": _standard_error(values),
        }
        for (stage, group, repeats), values in found.items()
    ]


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return round(math.sqrt(spread / len(values)), 4)
