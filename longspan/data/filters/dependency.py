"""Documents in which nothing far back helps to predict what comes."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from longspan.data.filters.base import Filter, Ids, Judge, Tools, Verdict

LEAST_GAIN = 0.1  # a smaller share of perplexity saved counts for nothing

Pairs = Sequence[tuple[int, int]]


class Dependency(Filter):
    """Keeps documents whose long-dependency score is at least `least_score`.

    The ids of a document are cut into chunks of `chunk_tokens`; up to `pairs` pairs of a chunk and an earlier one are
    drawn, of at most `chunks` chunks. A small model, `model` or the recipe's own, gives the perplexity of the chunk
    alone and after the earlier one: the gain, weighed by distance and by how much this earlier chunk stands out.
    Documents of one chunk score 0. Forward passes only. Source: Chen and others 2024, arXiv:2405.17915, section 3.
    """

    kind: Literal["dependency"] = "dependency"
    least_score: float = Field(default=0.1, ge=0.0)
    chunk_tokens: int = Field(default=128, ge=8)
    chunks: int = Field(default=256, ge=2)
    pairs: int = Field(default=500, ge=1)
    model: Path | None = None

    def judge(self, tools: Tools) -> Judge:
        """By the score; which pairs are drawn depends on the document's id alone."""
        encode, perplexities = tools.encode, tools.perplexities
        assert encode is not None
        assert perplexities is not None, "curation loads a model for this filter"

        def judged(name: str, text: str) -> Verdict:
            pieces, pairs = self.drawn(name, encode(text))
            empty = np.empty(0, dtype=np.int64)
            later = sorted({i for i, _ in pairs})
            asked = [(empty, pieces[i]) for i in later] + [(pieces[j], pieces[i]) for i, j in pairs]
            found = perplexities(asked) if asked else []
            alone = dict(zip(later, found, strict=False))
            score = dependency_score(alone, dict(zip(pairs, found[len(later) :], strict=True)), count=len(pieces))
            score /= max(1, len(pairs))  # a mean, so that documents of any length compare
            if score < self.least_score:
                return Verdict(text=None, reason="no-dependency", scores={"score": score})
            return Verdict(text=text, scores={"score": score})

        return judged

    def drawn(self, name: str, ids: Ids) -> tuple[list[Ids], list[tuple[int, int]]]:
        """The chunks that are looked at, in their order, and the pairs (later, earlier) that are compared."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        whole = len(ids) // self.chunk_tokens
        picked = np.sort(draw.permutation(whole)[: self.chunks])
        pieces = [ids[at * self.chunk_tokens : (at + 1) * self.chunk_tokens] for at in picked]
        later, earlier = np.tril_indices(len(pieces), -1)
        chosen = np.sort(draw.permutation(len(later))[: self.pairs])
        return pieces, list(zip(later[chosen].tolist(), earlier[chosen].tolist(), strict=True))


def dependency_score(alone: dict[int, float], after: dict[tuple[int, int], float], *, count: int) -> float:
    """The long-dependency score: over pairs with a gain above 0.1, (gain + distance) · how far the pair stands out.

    `alone[i]` is the perplexity of chunk i, `after[i, j]` that of chunk i after chunk j < i, `count` the chunks. The
    gain is (alone - after) / alone; the distance (i - j) / (count - 1); how far chunk i's pairs stand out is
    (ln n - H) / ln n with the entropy H of the softmax over its n differences alone - after, and 1 when n is 1.
    Source: arXiv:2405.17915, section 3.2, as its code computes it.
    """
    total = 0.0
    for i, own in alone.items():
        pairs = [(j, value) for (later, j), value in after.items() if later == i]
        if not pairs:
            continue
        spread = _standing_out(np.array([own - value for _, value in pairs]))
        for j, value in pairs:
            gain = (own - value) / own
            if gain > LEAST_GAIN:
                total += (gain + min(1.0, (i - j) / (count - 1))) * spread
    return total


def _standing_out(differences: NDArray[np.float64]) -> float:
    count = len(differences)
    if count == 1:
        return 1.0
    shares = np.exp(differences - differences.max())
    shares /= shares.sum()
    entropy = -float(np.sum(shares * np.log(np.maximum(shares, 1e-300))))
    return min(1.0, max(0.0, (math.log(count) - entropy) / math.log(count)))
