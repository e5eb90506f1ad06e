"""The two tasks on documents as published."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longspan.eval.published.archives import member
from longspan.eval.published.maker import SEED, Maker
from longspan.eval.published.needles import DATA
from longspan.eval.published.templates import QA_FILES, QA_HEAD, QA_TAIL, REPLY_TOKENS
from longspan.probes import Encode
from longspan.utils.errors import DataError


@dataclass(frozen=True)
class _Question:
    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...]


class QuestionMaker(Maker):
    """Questions on documents; units are documents, their order depends on how many there are."""

    reply_tokens = REPLY_TOKENS["qa_1"]

    def __init__(self, name: str, files: Sequence[Path], length: int, encode: Encode) -> None:
        self._questions, self._documents = _read_questions(name, tuple(files))
        super().__init__(files, length, encode)

    def make(self, units: int, index: int) -> tuple[str, Sequence[str]]:
        """Question `index`, its own documents, others near them, then any; all of them again where they are too few."""
        if index >= len(self._questions) > 0:
            raise DataError(
                "eval.ruler-questions",
                f"there are {len(self._questions):,} published questions, and sample {index + 1:,} is asked for",
                fix="ask for fewer samples",
            )
        asked, documents = self._questions[index], self._documents
        if units >= len(documents):
            chosen = [documents[at % len(documents)] for at in range(units)]
        else:
            order = list(asked.own)
            if units - len(order) > len(asked.near):
                taken = {*asked.own, *asked.near}
                others = [at for at in range(len(documents)) if at not in taken]
                order += [*asked.near, *self.rng.sample(others, units - len(asked.own) - len(asked.near))]
            else:
                order += self.rng.sample(asked.near, units - len(order))
            chosen = [documents[at] for at in order]
        random.Random(SEED).shuffle(chosen)
        context = "\n\n".join(f"Document {at}:\n{text}" for at, text in enumerate(chosen, start=1))
        return QA_HEAD + context + QA_TAIL.format(query=asked.text), asked.answers

    def repeats(self, units: int) -> float:
        """Of all documents."""
        return max(1.0, units / len(self._documents))


@cache
def _read_questions(name: str, files: tuple[Path, ...]) -> tuple[list[_Question], list[str]]:
    found = json.loads(member(files, QA_FILES[name], from_=DATA))
    return _squad(found["data"]) if name == "qa_1" else _hotpot(found)


def _squad(articles: Sequence[dict[str, Any]]) -> tuple[list[_Question], list[str]]:
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    place, questions = {text: at for at, text in enumerate(documents)}, []
    for article in articles:
        mine = [place[part["context"]] for part in article["paragraphs"]]
        for part, own in zip(article["paragraphs"], mine, strict=True):
            near = tuple(at for at in mine if at != own)
            questions += [
                _Question(entry["question"], tuple(answer["text"] for answer in entry["answers"]), (own,), near)
                for entry in part["qas"]
                if not entry["is_impossible"]
            ]
    return questions, documents


def _hotpot(entries: Sequence[dict[str, Any]]) -> tuple[list[_Question], list[str]]:
    told = [[f"{title}\n{''.join(lines)}" for title, lines in entry["context"]] for entry in entries]
    documents = sorted({text for texts in told for text in texts})
    place = {text: at for at, text in enumerate(documents)}
    return [
        _Question(entry["question"], (entry["answer"],), tuple(place[text] for text in texts), ())
        for entry, texts in zip(entries, told, strict=True)
    ], documents
