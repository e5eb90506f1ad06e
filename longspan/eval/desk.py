"""What every task works with: the model as a reader, the held-out text, the rows that exist, the wish to stop."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longspan.eval.rows import Row, Rows, key_of
from longspan.eval.text import Documents, Ids
from longspan.probes import Branch, Context, Encode
from longspan.utils.errors import Interrupted


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one gold answer fared: `hit` when greedy decoding gives it exactly; `logprob` of all its tokens, in nats."""

    hit: bool
    logprob: float


class Reading(Protocol):
    """A context that has been read once and may be asked many times; no question sees another."""

    def score(self, question: Sequence[int], answer: Sequence[int]) -> Score:
        """Teacher-forced score of the gold `answer` after `question`."""

    def generate(self, question: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int] = ()) -> list[int]:
        """The greedy continuation of `question`."""


class Reader(Protocol):
    """A model as evaluation sees it."""

    def read(self, tokens: Ids, *, room_tokens: int) -> Reading:
        """Read a context; questions and answers of up to `room_tokens` may follow."""

    def token_nll(self, tokens: Ids) -> NDArray[np.float32]:
        """Loss in nats of tokens[1:], each given all tokens before it."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What contexts are made of: held-out text, the tokenizer, the seed."""

    documents: Documents
    encode: Encode
    seed: int


@dataclass(frozen=True, kw_only=True)
class Desk:
    """One evaluation at work. `model_id` names weights, positions and number format in the keys of rows.

    `stop` is polled before every context; `advance` is told the tokens of each finished one.
    """

    reader: Reader
    material: Material
    rows: Rows
    model_id: str
    stop: Callable[[], bool]
    advance: Callable[[int], None]

    def poll(self) -> None:
        """Raise `Interrupted` when the run should stop; every row so far is on disk."""
        if self.stop():
            raise Interrupted("the evaluation was stopped; its rows are saved")

    def key(self, task: str, tokens: Ids, branch: Branch | None = None) -> str:
        """The key of a row: the model, the very tokens it reads, and the question if there is one."""
        text = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
        asked = None if branch is None else [branch.question, branch.answer]
        return key_of(self.model_id, task, text, asked)

    def ask(self, context: Context, *, task: str, length: int, cluster: str) -> list[Row]:
        """One row a branch of `context`, in order; branches that have a row are not run again.

        `length` counts the context and its longest branch. `cluster` names the context: its branches are not
        independent trials. The row's `seconds` include an equal share of reading the context.
        """
        keys = [self.key(task, context.tokens, branch) for branch in context.branches]
        missing = [(key, branch) for key, branch in zip(keys, context.branches, strict=True) if not self.rows.get(key)]
        if missing:
            self.poll()
            start = time.monotonic()
            reading = self.reader.read(context.tokens, room_tokens=length - len(context.tokens))
            share = (time.monotonic() - start) / len(missing)
            for key, branch in missing:
                start = time.monotonic()
                name = {"key": key, "task": task, "model": self.model_id, "length": length, "cluster": cluster}
                answered = _answered(reading, branch)
                self.rows.append({**name, **answered, "seconds": share + time.monotonic() - start})
        self.advance(length)
        return [row for key in keys if (row := self.rows.get(key)) is not None]


def _answered(reading: Reading, branch: Branch) -> Row:
    score = reading.score(branch.question, branch.answer)
    # After a first wrong token teacher forcing no longer shows what the model would say, so a miss is decoded.
    said = branch.answer if score.hit else reading.generate(branch.question, max_new_tokens=len(branch.answer))
    return {
        "depth": branch.depth,
        "offset_tokens": branch.offset_tokens,
        "question": branch.item.question,
        "gold": branch.item.answer,
        "gold_tokens": list(branch.answer),
        "predicted_tokens": list(said),
        "hit": score.hit,
        "logprob": score.logprob,
    }
