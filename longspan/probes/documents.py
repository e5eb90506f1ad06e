"""Questions over distractors: short invented lives, one of which holds the answer, or two that must be joined."""

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from longspan.probes._words import Split, coined, vocabulary
from longspan.probes.base import Filled, FilledProbe, Item


class Documents(FilledProbe):
    """A text of one short life a line; asked is what somebody kept, or with `hops` 2 what that one's teacher kept."""

    kind: Literal["documents"] = "documents"
    hops: int = Field(default=1, ge=1, le=2)

    def fill(self, lines: int, *, depths: Sequence[float], rng: random.Random, split: Split) -> Filled:
        """The lives; the one asked for (with two hops, the teacher's) stands at its depth."""
        count = max(lines, 2 * len(depths))
        adjectives, nouns = vocabulary(split)
        people = coined(count, syllables=4, rng=rng, split=split)
        towns = coined(count, syllables=3, rng=rng, split=split)
        kept = [f"{rng.choice(adjectives)} {rng.choice(nouns)}" for _ in people]
        teachers = [rng.randrange(count - 1) for _ in people]
        teachers = [other + (other >= me) for me, other in enumerate(teachers)]
        lives = tuple(
            f"{people[i]} was born in {towns[i]} and was taught by {people[teachers[i]]}. "
            f"In later years {people[i]} kept a {kept[i]} in {rng.choice(towns)}."
            for i in range(count)
        )
        items, at = [], []
        for depth in depths:
            gold = min(int(depth * count), count - 1)
            pupils = [i for i in range(count) if teachers[i] == gold] if self.hops == 2 else []
            if self.hops == 2 and not pupils:  # the nearest that taught somebody
                gold = min(set(teachers), key=lambda i: (abs(i - depth * count), i))
                pupils = [i for i in range(count) if teachers[i] == gold]
            who = people[gold] if self.hops == 1 else f"the one who taught {people[rng.choice(pupils)]}"
            items.append(Item(question=f"\nIn later years {who} kept a", answer=f" {kept[gold]}"))
            at.append(gold)
        return Filled(lines=lives, items=tuple(items), at=tuple(at))
