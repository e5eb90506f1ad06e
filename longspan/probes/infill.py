"""Fill in the middle: a stretch is cut out of a long text and asked for at its end."""

import random
from typing import Literal

from pydantic import Field

from longspan.probes._weave import inside, joined, refuse_short
from longspan.probes.base import Encode, Ids, Woven, WovenProbe


class Infill(WovenProbe):
    """`tokens` tokens of the text stand at the end instead of at their place, which a mark names."""

    kind: Literal["infill"] = "infill"
    tokens: int = Field(default=64, ge=1)

    def weave(self, text: Ids, *, length: int, depth: float, rng: random.Random, encode: Encode) -> Woven:  # noqa: ARG002 - nothing is drawn
        """The text with a hole at `depth`, and what belongs into it."""
        mark, question = inside("\n[missing part]\n", encode), inside("\n[missing part]:\n", encode)
        room = length - len(mark) - len(question) - self.tokens
        refuse_short(room, length)
        at = round(depth * room)
        kept = joined(text[:at], mark, text[at + self.tokens : room + self.tokens])
        return Woven(text=kept, question=tuple(question), answer=tuple(text[at : at + self.tokens].tolist()), at=at)
