"""Key tokens and sliding windows: which tokens count, and with how much text before them, against made-up losses."""

import math

import numpy as np
import pytest
from eval_toys import Texts, encode, material, prose
from eval_toys import stuff as make
from pydantic import ValidationError
from test_grid import desk_for

from longspan.eval.tasks.key_tokens import KeyTokens
from longspan.eval.tasks.sliding import Sliding
from longspan.utils.errors import DataError

TEXT = prose(4, 400)


class ByContext:
    """A loss that says how much text stood before; digits are likely only with 100 tokens or more before them."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.read_tokens = shift, 0

    def token_nll(self, tokens):
        self.read_tokens += len(tokens)
        before = np.arange(1, len(tokens))
        digits = np.isin(tokens[1:], encode("0123456789"))
        return (np.where(digits & (before >= 100), 0.5, 3.0 + before * 1e-3) + self.shift).astype(np.float32)


def test_key_tokens_are_those_that_long_context_makes_likely(tmp_path):
    task = KeyTokens(length=400, windows=1, short=50, judged=20)
    reader, seen = ByContext(), []
    found = task.run(desk_for(reader, tmp_path, stuff=make(TEXT), advance=seen.append))
    place = found.rows[0]["spec"]["place"]
    ids = make(TEXT).documents.read(place["document"], place["start"], 400)
    digits = set(encode("0123456789"))
    # Short contexts have 50 to 69 tokens before a token, so there no digit is likely.
    expected = [at for at in range(100, 400) if int(ids[at]) in digits]
    assert found.facts["key_tokens"] == len(expected) > 10
    assert found.facts["key_token_loss"] == pytest.approx(0.5)
    assert found.facts["long_perplexity"] == pytest.approx(math.exp(0.5))
    assert sum(seen) == reader.read_tokens == task.cost_tokens(make(TEXT).documents)


def test_keys_are_frozen_by_the_first_model(tmp_path):
    task = KeyTokens(length=400, windows=1, short=50, judged=20)
    first = task.run(desk_for(ByContext(), tmp_path, stuff=make(TEXT), model_id="base"))
    reader = ByContext(shift=5.0)  # finds no key of its own: all its losses are high
    second = task.run(desk_for(reader, tmp_path, stuff=make(TEXT), model_id="tuned"))
    assert second.facts["key_tokens"] == first.facts["key_tokens"]
    assert second.facts["key_tokens_from"] == "base"
    assert second.facts["key_token_loss"] == pytest.approx(5.5)
    assert reader.read_tokens == 400
    alone = task.run(desk_for(ByContext(shift=5.0), tmp_path / "other", stuff=make(TEXT), model_id="tuned"))
    assert alone.facts["key_tokens"] == 0
    assert "long_perplexity" not in alone.facts


def test_sliding_windows_score_every_token_once_with_enough_before_it(tmp_path):
    task = Sliding(length=230, window=64, stride=16, windows=1)
    asked = []

    class Reader(ByContext):
        def token_nll(self, tokens):
            asked.append(len(tokens))
            return np.arange(1, len(tokens), dtype=np.float32)  # the loss is the number of tokens before

    found = task.run(desk_for(Reader(), tmp_path, stuff=make(TEXT)))
    row = found.rows[0]
    assert row["tokens"] == 229
    # By hand: tokens 1 to 63 of the first window; then each has 48 to 63 before it, in the last window 58 on.
    total, done = sum(range(1, 64)), 64
    while done < 230:
        stop = min(done + 16, 230)
        total += sum(at - (stop - 64) for at in range(done, stop))
        done = stop
    assert row["nll_sum"] == pytest.approx(total)
    assert sum(asked) == task.cost_tokens(make(TEXT).documents)
    assert found.facts == {"sliding_perplexity_64_stride_16": pytest.approx(math.exp(total / 229))}


@pytest.mark.parametrize(
    "task", [KeyTokens(length=300, short=50, judged=20), Sliding(length=300, window=64, stride=16)]
)
def test_resumed_it_reads_nothing_again_and_rows_can_be_rebuilt(task, tmp_path):
    found = task.run(desk_for(ByContext(), tmp_path, stuff=make(TEXT)))
    again = ByContext()
    assert task.run(desk_for(again, tmp_path, stuff=make(TEXT))).facts == found.facts
    assert again.read_tokens == 0
    context = task.rebuild(make(TEXT), found.rows[0]["spec"]["place"])
    assert len(context.tokens) == 300
    with pytest.raises(DataError, match="no held-out document has the 300 tokens"):
        task.check(make("a" * 200))


def test_settings():
    with pytest.raises(ValidationError, match="more than the 4096 tokens"):
        KeyTokens(length=4096)
    with pytest.raises(ValidationError, match="does not hold"):
        Sliding(length=100, window=200)
    assert isinstance(material().documents, Texts)
