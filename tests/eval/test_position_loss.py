"""Loss by position: every bin scores the same text, and sums equal those of whole logits."""

import numpy as np
import pytest
import torch
from eval_toys import LETTERS, SEPARATOR, Copier, Texts, decode, encode, material, prose, toy_decoder
from pydantic import ValidationError

from longspan.eval.context import DecoderReader
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Rows
from longspan.eval.tasks.position_loss import PositionLoss
from longspan.utils.errors import DataError, Interrupted


def desk_for(reader, path, *, stuff=None, stop=lambda: False, advance=lambda tokens: None):
    return Desk(
        reader=reader, material=stuff or material(), rows=Rows(path / "rows.jsonl"), model_id="m", stop=stop,
        advance=advance,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("length", "edges"),
    [
        (64, [(0, 64)]),
        (128, [(0, 128)]),
        (512, [(0, 128), (128, 256), (256, 512)]),
        (700, [(0, 128), (128, 256), (256, 512), (512, 700)]),
        (8192, [(0, 128), (128, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 4096), (4096, 8192)]),
    ],
)
def test_bins_are_powers_of_two_up_to_the_length(length, edges):
    assert list(PositionLoss(length=length).edges) == edges


@pytest.mark.parametrize("length", [64, 128, 512, 700, 1000])
def test_every_bin_scores_the_same_text_at_its_own_positions(length, tmp_path):
    # All tokens of the document differ, so a token names its place; the reader's loss names token and position.
    class Recorder(Copier):
        def __init__(self):
            super().__init__()
            self.scored = []

        def token_nll(self, tokens):
            self.scored.append(tokens)
            return np.zeros(len(tokens) - 1, dtype=np.float32)

    class Counted:
        lengths = np.array([3001])

        def read(self, document, start, length):
            return np.arange(start, start + length)

    task = PositionLoss(length=length, windows=3)
    reader, seen = Recorder(), []
    stuff = Material(documents=Counted(), encode=encode, decode=decode, seed=0)
    found = task.run(desk_for(reader, tmp_path, stuff=stuff, advance=seen.append))
    assert sum(seen) == task.cost_tokens(Counted()) == sum(len(tokens) for tokens in reader.scored)

    # Independently: which tokens stand at a position of each bin in the shortest set of windows that ends there.
    texts = []
    for low, high in task.edges:
        windows = (
            [w for w in reader.scored if low < len(w) <= high] if low else [w for w in reader.scored if len(w) <= high]
        )
        texts.append(sorted(int(token) for w in windows for token in w[max(low, 1) :]))
    for (low, high), text, entry in zip(task.edges, texts, found.bins, strict=True):
        assert (entry.low, entry.high, entry.tokens) == (low, high, len(text))
        assert len(text) == len(set(text))  # scored once
        if low:
            assert text == texts[-1]
        else:
            lost = set(texts[-1]) - set(text)
            assert set(text) <= set(texts[-1])
            assert len(lost) <= len(texts[-1]) / 128 + 3  # first tokens of windows only


def test_bins_equal_whole_logits_on_a_random_decoder(tmp_path):
    decoder = toy_decoder()
    task = PositionLoss(length=300, windows=2)  # bins [0, 128), [128, 256), [256, 300)
    found = task.run(desk_for(DecoderReader(decoder), tmp_path))
    assert [entry.tokens for entry in found.bins] == [2 * 43, 2 * 44, 2 * 44]

    document = torch.from_numpy(material().documents.documents[0])
    expected = np.zeros(3)
    for row in found.rows:
        start = row["offset_tokens"]
        # The stretch [start + 256, start + 300) with 256 tokens before it, with 128, and with none.
        for index, before in ((2, 256), (1, 128), (0, 0)):
            begin, stop = start + 256 - before, start + 300
            with torch.no_grad():
                logits = decoder(document[None, begin:stop])[0, :-1].double()
            losses = torch.nn.functional.cross_entropy(logits, document[begin + 1 : stop], reduction="none")
            expected[index] += float(losses[max(before - 1, 0) :].sum())
    np.testing.assert_allclose([entry.nll_sum for entry in found.bins], expected, rtol=1e-5)


def test_one_bin_adds_up_to_the_loss_of_the_whole_window(tmp_path):
    decoder = toy_decoder()
    found = PositionLoss(length=100, windows=1).run(desk_for(DecoderReader(decoder), tmp_path))
    (row,) = found.rows
    text = torch.from_numpy(material().documents.documents[0])[row["offset_tokens"] :][:100]
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(decoder(text[None])[0, :-1], text[1:], reduction="sum")
    assert found.bins[0].nll_sum == pytest.approx(float(whole), rel=1e-5)
    assert found.bins[0].tokens == 99


def test_windows_share_no_scored_text_hold_no_separator_and_come_from_long_documents(tmp_path):
    documents = Texts(prose(1, 700), prose(2, 40), prose(3, 500))
    reader = Copier()
    task = PositionLoss(length=512, windows=6)
    rows = task.run(
        desk_for(reader, tmp_path, stuff=Material(documents=documents, encode=encode, decode=decode, seed=0))
    ).rows
    assert {row["cluster"] for row in rows} == {"document 0", "document 2"}
    scored = [(row["cluster"], row["offset_tokens"] // 256) for row in rows]
    assert len(set(scored)) == len(rows) == 6
    assert all(row["offset_tokens"] % 256 == 0 for row in rows)
    assert not any(SEPARATOR in context for context in reader.contexts)
    assert all(decode(context) for context in reader.contexts)


def test_fewer_windows_when_the_text_is_short(tmp_path):
    documents = Texts("a" * 600)
    found = PositionLoss(length=512, windows=50).run(
        desk_for(Copier(), tmp_path, stuff=Material(documents=documents, encode=encode, decode=decode, seed=0))
    )
    assert len(found.rows) == 1


def test_a_stopped_task_goes_on_to_the_same_bins(tmp_path):
    task = PositionLoss(length=512, windows=4)
    unbroken = task.run(desk_for(Copier(), tmp_path / "whole"))
    budget = iter([False, False])
    with pytest.raises(Interrupted):
        task.run(desk_for(Copier(), tmp_path / "cut", stop=lambda: next(budget, True)))
    second = Copier()
    resumed = task.run(desk_for(second, tmp_path / "cut"))
    assert resumed.bins == unbroken.bins
    assert sum(len(context) == 512 for context in second.contexts) == 2


def test_a_document_that_is_too_short_is_refused():
    longest = max(len(document) for document in material().documents.documents) - 1
    with pytest.raises(DataError, match=f"has the 999999 tokens .* the longest has {longest}"):
        PositionLoss(length=999_999).check(material())
    # The separator is no text: one token more would be needed.
    exact = Material(documents=Texts("a" * 128), encode=encode, decode=decode, seed=0)
    PositionLoss(length=128).check(exact)
    with pytest.raises(DataError):
        PositionLoss(length=129).check(exact)


def test_settings():
    assert len(LETTERS) == SEPARATOR
    for bad in ({"length": 1}, {"length": 512, "windows": 0}):
        with pytest.raises(ValidationError):
            PositionLoss(**bad)
