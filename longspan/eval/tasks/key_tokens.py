"""Loss of key tokens, those that a long context makes likely. After LongPPL (arXiv:2410.23771), with frozen keys."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from longspan.eval.desk import Desk
from longspan.eval.rows import Row, ids_sha256
from longspan.eval.tasks._windows import WindowTask
from longspan.eval.tasks.base import Findings
from longspan.eval.text import Ids
from longspan.utils.errors import DataError
from longspan.utils.files import read_json, write_json

GAIN_NATS, SURE_NATS = 2.0, 2.0  # as published: what the long context must gain, and the loss that must be left


class KeyTokens(WindowTask):
    """Loss, over whole held-out documents, of tokens that are likely with all text before them and not with a little.

    A token is key when its loss with `short` to `short + judged` tokens of context is more than 2 nats above that with
    all of it, and the latter is below 2. The first model that is evaluated decides which tokens are key, in a file
    beside its rows; every later one is scored on the same. So evaluate the model before training first.
    """

    kind: Literal["key_tokens"] = "key_tokens"
    length: int = Field(ge=64)
    short: int = Field(default=4096, ge=8)
    judged: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _longer_than_short(self) -> Self:
        if self.length <= self.short:
            raise ValueError(f"length {self.length} must be more than the {self.short} tokens of the short context")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """One measure of the whole model."""
        return ("key_tokens",)

    @property
    def measure(self) -> str:
        """By the stretch and the short context."""
        return f"key_tokens/{self.length}/{self.short}/{self.judged}"

    @property
    def reads(self) -> list[int]:
        """The whole stretch, and as many short texts as judge all its tokens; the latter once for all models."""
        return [self.length, *(stop - low for low, _, stop in self._shorts())]

    def findings(self, rows: Sequence[Row]) -> Findings:
        """Mean loss of the key tokens, and of all."""
        keys, nll = sum(row["key_count"] for row in rows), sum(row["key_nll"] for row in rows)
        facts: dict[str, Any] = {
            "key_tokens": keys,
            "key_tokens_from": ", ".join(sorted({r["keys_from"] for r in rows})),
        }
        if keys:
            facts |= {"key_token_loss": nll / keys, "long_perplexity": math.exp(min(nll / keys, 700.0))}
        return Findings(rows=tuple(rows), facts=facts)

    def _shorts(self) -> list[tuple[int, int, int]]:
        """(low, first, stop): short contexts begin at `low` and judge the tokens from `first` to `stop`."""
        return [
            (first - self.short, first, min(first + self.judged, self.length))
            for first in range(self.short, self.length, self.judged)
        ]

    def score(self, desk: Desk, tokens: Ids) -> dict[str, Any]:
        """Loss of the key tokens, which the first model that is asked decides."""
        losses = np.concatenate([[np.inf], desk.reader.token_nll(tokens)])  # the first token has none
        path = desk.rows.path.parent / f"key-tokens-{ids_sha256(tokens)[:16]}-{self.short}-{self.judged}.json"
        if path.exists():
            frozen = read_json(path, error=DataError, code="eval.keys")
        else:
            frozen = {"model": desk.model_id, "keys": self._keys(desk, tokens, losses)}
            write_json(path, frozen)
        mine = losses[frozen["keys"]] if frozen["keys"] else np.zeros(0)
        return {"key_count": len(mine), "key_nll": float(mine.sum()), "keys_from": frozen["model"]}

    def _keys(self, desk: Desk, tokens: Ids, losses: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
        found: list[int] = []
        for low, first, stop in self._shorts():
            short = desk.reader.token_nll(tokens[low:stop])[first - low - 1 :]
            whole = losses[first:stop]
            found += (first + np.flatnonzero((short - whole > GAIN_NATS) & (whole < SURE_NATS))).tolist()
        return found
