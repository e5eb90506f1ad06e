"""Reordering: the parts of a text stand in a wrong order, and the right one is asked for."""

import itertools
import random
import string
from typing import Literal

from pydantic import Field

from longspan.probes._weave import inside, joined, refuse_short
from longspan.probes.base import Encode, Ids, Woven, WovenProbe


class Reorder(WovenProbe):
    """`parts` parts of equal length, each behind a mark such as `[part C]`; the answer is their letters in order."""

    kind: Literal["reorder"] = "reorder"
    parts: int = Field(default=6, ge=2, le=26)

    def weave(self, text: Ids, *, length: int, depth: float, rng: random.Random, encode: Encode) -> Woven:  # noqa: ARG002 - the whole text is asked about
        """The shuffled text and the right order."""
        letters = string.ascii_uppercase[: self.parts]
        order = rng.sample(
            range(self.parts), self.parts
        )  # part order[i] of the text stands at place i, behind letter i
        right = " ".join(letters[order.index(part)] for part in range(self.parts))
        question = inside("\n[the right order of the parts]", encode)
        answer = inside(f"\n[the right order of the parts] {right}", encode)[len(question) :]
        marks = [inside(f"\n[part {letter}]\n", encode) for letter in letters]
        room = length - len(question) - len(answer) - sum(map(len, marks))
        each = room // self.parts
        refuse_short(each, length)
        borders = [part * each for part in range(self.parts)] + [room]
        pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
        woven = [part for place, mark in enumerate(marks) for part in (mark, pieces[order[place]])]
        return Woven(text=joined(*woven), question=tuple(question), answer=tuple(answer), at=0)
