"""How long the documents of rows are, and what that means for attention."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Documents by their length in tokens: `counts[length]` of them.

    Source of the two means: Pouransari and others 2024, arXiv:2405.13226, section 3.
    """

    counts: Mapping[int, float]

    @classmethod
    def of_spans(cls, rows: Iterable[tuple[int, ...]]) -> "Lengths":
        """The documents between the borders of rows."""
        counts: dict[int, float] = {}
        for spans in rows:
            for start, stop in itertools.pairwise(spans):
                counts[stop - start] = counts.get(stop - start, 0) + 1
        return cls(counts=counts)

    @property
    def mean_length(self) -> float:
        """Tokens of a document, in the mean."""
        return sum(length * count for length, count in self.counts.items()) / sum(self.counts.values())

    @property
    def mean_context(self) -> float:
        """Tokens of its own document that stand before a token, in the mean over tokens."""
        pairs = sum(count * length * (length - 1) for length, count in self.counts.items())
        return pairs / (2 * sum(length * count for length, count in self.counts.items()))

    def attention_share(self, fixed: int) -> float:
        """Attention work beside rows of `fixed` tokens that are one document each."""
        return self.mean_context / ((fixed - 1) / 2)

    def facts(self, fixed: int) -> dict[str, float]:
        """What a plan or a report says of them."""
        return {
            "mean_length_tokens": round(self.mean_length, 1),
            "mean_context_tokens": round(self.mean_context, 1),
            "attention_share": round(self.attention_share(fixed), 4),
        }
