"""Retrieval by place: the text is cut into numbered parts, and the start of one of them is asked for by its number."""

import random
from typing import Literal

from pydantic import Field

from longspan.probes._weave import inside, joined, refuse_short
from longspan.probes.base import Encode, Ids, Woven, WovenProbe


class Position(WovenProbe):
    """Marks such as `[part 17]` stand before every part of about `part_tokens` tokens; asked are the first `tokens`."""

    kind: Literal["position"] = "position"
    part_tokens: int = Field(default=256, ge=8)
    tokens: int = Field(default=24, ge=1, le=256)

    def weave(self, text: Ids, *, length: int, depth: float, rng: random.Random, encode: Encode) -> Woven:  # noqa: ARG002 - nothing is drawn
        """The numbered text, and the question for the part at `depth`."""
        longest = max(self.part_tokens, self.tokens)
        question = inside(f"\n[part {length // longest + 1}] begins:\n", encode)  # the longest that is asked
        room = length - len(question) - self.tokens
        parts: list[Ids | list[int]] = []
        starts: list[int] = []
        used = taken = 0
        while True:
            mark = inside(f"\n[part {len(starts) + 1}]\n", encode)
            more = min(longest, room - used - len(mark))
            if more < self.tokens:
                break
            starts.append(used)
            parts += [mark, text[taken : taken + more]]
            taken, used = taken + more, used + len(mark) + more
        refuse_short(len(starts), length)
        chosen = min(int(depth * len(starts)), len(starts) - 1)
        question = inside(f"\n[part {chosen + 1}] begins:\n", encode)
        answer = parts[2 * chosen + 1][: self.tokens]
        rest = length - used - len(question) - self.tokens
        return Woven(
            text=joined(*parts, text[taken : taken + rest]),
            question=tuple(question),
            answer=tuple(int(token) for token in answer),
            at=starts[chosen],
        )
