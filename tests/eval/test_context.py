"""Questions after a kept context equal plain full forwards, in logits, scores and greedy text."""

import numpy as np
import pytest
import torch
from eval_toys import LETTERS, toy_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.eval.context import DecoderReader
from longspan.utils.errors import DataError, ModelError

DECODER = toy_decoder()


def tokens(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(LETTERS), count)


def full_logits(*parts: np.ndarray | list[int]) -> torch.Tensor:
    with torch.no_grad():
        return DECODER(torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]))[None])[0]


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 300), question=st.integers(1, 40), answer=st.integers(1, 8), seed=st.integers(0, 99))
def test_branch_logits_equal_a_full_forward(length, question, answer, seed):
    context, asked, gold = tokens(length, seed=seed), tokens(question, seed=seed + 1), tokens(answer, seed=seed + 2)
    kept = DecoderReader(DECODER).read(context, room_tokens=question + answer)
    expected = full_logits(context, asked, gold)
    torch.testing.assert_close(kept.logits([*asked.tolist(), *gold.tolist()]), expected[length:], atol=1e-4, rtol=1e-4)
    score = kept.score(asked.tolist(), gold.tolist())
    # The token that predicts the first gold one is the last of the question.
    predicting = expected[length + question - 1 : -1].double()
    wanted = predicting.log_softmax(-1)[range(answer), gold].sum()
    assert score.logprob == pytest.approx(float(wanted), abs=1e-3)
    assert score.hit == (predicting.argmax(-1).tolist() == gold.tolist())


def naive_greedy(context: np.ndarray, question: list[int], count: int) -> list[int]:
    said: list[int] = []
    for _ in range(count):
        said.append(int(full_logits(context, question, said)[-1].argmax()))
    return said


@pytest.mark.parametrize("length", [1, 63, 200])
def test_generate_equals_a_loop_of_full_forwards_and_scores_as_a_hit(length):
    context, question = tokens(length), tokens(9, seed=5).tolist()
    kept = DecoderReader(DECODER).read(context, room_tokens=30)
    expected = naive_greedy(context, question, 12)
    assert len(set(expected)) > 1
    assert kept.generate(question, max_new_tokens=12) == expected
    assert kept.score(question, expected).hit
    wrong = [*expected[:-1], (expected[-1] + 1) % len(LETTERS)]
    assert not kept.score(question, wrong).hit
    stop = expected[3]
    assert kept.generate(question, max_new_tokens=12, stop_ids=(stop,)) == expected[: expected.index(stop)]


def test_questions_never_see_each_other_and_the_cache_stays_as_it_was():
    context = tokens(150)
    kept = DecoderReader(DECODER).read(context, room_tokens=40)
    keys, values = kept._cache._keys[..., :150, :].clone(), kept._cache._values[..., :150, :].clone()
    first = kept.score([1, 2, 3], [4, 5])
    kept.generate([9] * 20, max_new_tokens=20)
    assert kept.score([1, 2, 3], [4, 5]) == first
    assert kept._cache.length == 150
    assert torch.equal(kept._cache._keys[..., :150, :], keys)
    assert torch.equal(kept._cache._values[..., :150, :], values)


def test_what_does_not_fit_is_refused_and_leaves_the_context_usable():
    kept = DecoderReader(DECODER).read(tokens(50), room_tokens=10)
    for call in (
        lambda: kept.score([1] * 9, [2, 3]),
        lambda: kept.generate([1] * 9, max_new_tokens=2),
        lambda: kept.logits([1] * 11),
    ):
        with pytest.raises(DataError, match="11 tokens do not fit in the 10") as caught:
            call()
        assert caught.value.code == "eval.over-length"
    kept.score([1] * 8, [2, 3])
    kept.generate([1] * 8, max_new_tokens=2)


def test_numbers_that_are_not_finite_are_an_error():
    decoder = toy_decoder()
    with torch.no_grad():
        decoder.norm.weight[0] = float("inf")
    reader = DecoderReader(decoder)
    with pytest.raises(ModelError, match="not finite at"):
        reader.token_nll(tokens(20))
    with pytest.raises(ModelError, match="not finite at"):
        reader.read(tokens(20), room_tokens=5).score([1], [2])


def test_token_nll_equals_whole_logits():
    text = tokens(333)
    expected = torch.nn.functional.cross_entropy(full_logits(text)[:-1], torch.from_numpy(text[1:]), reduction="none")
    found = DecoderReader(DECODER).token_nll(text)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
