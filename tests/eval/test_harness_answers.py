"""Answers for lm-evaluation-harness against plain forwards of a small model: pairs, whole texts, replies."""

import numpy as np
import pytest
import torch
from eval_toys import LETTERS, decode, encode, toy_decoder

from longspan.eval.context import DecoderReader
from longspan.eval.harness import Answers
from longspan.utils.errors import DataError

DECODER = toy_decoder()
PREFIX = len(LETTERS)


@pytest.fixture
def answers():
    reader = DecoderReader(DECODER)
    reader.reads, real = [], reader.read
    reader.read = lambda tokens, *, room_tokens: (
        reader.reads.append(len(tokens)) or real(tokens, room_tokens=room_tokens)
    )
    return Answers(reader, encode=encode, decode=decode, prefix_id=PREFIX)


def plain(context, answer):
    """Sum of log-probabilities and greedy match, from whole logits in float64."""
    with torch.no_grad():
        logits = DECODER(torch.tensor([[*context, *answer]]))[0, len(context) - 1 : -1].double()
    right = logits.log_softmax(-1)[range(len(answer)), list(answer)].sum()
    return float(right), logits.argmax(-1).tolist() == list(answer)


def greedy(context, count):
    ids = list(context)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(DECODER(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(context) :]


def test_pairs_equal_plain_forwards_in_their_order_and_a_shared_context_is_read_once(answers):
    one, two = encode("the sea was grey."), encode("an old ship")
    liked = tuple(greedy(two, 3))
    pairs = [(one, encode(" a")), (two, encode(" long one")), (one, encode(" b c")), (two, liked), ([], encode("x"))]
    pairs += [([5], encode("one token before")), ([5], greedy([5], 4))]
    found = answers.pairs(pairs)
    for (context, answer), (logprob, hit) in zip(pairs, found, strict=True):
        want, right = plain(context or [PREFIX], answer)
        assert logprob == pytest.approx(want, abs=1e-3)
        assert hit == right
    assert [hit for _, hit in found][3] is True
    assert [hit for _, hit in found][6] is True
    assert sorted(answers._reader.reads) == [len(two) - 1, len(one) - 1]


def test_a_whole_text_is_scored_from_its_first_token_on_in_one_pass(answers):
    text = "so it goes, and goes on " * 9
    assert answers.whole(text) == pytest.approx(plain([PREFIX], encode(text))[0], rel=1e-5)
    assert answers.whole("") == 0.0


def test_a_reply_ends_at_the_first_stop_or_at_the_most(answers):
    ids = encode("a grey sea")
    want = decode(greedy(ids, 8))
    assert answers.reply("a grey sea", until=[], most=8) == want.split("|")[0]
    stop = want[2:4]
    assert answers.reply("a grey sea", until=["", stop], most=8) == want[: want.index(stop)]
    assert answers.reply("", until=[], most=3) == decode(greedy([PREFIX, PREFIX], 3)).split("|")[0]


def test_too_long_an_answer_after_one_token_is_refused(answers, monkeypatch):
    monkeypatch.setattr("longspan.eval.context.BATCH_TOKENS", 4)
    with pytest.raises(DataError, match="after a context of one"):
        answers.pairs([([1], np.arange(5))])
