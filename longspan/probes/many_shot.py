"""Many-shot labels: a text of labelled examples, and a new one to be labelled in the same way."""

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, coined
from longspan.probes.base import Filled, FilledProbe, Item

CUES, CUES_A_LINE, OTHERS_A_LINE = 12, 2, 3


class ManyShot(FilledProbe):
    """Lines of invented words with one of `labels` labels; the label hangs on two cue words of the line."""

    kind: Literal["many_shot"] = "many_shot"
    labels: int = Field(default=8, ge=2, le=64)

    def fill(self, lines: int, *, depths: Sequence[float], rng: random.Random, split: Split) -> Filled:
        """The examples, labels in turn, and a new line for each question; chance is one in `labels`."""
        words = coined(self.labels * (CUES + 1) + 200, syllables=4, rng=rng, split=split)
        labels, rest = words[: self.labels], words[self.labels :]
        cues = [rest[i * CUES : (i + 1) * CUES] for i in range(self.labels)]
        others = rest[self.labels * CUES :]
        order = [i % self.labels for i in range(lines)]
        rng.shuffle(order)
        text = tuple(f"{_example(cues[i], others, rng)} is {labels[i]}." for i in order)
        asked = [rng.randrange(self.labels) for _ in depths]
        items = tuple(Item(question=f"\n{_example(cues[i], others, rng)} is", answer=f" {labels[i]}") for i in asked)
        return Filled(lines=text, items=items, at=(None,) * len(items))


def _example(cues: list[str], others: list[str], rng: random.Random) -> str:
    words = rng.sample(cues, CUES_A_LINE) + rng.sample(others, OTHERS_A_LINE)
    rng.shuffle(words)
    return " ".join(words)
