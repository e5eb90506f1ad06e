"""Every probe of the folder: a reader of the text finds each answer, lengths are exact, the splits share nothing."""

import random
import re

import numpy as np
import pytest
from probe_solvers import SOLVERS, solve

from longspan.config import kind_class, kinds
from longspan.probes import (
    FilledProbe,
    PlantedProbe,
    Probe,
    WovenProbe,
    evaluation_context,
    training_row,
)
from longspan.probes.aggregate import Aggregate
from longspan.probes.documents import Documents
from longspan.probes.latent import Latent
from longspan.probes.position import Position
from longspan.utils.errors import DataError

KINDS = kinds("longspan.probes")
BASE = ord("a")
TEXT = "".join(random.Random(5).choices(["sea ", "grey ", "wind\n", "ship ", "9 ", "old "], k=9000))
HAYSTACK = np.array([ord(char) for char in TEXT])


def encode(text: str) -> list[int]:
    return [ord(char) for char in text]


def decode(ids) -> str:
    return "".join(map(chr, ids))


def probe_of(kind: str) -> Probe:
    return kind_class("longspan.probes", kind)()


OWN_TEXT = [kind for kind in KINDS if not isinstance(probe_of(kind), WovenProbe)]
WOVEN = [kind for kind in KINDS if isinstance(probe_of(kind), WovenProbe)]


def context_of(probe: Probe, length: int, *, seed: int, count: int = 2):
    count = min(count, probe.most_items or count)
    depths = [(index + 0.4) / count for index in range(count)]
    rng = random.Random(seed)
    return evaluation_context(probe, HAYSTACK, length=length, depths=depths, encode=encode, rng=rng)


def test_every_probe_has_a_reader():
    assert {*SOLVERS, *WOVEN} == set(KINDS)


@pytest.mark.parametrize("kind", OWN_TEXT)
@pytest.mark.parametrize("length", [6000, 9001, 17000])
def test_a_reader_finds_every_answer_and_nothing_without_the_text(kind, length):
    context = context_of(probe_of(kind), length, seed=length)
    assert len(context.tokens) + max(len(b.question) + len(b.answer) for b in context.branches) == length
    text = decode(context.tokens)
    for branch in context.branches:
        assert decode([*branch.question, *branch.answer]) == branch.item.question + branch.item.answer
        assert solve(kind, text + branch.item.question) == branch.item.answer.strip()
        assert all(part in branch.item.answer for part in branch.item.wanted)
        if isinstance(probe_of(kind), PlantedProbe):
            assert solve(kind, TEXT + branch.item.question) is None


def test_two_hops_lead_through_the_teacher():
    context = context_of(Documents(hops=2), 8000, seed=1)
    for branch in context.branches:
        assert "the one who taught" in branch.item.question
        assert solve("documents", decode(context.tokens) + branch.item.question) == branch.item.answer.strip()


@pytest.mark.parametrize("kind", [*OWN_TEXT, *WOVEN])
def test_the_planted_line_stands_where_its_offset_says(kind):
    context = context_of(probe_of(kind), 12000, seed=3)
    for branch in context.branches:
        if branch.item.line:
            assert decode(context.tokens[branch.offset_tokens :]).startswith(f"\n{branch.item.line}\n")
            assert abs(branch.offset_tokens / len(context.tokens) - branch.depth) < 0.05
        elif kind == "documents":
            answer = branch.item.answer.strip()
            line = decode(context.tokens[branch.offset_tokens :]).split("\n")[1]
            assert f"kept a {answer} in" in line
            assert abs(branch.offset_tokens / len(context.tokens) - branch.depth) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bytes(kind):
    drawn = [context_of(probe_of(kind), 5000, seed=seed) for seed in (4, 4)]
    assert drawn[0].tokens.tobytes() == drawn[1].tokens.tobytes()
    assert drawn[0].branches == drawn[1].branches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [5000, 8191])
def test_a_training_row_is_exact_and_weighs_the_answers(kind, length):
    rng = random.Random(1)
    row, weights = training_row(
        probe_of(kind), HAYSTACK, length=length, items=2, answer_weight=3.0, encode=encode, rng=rng
    )
    assert (row.shape, weights.shape) == ((length + 1,), (length + 1,))
    assert set(np.unique(weights)) == {np.float32(1), np.float32(3)}
    if kind in SOLVERS:  # the first question stands right behind the text: a reader must find its answer
        first = int(np.flatnonzero(weights == 3)[0])
        text = decode(row[:first])
        answer = decode(row[first:][: int(np.argmin(np.append(weights[first:], 0) == 3))])
        assert solve(kind, text) == answer.strip()


@pytest.mark.parametrize("kind", OWN_TEXT)
def test_training_and_evaluation_share_no_answer(kind):
    answers = {}
    for split in ("train", "evaluate"):
        probe, found = probe_of(kind), set()
        for seed in range(10):
            rng = random.Random(seed)
            if isinstance(probe, PlantedProbe):
                items = probe.items(1 if probe.most_items else 20, rng=rng, split=split)
            else:
                assert isinstance(probe, FilledProbe)
                items = probe.fill(60, depths=[0.5], rng=rng, split=split).items
            found |= {part for item in items for part in item.wanted}
        answers[split] = found
    assert answers["train"]
    assert not answers["train"] & answers["evaluate"]


def test_infill_gives_back_what_was_cut_out():
    context = context_of(probe_of("infill"), 4000, seed=1, count=1)
    branch, text = context.branches[0], decode(context.tokens)
    assert text.count("\n[missing part]\n") == 1
    whole = text.replace("\n[missing part]\n", decode(branch.answer))
    assert TEXT.startswith(whole)
    assert abs(text.index("\n[missing part]\n") / len(text) - 0.4) < 0.01


def test_keyword_asks_for_what_follows_in_the_text():
    branch = (context := context_of(probe_of("keyword"), 4000, seed=1, count=1)).branches[0]
    given = decode(branch.question).removeprefix("\n[find and go on]\n")
    assert given + decode(branch.answer) in decode(context.tokens)
    assert TEXT.startswith(decode(context.tokens))


def test_position_asks_for_the_start_of_a_numbered_part():
    branch = (context := context_of(Position(part_tokens=100, tokens=12), 4000, seed=1, count=1)).branches[0]
    text = decode(context.tokens)
    number = re.fullmatch(r"\n\[part (\d+)\] begins:\n", decode(branch.question))[1]
    assert text.split(f"\n[part {number}]\n")[1].startswith(decode(branch.answer))
    assert TEXT.startswith(re.sub(r"\n\[part \d+\]\n", "", text))
    numbers = [int(n) for n in re.findall(r"\[part (\d+)\]", text)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_reorder_restores_the_text():
    branch = (context := context_of(probe_of("reorder"), 4000, seed=1, count=1)).branches[0]
    parts = re.split(r"\n\[part ([A-Z])\]\n", decode(context.tokens))[1:]
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    letters = decode(branch.answer).split()
    assert sorted(letters) == sorted(named)
    assert letters != sorted(letters)
    assert TEXT.startswith("".join(named[letter] for letter in letters))


@pytest.mark.parametrize("kind", KINDS)
def test_too_short_a_text_is_refused(kind):
    with pytest.raises(DataError, match="tokens are too few"):
        context_of(probe_of(kind), 30, seed=0, count=1)


def test_more_than_there_are_is_refused():
    for probe in (Latent(), Aggregate()):
        with pytest.raises(DataError, match="are asked of a probe that") as caught:
            probe.items(5000, rng=random.Random(0), split="train")
        assert caught.value.code == "probe.too-many-items"
