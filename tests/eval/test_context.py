"""Questions after a kept context equal plain full forwards, in logits, scores and greedy text."""

import random

import numpy as np
import pytest
import torch
from eval_toys import LETTERS, toy_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.engine.kept import Keep
from longspan.engine.prefill import Prefill
from longspan.eval.context import DecoderReader
from longspan.eval.desk import Sampling
from longspan.probes import Branch, Item
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
    context, ask, gold = tokens(length, seed=seed), tokens(question, seed=seed + 1), tokens(answer, seed=seed + 2)
    kept = DecoderReader(DECODER).read(context, room_tokens=question + answer)
    expected = full_logits(context, ask, gold)
    (found,) = kept.logits([[*ask.tolist(), *gold.tolist()]])
    torch.testing.assert_close(found, expected[length:], atol=1e-4, rtol=1e-4)
    (score,) = kept.score([asked(ask.tolist(), gold.tolist())])
    # The token that predicts the first gold one is the last of the question.
    predicting = expected[length + question - 1 : -1].double()
    wanted = predicting.log_softmax(-1)[range(answer), gold].sum()
    assert score.logprob == pytest.approx(float(wanted), abs=1e-3)
    assert score.hit == (predicting.argmax(-1).tolist() == gold.tolist())


def asked(question, answer):
    return Branch(
        item=Item(question="", answer=""), depth=0.0, offset_tokens=0, question=tuple(question), answer=tuple(answer)
    )


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
    others = [tokens(n, seed=n).tolist() for n in (2, 17)]
    said = kept.generate([others[0], question, others[1]], max_new_tokens=[12, 12, 12])
    assert said == [naive_greedy(context, asked_, 12) for asked_ in (others[0], question, others[1])]
    assert kept.score([asked(question, expected)])[0].hit
    wrong = [*expected[:-1], (expected[-1] + 1) % len(LETTERS)]
    assert not kept.score([asked(question, wrong)])[0].hit
    stop = expected[3]
    stopped = kept.generate([question, others[0]], max_new_tokens=[12, 12], stop_ids=(stop,))
    assert stopped[0] == expected[: expected.index(stop)]
    assert stopped[1] == (said[0][: said[0].index(stop)] if stop in said[0] else said[0])
    assert kept.generate([question, others[0]], max_new_tokens=[0, 2]) == [[], said[0][:2]]


def test_questions_never_see_each_other_and_the_kept_keys_stay_as_they_were():
    kept = DecoderReader(DECODER).read(tokens(150), room_tokens=40)
    before = [(k.clone(), v.clone()) for k, v in kept._kept.layers()]
    alone = [kept.score([entry])[0] for entry in (asked([1, 2, 3], [4, 5]), asked([9] * 30, [7]))]
    kept.generate([[9] * 20, [3]], max_new_tokens=[20, 3])
    together = kept.score([asked([1, 2, 3], [4, 5]), asked([9] * 30, [7])])
    assert [score.hit for score in together] == [score.hit for score in alone]
    for mine, other in zip(together, alone, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-5)
    for (k, v), (old_k, old_v) in zip(kept._kept.layers(), before, strict=True):
        assert torch.equal(k, old_k)
        assert torch.equal(v, old_v)


def test_many_questions_go_in_several_batches(monkeypatch):
    kept = DecoderReader(DECODER).read(tokens(90), room_tokens=40)
    entries = [asked(tokens(3 + n % 5, seed=n).tolist(), tokens(2, seed=n + 50).tolist()) for n in range(9)]
    whole = kept.score(entries)
    monkeypatch.setattr("longspan.eval.context.BATCH_TOKENS", 17)
    for mine, other in zip(kept.score(entries), whole, strict=True):
        assert mine.hit == other.hit
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert kept.score([]) == []


def test_keys_on_the_host_give_the_same_and_fp8_ones_nearly_the_same():
    context, texts = tokens(200), [tokens(9, seed=1).tolist(), tokens(4, seed=2).tolist()]
    want = DecoderReader(DECODER).read(context, room_tokens=40).logits(texts)
    spilled = DecoderReader(DECODER, Keep(place="host")).read(context, room_tokens=40).logits(texts)
    for mine, other in zip(spilled, want, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    coded = DecoderReader(DECODER, Keep(codes=True)).read(context, room_tokens=40).logits(texts)
    errors = [float((mine - other).abs().max() / other.abs().max()) for mine, other in zip(coded, want, strict=True)]
    assert 1e-4 < max(errors) < 0.2


def test_an_old_context_is_not_asked_when_another_was_read():
    reader = DecoderReader(DECODER)
    old = reader.read(tokens(50), room_tokens=10)
    reader.read(tokens(60), room_tokens=10)
    with pytest.raises(AssertionError, match="put away"):
        old.score([asked([1], [2])])


def test_the_check_at_the_start_passes_and_catches_a_wrong_path(monkeypatch):
    reader = DecoderReader(DECODER)
    assert reader.check() < 1e-4
    assert DecoderReader(DECODER, Keep(codes=True)).check() > 1e-4  # told, not refused
    real = reader._near.angles
    # positions that start anew behind the context
    monkeypatch.setattr(reader._near, "angles", lambda positions: real(positions % 150))
    with pytest.raises(ModelError, match="other logits than a plain forward") as caught:
        reader.check()
    assert caught.value.code == "eval.branch-differs"


def test_what_does_not_fit_is_refused_and_leaves_the_context_usable():
    kept = DecoderReader(DECODER).read(tokens(50), room_tokens=10)
    for call in (
        lambda: kept.score([asked([1] * 9, [2, 3])]),
        lambda: kept.generate([[1] * 9], max_new_tokens=[2]),
        lambda: kept.logits([[1] * 11]),
    ):
        with pytest.raises(DataError, match="11 tokens do not fit in the 10") as caught:
            call()
        assert caught.value.code == "eval.over-length"
    kept.score([asked([1] * 8, [2, 3])])
    kept.generate([[1] * 8], max_new_tokens=[2])


def test_numbers_that_are_not_finite_are_an_error():
    decoder = toy_decoder()
    with torch.no_grad():
        decoder.norm.weight[0] = float("inf")
    reader = DecoderReader(decoder)
    with pytest.raises(ModelError, match="not finite at"):
        reader.token_nll(tokens(20))
    with pytest.raises(ModelError, match="not finite at"):
        reader.read(tokens(20), room_tokens=5).score([asked([1], [2])])


def test_token_nll_equals_whole_logits():
    text = tokens(333)
    expected = torch.nn.functional.cross_entropy(full_logits(text)[:-1], torch.from_numpy(text[1:]), reduction="none")
    found = DecoderReader(DECODER).token_nll(text)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_a_context_has_been_read_when_its_seconds_are_taken(monkeypatch):
    reader, waited = DecoderReader(DECODER), []
    monkeypatch.setattr(Prefill, "wait", lambda prefill: waited.append(prefill._kept is not None))
    reader.read(tokens(9), room_tokens=3)
    assert waited == [True]  # a device would otherwise still be at work


def test_drawn_replies_follow_the_shares_and_a_seed_gives_the_same_beside_any_others():
    context, question = tokens(40), [3, 1, 4]
    kept = DecoderReader(DECODER).read(context, room_tokens=20)
    seeds = tuple(range(400))
    one = {"max_new_tokens": [1] * 400, "sampling": Sampling(temperature=0.7, seeds=seeds)}
    drawn = [reply[0] for reply in kept.generate([question] * 400, **one)]
    shares = (full_logits(context, question)[-1].double() / 0.7).softmax(-1)
    for token in shares.topk(5).indices.tolist():
        share, spread = float(shares[token]), float((shares[token] * (1 - shares[token]) / 400).sqrt())
        assert abs(drawn.count(token) / 400 - share) < 4 * spread
    # By hand: the first number of a seed's stream marks a place among the shares laid end to end.
    ends = shares.cumsum(-1)
    assert drawn[7] == int((ends < random.Random(7).random() * ends[-1]).sum())

    def reply(*some):
        how = Sampling(temperature=0.7, seeds=some)
        return kept.generate([question] * len(some), max_new_tokens=[12] * len(some), sampling=how)

    alone, together = [reply(seed)[0] for seed in (5, 6)], reply(5, 9, 6)
    assert alone == [together[0], together[2]]
    assert together[0] != together[1]
    cold = Sampling(temperature=1e-4, seeds=(5,))
    greedy = kept.generate([question], max_new_tokens=[12])
    assert kept.generate([question], max_new_tokens=[12], sampling=cold) == greedy
    assert kept.generate([question], max_new_tokens=[12], ended=lambda said: len(said) == 3) == [greedy[0][:3]]
