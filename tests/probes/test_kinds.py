"""Conformance of every probe in the folder, and the word lists behind them."""

import random
import re

import pytest
from pydantic import TypeAdapter, ValidationError

from longspan.config import any_kind, kind_class, kinds
from longspan.probes import PlantedProbe, _words
from longspan.probes.key_value import KeyValue
from longspan.probes.needle import Needle
from longspan.utils.errors import DataError


def probe_of(kind: str) -> PlantedProbe:
    probe = kind_class("longspan.probes", kind)()
    assert isinstance(probe, PlantedProbe)
    return probe


KINDS = [kind for kind in kinds("longspan.probes") if issubclass(kind_class("longspan.probes", kind), PlantedProbe)]


def test_the_folder_holds_the_three_first_kinds():
    assert {"needle", "passkey", "key_value"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_items_join_where_tokenizers_cut(kind, split):
    for item in probe_of(kind).items(20, rng=random.Random(3), split=split):
        assert "\n" not in item.line
        assert item.question.startswith("\n")
        assert not item.question[-1].isspace()
        assert re.fullmatch(r" \S(.*\S)?", item.answer)
        assert all(part in item.answer for part in item.wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_items(kind):
    drawn = [probe_of(kind).items(9, rng=random.Random(seed), split="train") for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("kind", KINDS)
def test_keys_and_answers_are_unique_in_one_call(kind):
    count = 20 if kind == "latent" else 200
    items = probe_of(kind).items(count, rng=random.Random(5), split="evaluate")
    assert len({item.answer for item in items}) == len({item.line for item in items}) == count
    if probe_of(kind).most_items is None:
        assert len({item.question for item in items}) == count


def test_words_are_enough_distinct_and_split_in_halves():
    for words, least in ((_words.ADJECTIVES, 150), (_words.NOUNS, 250)):
        assert len(words) == len(set(words)) >= least
        assert all(re.fullmatch("[a-z]+", word) for word in words)
        share = sum(_words.split_of(word) == "train" for word in words) / len(words)
        assert 0.4 < share < 0.6
    assert not set(_words.ADJECTIVES) & set(_words.NOUNS)


def test_the_split_of_a_word_never_moves():
    # Checkpoints trained on one half are evaluated by later versions: these values are a promise.
    sides = {word: _words.split_of(word) for word in ("silent", "harbor", "402913", "9f03ac")}
    assert sides == {"silent": "train", "harbor": "evaluate", "402913": "evaluate", "9f03ac": "train"}


def test_too_many_strings_are_refused():
    with pytest.raises(DataError, match="1025 different strings of 3 letters"):
        KeyValue(key_digits=3).items(1025, rng=random.Random(0), split="train")


def test_too_many_names_are_refused():
    with pytest.raises(DataError, match="names are asked") as caught:
        Needle().items(100_000, rng=random.Random(0), split="train")
    assert caught.value.code == "probe.too-many-items"


def test_settings_choose_the_kind_and_the_sizes():
    adapter = TypeAdapter(any_kind("longspan.probes"))
    probe = adapter.validate_python({"kind": "key_value", "key_digits": 4, "value_digits": 9})
    item = probe.items(1, rng=random.Random(0), split="train")[0]
    assert re.fullmatch(r"Key [0-9a-f]{4}: [0-9a-f]{9}\.", item.line)
    assert re.fullmatch(r" \d{8}", Needle(digits=8).items(1, rng=random.Random(0), split="train")[0].answer)
    for bad in ({"kind": "needle", "digits": 1}, {"kind": "needle", "answer_weight": 5.0}, {"kind": "needl"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
