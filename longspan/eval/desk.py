"""What every task works with: the model as a reader, the held-out text, the rows that exist, the wish to stop."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longspan.eval.rows import Row, Rows, ids_sha256, key_of
from longspan.eval.text import Documents, Ids
from longspan.probes import Branch, Context, Encode
from longspan.utils.errors import Interrupted

Decode = Callable[[Sequence[int]], str]


class Asked(Protocol):
    """A question and its gold answer, as ids; `probes.Branch` is one."""

    @property
    def question(self) -> Sequence[int]:
        """What follows the context."""

    @property
    def answer(self) -> Sequence[int]:
        """What should follow the question."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one gold answer fared: `hit` when greedy decoding gives it exactly; `logprob` of all its tokens, in nats.

    A reader that cannot see probabilities leaves `logprob` out.
    """

    hit: bool
    logprob: float | None


class Reading(Protocol):
    """A context that has been read once and may be asked many times; no question sees another."""

    def score(self, asked: Sequence[Asked]) -> list[Score]:
        """Teacher-forced score of each gold answer after its question."""

    def generate(
        self, questions: Sequence[Sequence[int]], *, max_new_tokens: Sequence[int], stop_ids: Sequence[int] = ()
    ) -> list[list[int]]:
        """The greedy continuation of each question, of up to so many tokens each."""


class Reader(Protocol):
    """A model as evaluation sees it."""

    def read(self, tokens: Ids, *, room_tokens: int) -> Reading:
        """Read a context; questions and answers of up to `room_tokens` may follow."""

    def token_nll(self, tokens: Ids) -> NDArray[np.float32]:
        """Loss in nats of tokens[1:], each given all tokens before it."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What contexts are made of: held-out text, the tokenizer, the seed. `text_id` is a hash of the text's tokens."""

    documents: Documents
    encode: Encode
    decode: Decode
    seed: int
    text_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """One evaluation at work. `model_id` names weights, positions and number format in the keys of rows.

    `facts` stand in every row. `stop` is polled before every context; `advance` is told the tokens of each.
    """

    reader: Reader
    material: Material
    rows: Rows
    model_id: str
    stop: Callable[[], bool]
    advance: Callable[[int], None]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def poll(self) -> None:
        """Raise `Interrupted` when the run should stop; every row so far is on disk."""
        if self.stop():
            raise Interrupted("the evaluation was stopped; its rows are saved")

    def key(self, task: str, tokens: Ids, branch: Branch | None = None) -> str:
        """The key of a row: the model, the very tokens it reads, and the question if there is one."""
        asked = None if branch is None else [branch.question, branch.answer]
        return key_of(self.model_id, task, ids_sha256(tokens), asked)

    def ask(self, context: Context, *, task: str, length: int, cluster: str, spec: Mapping[str, Any]) -> list[Row]:
        """One row a branch of `context`, in order; branches that have a row are not run again.

        `length` counts the context and its longest branch. `cluster` names the context: its branches are not
        independent trials. `spec` is what builds the context again. The row's `seconds` are an equal share of reading
        the context and of all its questions, which go through the model together.
        """
        keys = [self.key(task, context.tokens, branch) for branch in context.branches]
        missing = [(key, branch) for key, branch in zip(keys, context.branches, strict=True) if not self.rows.get(key)]
        if missing:
            self.poll()
            start = time.monotonic()
            reading = self.reader.read(context.tokens, room_tokens=length - len(context.tokens))
            read_seconds = time.monotonic() - start
            answered = _answered(reading, [branch for _, branch in missing], self.material.decode)
            shared = {
                "task": task,
                "model": self.model_id,
                "length": length,
                "cluster": cluster,
                "context": ids_sha256(context.tokens),
                "spec": {**spec, "seed": self.material.seed, "text": self.material.text_id},
                **self.facts,
                "read_seconds": read_seconds / len(missing),
                "seconds": (time.monotonic() - start) / len(missing),
            }
            for (key, _), found in zip(missing, answered, strict=True):
                self.rows.append({"key": key, **shared, **found})
        self.advance(length)
        return [row for key in keys if (row := self.rows.get(key)) is not None]


def _answered(reading: Reading, branches: Sequence[Branch], decode: Decode) -> list[Row]:
    scores = reading.score(branches)
    # After a first wrong token teacher forcing no longer shows what the model would say, so misses are decoded.
    said: list[Sequence[int]] = [branch.answer for branch in branches]
    missed = [index for index, score in enumerate(scores) if not score.hit]
    if missed:
        mine = [branches[index] for index in missed]
        sizes = [len(branch.answer) for branch in mine]
        found = reading.generate([branch.question for branch in mine], max_new_tokens=sizes)
        for index, tokens in zip(missed, found, strict=True):
            said[index] = tokens
    return [_row(*parts, decode) for parts in zip(branches, scores, said, strict=True)]


def _row(branch: Branch, score: Score, said: Sequence[int], decode: Decode) -> Row:
    prediction = decode(said)
    wanted = [part for part in branch.item.wanted if part]
    share = sum(part in prediction for part in wanted) / len(wanted) if wanted else 0.0
    return {
        "depth": branch.depth,
        "offset_tokens": branch.offset_tokens,
        "question": branch.item.question,
        "gold": branch.item.answer,
        "gold_tokens": list(branch.answer),
        "predicted_tokens": list(said),
        "prediction": prediction,
        "hit": score.hit,
        "score": 1.0 if score.hit else share,
        "logprob": score.logprob,
    }
