"""Keyword retrieval: some words of a long text are given, and what follows them there is asked for."""

import random
from typing import Literal

from pydantic import Field

from longspan.probes._weave import inside, joined, refuse_short
from longspan.probes.base import Encode, Ids, Woven, WovenProbe


class Keyword(WovenProbe):
    """`given` tokens of the text stand again at the end, and the next `tokens` of it are the answer."""

    kind: Literal["keyword"] = "keyword"
    given: int = Field(default=16, ge=4)
    tokens: int = Field(default=32, ge=1)

    def weave(self, text: Ids, *, length: int, depth: float, rng: random.Random, encode: Encode) -> Woven:  # noqa: ARG002 - nothing is drawn
        """The whole text, the words at `depth`, and what follows them."""
        ask = inside("\n[find and go on]\n", encode)
        room = length - len(ask) - self.given - self.tokens
        refuse_short(room - self.given - self.tokens, length)
        at = round(depth * (room - self.given - self.tokens))
        end = at + self.given
        return Woven(
            text=joined(text[:room]),
            question=(*ask, *text[at:end].tolist()),
            answer=tuple(text[end : end + self.tokens].tolist()),
            at=at,
        )
