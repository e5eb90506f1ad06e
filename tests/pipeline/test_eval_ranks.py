"""Evaluation over ranks: answers about long contexts are those of one rank."""

import pytest
import torch
from eval_rank_work import evaluated
from ranks import run_ranks


@pytest.mark.parametrize(("ranks", "windows"), [(2, (None, None)), (3, (None, 7)), (4, (None, None))])
def test_one_rank_asks_and_all_keep_the_keys(ranks, windows):
    (difference, together, alone), *others = run_ranks(ranks, evaluated, windows)
    assert others == [None] * (ranks - 1)
    assert difference < 1e-4
    torch.testing.assert_close(torch.tensor(together[0][0]), torch.tensor(alone[0][0]), rtol=1e-4, atol=1e-5)
    assert together[0][1] == alone[0][1], "hits are the same"
    assert together[1] == alone[1], "greedy replies are the same"
    torch.testing.assert_close(torch.as_tensor(together[2]), torch.as_tensor(alone[2]), rtol=1e-4, atol=1e-5)
