"""What every task works with: the model as a reader, the held-out text, the rows that exist, the wish to stop."""

import re
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


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are drawn instead of greedy: at a temperature, each question with a stream of its own."""

    temperature: float
    seeds: tuple[int, ...]


class Reading(Protocol):
    """A context that has been read once and may be asked many times; no question sees another."""

    def score(self, asked: Sequence[Asked]) -> list[Score]:
        """Teacher-forced score of each gold answer after its question."""

    def generate(
        self,
        questions: Sequence[Sequence[int]],
        *,
        max_new_tokens: Sequence[int],
        stop_ids: Sequence[int] = (),
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """The continuation of each question, of up to so many tokens each: greedy, or drawn."""


class Reader(Protocol):
    """A model as evaluation sees it."""

    def read(self, tokens: Ids, *, room_tokens: int) -> Reading:
        """Read a context; questions and answers of up to `room_tokens` may follow."""

    def token_nll(self, tokens: Ids) -> NDArray[np.float32]:
        """Loss in nats of tokens[1:], each given all tokens before it."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What contexts are made of: held-out text, the tokenizer, the seed. `text_id` is a hash of the text's tokens;
    one of `stop_ids` ends a free reply.
    """

    documents: Documents
    encode: Encode
    decode: Decode
    seed: int
    text_id: str = ""
    stop_ids: tuple[int, ...] = ()


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
        asked: list[Any] | None = None if branch is None else [branch.question, branch.answer]
        if branch is not None and branch.temperature:
            asked = [branch.question, branch.answer, branch.temperature, branch.seed]
        return key_of(self.model_id, task, ids_sha256(tokens), asked)

    def ask(
        self,
        context: Context,
        *,
        task: str,
        length: int,
        cluster: str,
        spec: Mapping[str, Any],
        cost_tokens: int | None = None,
    ) -> list[Row]:
        """One row a branch of `context`, in order; branches that have a row are not run again.

        `length` counts the context and its longest branch. `cluster` names the context: its branches are not
        independent trials. `spec` is what builds the context again. The row's `seconds` are an equal share of reading
        the context and of all its questions, which go through the model together. `cost_tokens` is what counts as
        progress, where that is not `length`.
        """
        keys = [self.key(task, context.tokens, branch) for branch in context.branches]
        missing = [(key, branch) for key, branch in zip(keys, context.branches, strict=True) if not self.rows.get(key)]
        if missing:
            self.poll()
            start = time.monotonic()
            reading = self.reader.read(context.tokens, room_tokens=length - len(context.tokens))
            read_seconds = time.monotonic() - start
            answered = _answered(reading, [branch for _, branch in missing], self.material)
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
        self.advance(length if cost_tokens is None else cost_tokens)
        return [row for key in keys if (row := self.rows.get(key)) is not None]


def _answered(reading: Reading, branches: Sequence[Branch], material: Material) -> list[Row]:
    found: dict[int, Row] = {}
    free = [index for index, branch in enumerate(branches) if branch.reply_tokens]
    for temperature in dict.fromkeys(branches[index].temperature for index in free):
        mine = [index for index in free if branches[index].temperature == temperature]
        sizes = [branches[index].reply_tokens for index in mine]
        questions = [branches[index].question for index in mine]
        drawn = Sampling(temperature=temperature, seeds=tuple(branches[index].seed for index in mine))
        how: dict[str, Any] = {"sampling": drawn} if temperature else {}
        said = reading.generate(questions, max_new_tokens=sizes, stop_ids=material.stop_ids, **how)
        found |= {i: _free_row(branches[i], tokens, material) for i, tokens in zip(mine, said, strict=True)}
    forced = [index for index, branch in enumerate(branches) if not branch.reply_tokens]
    if forced:
        rows = _forced_rows(reading, [branches[index] for index in forced], material)
        found |= dict(zip(forced, rows, strict=True))
    return [found[index] for index in range(len(branches))]


def _forced_rows(reading: Reading, branches: Sequence[Branch], material: Material) -> list[Row]:
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
    return [_forced_row(*parts, material) for parts in zip(branches, scores, said, strict=True)]


def _forced_row(branch: Branch, score: Score, said: Sequence[int], material: Material) -> Row:
    row = _row(branch, said, material)
    share = substring_score(row["prediction"], branch.item.wanted, one=branch.item.one_part)
    return {**row, "hit": score.hit, "score": 1.0 if score.hit else share, "logprob": score.logprob}


def _free_row(branch: Branch, said: Sequence[int], material: Material) -> Row:
    row = _row(branch, said, material)
    score = substring_score(row["prediction"], branch.item.wanted, one=branch.item.one_part)
    strict = whole_word_score(row["prediction"], branch.item.wanted, one=branch.item.one_part)
    stop = "cap" if len(said) == branch.reply_tokens else "eos"
    drawn = {"temperature": branch.temperature, "seed": branch.seed} if branch.temperature else {}
    return {
        **row,
        **drawn,
        "hit": score == 1.0,
        "score": score,
        "strict": strict,
        "stop": stop,
        "wanted": list(branch.item.wanted),
    }


def _row(branch: Branch, said: Sequence[int], material: Material) -> Row:
    return {
        "depth": branch.depth,
        "offset_tokens": branch.offset_tokens,
        "question": branch.item.question,
        "gold": branch.item.answer,
        "gold_tokens": list(branch.answer),
        "predicted_tokens": list(said),
        "prediction": material.decode(said),
    }


def substring_score(reply: str, wanted: Sequence[str], *, one: bool = False) -> float:
    """The share of `wanted` that the reply holds anywhere, in any case; with `one`, 1 if it holds any.

    RULER's scores: the second that of its questions on documents, the first that of all others.
    """
    return _share([part.lower() in reply.lower() for part in wanted if part], one=one)


def whole_word_score(reply: str, wanted: Sequence[str], *, one: bool = False) -> float:
    """As `substring_score`, but a part counts only where no letter or digit touches it."""
    found = [re.search(rf"(?<!\w){re.escape(part)}(?!\w)", reply, re.IGNORECASE) for part in wanted if part]
    return _share([match is not None for match in found], one=one)


def _share(hits: Sequence[bool], *, one: bool) -> float:
    if not hits:
        return 0.0
    return float(any(hits)) if one else sum(hits) / len(hits)
