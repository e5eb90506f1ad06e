"""RULER's prompts: readers that see the prompt alone find the answers; published strings, counts and scores by hand."""

import random
import re
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from test_grid import desk_for

from longspan.eval.desk import Material, Score, substring_score, whole_word_score
from longspan.eval.published.templates import REPLY_TOKENS, Name
from longspan.eval.tasks._ruler import build, frequencies
from longspan.eval.tasks.ruler import Ruler
from longspan.utils.errors import DataError

NAMES = get_args(Name)
TEXT = "".join(random.Random(5).choices(["sea ", "grey ", "wind\n", "ship ", "9 ", "old "], k=9000))


def encode(text):
    return [ord(char) for char in text]


def decode(ids):
    return "".join(map(chr, ids))


def prompt(name, *, length=8000, depth=0.3, seed=0):
    context = build(name, np.array(encode(TEXT)), length=length, depth=depth, encode=encode, rng=random.Random(seed))
    (branch,) = context.branches
    return context, branch, decode(context.tokens) + decode(branch.question)


def answers(name, text):
    """What a careful reader answers, from the text of the prompt alone."""
    if name.startswith("niah"):
        keys = re.search(r".* for (.*?) mentioned in the provided text (?:is|are)$", text)[1]
        found = []
        for key in re.split(r", and |, ", keys):
            found += re.findall(rf"One of the special magic \w+ for {re.escape(key)} is: (\S+)\.(?=\n)", text)
        return found
    if name == "vt":
        body = text.rsplit("Memorize and track", 1)[1]
        value, held = re.search(r"assigned the value (\d+), they are: $", body)[1], []
        for left, right in re.findall(r"\nVAR (\w+) = (?:VAR )?(\w+)", body):
            if right == value or right in held:
                held.append(left)
        return held
    body = re.split(r"\nQuestion: ", text)[-2].rsplit("most often.\n" if name == "cwe" else "coded words. ", 1)[1]
    counts = Counter(word for word in body.split() if word.isalpha())
    return [word for word, _ in counts.most_common(10 if name == "cwe" else 3)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [8000, 12001])
def test_a_reader_of_the_prompt_finds_what_is_wanted(name, length):
    context, branch, text = prompt(name, length=length)
    assert sorted(answers(name, text)) == sorted(branch.item.wanted)
    used = len(context.tokens) + len(branch.question) + branch.reply_tokens
    assert branch.reply_tokens == REPLY_TOKENS[name]
    longest_line = 160 if "multikey" in name or name in ("niah_single_1", "vt") else 700  # a word more, 3 to 30 times
    exact = name in ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
    assert 0 <= length - used <= (0 if exact else longest_line), length - used


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("niah") or name == "vt"])
@pytest.mark.parametrize("depth", [0.02, 0.5, 0.97])
def test_what_is_asked_for_stands_at_its_depth(name, depth):
    context, branch, _ = prompt(name, depth=depth)
    line = decode(context.tokens[branch.offset_tokens :]).split("\n")[1]
    assert branch.item.wanted[0] in line or line.startswith(f"VAR {branch.item.wanted[0]}")
    first = len(decode(context.tokens).rsplit("Memorize and track", 1)[0]) if name == "vt" else 0
    assert abs((branch.offset_tokens - first) / (len(context.tokens) - first) - depth) < 0.06


def test_the_published_words_singular_and_plural():
    _, branch, text = prompt("niah_single_2")
    assert text.startswith(
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    key = re.search(r"special magic numbers for (\S+) is: ", text)[1]
    assert decode(branch.question) == (
        f"\nWhat is the special magic number for {key} mentioned in the provided text? "
        f"The special magic number for {key} mentioned in the provided text is"
    )
    _, branch, text = prompt("niah_multiquery")
    assert text.startswith("Some special magic numbers are hidden within")
    assert re.search(r"What are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned", text)
    assert text.endswith("mentioned in the provided text are")
    _, _, text = prompt("vt")
    assert text.count("Memorize and track the chain(s)") == 2  # with its one example
    assert text.endswith("5 variables are assigned the value " + text.split()[-3].rstrip(",") + ", they are: ")


def test_counts_of_frequent_words_at_a_million_tokens():
    assert frequencies(262_144, 5)[1:] == [39_841, 17_707, 9_960, 6_374]


def test_scores_by_hand():
    assert substring_score("It is FOO and barn.", ("foo", "bar", "baz")) == pytest.approx(2 / 3)
    assert whole_word_score("It is FOO and barn.", ("foo", "bar", "baz")) == pytest.approx(1 / 3)
    assert substring_score("", ("foo",)) == whole_word_score("", ("foo",)) == 0.0
    assert substring_score("anything", ()) == 0.0


class Reader:
    """Answers from the text of the prompt; `blind` says nothing."""

    def __init__(self, *, blind=False):
        self.blind = blind

    def read(self, tokens, *, room_tokens):
        self.text, self.room = decode(tokens), room_tokens
        return self

    def generate(self, questions, *, max_new_tokens, stop_ids=()):
        assert stop_ids == (0,)
        (question,), (most,) = questions, max_new_tokens
        assert len(question) + most <= self.room
        text = self.text + decode(question)
        name = "niah" if "special magic" in text else next(n for n in ("chain(s)", "numbered", "coded") if n in text)
        name = {"chain(s)": "vt", "numbered": "cwe", "coded": "fwe"}.get(name, name)
        return [[] if self.blind else encode(" " + " ".join(answers(name, text)))]

    def score(self, asked):
        return [Score(hit=False, logprob=None) for _ in asked]


class Documents:
    lengths = np.array([len(TEXT) + 1])

    def read(self, document, start, length):
        return np.array(encode(TEXT[start : start + length]))


def stuff():
    return Material(documents=Documents(), encode=encode, decode=decode, seed=1, text_id="t", stop_ids=(0,))


def test_an_oracle_gets_everything_and_silence_nothing(tmp_path):
    task = Ruler(lengths=(8000,), samples=2)
    task.check(stuff())
    for blind in (False, True):
        found = task.run(desk_for(Reader(blind=blind), tmp_path / str(blind), stuff=stuff()))
        assert len(found.rows) == 2 * len(NAMES)
        assert {row["score"] for row in found.rows} == {0.0 if blind else 1.0}
        assert {row["strict"] for row in found.rows} == {0.0 if blind else 1.0}
        assert {row["stop"] for row in found.rows} <= ({"eos"} if blind else {"eos", "cap"})
    assert found.facts == {"ruler_repeats_one_sentence": "niah_single_1, vt", "ruler_bug_compatible": False}
    assert task.cost_tokens(Documents()) == 8000 * 2 * len(NAMES)
    row = found.rows[0]
    rebuilt = task.rebuild(stuff(), row["spec"]["place"])
    again = task.rebuild(stuff(), row["spec"]["place"])
    assert rebuilt.tokens.tobytes() == again.tokens.tobytes()


def test_depths_are_stratified_over_samples(tmp_path):
    task = Ruler(tasks=("niah_single_2",), lengths=(2000,), samples=20)
    rows = task.run(desk_for(Reader(blind=True), tmp_path, stuff=stuff())).rows
    assert sorted(int(row["depth"] * 20) for row in rows) == list(range(20))


@pytest.mark.parametrize("name", NAMES)
def test_too_short_is_refused(name):
    with pytest.raises(DataError, match="too few for this task of RULER"):
        prompt(name, length=420)
