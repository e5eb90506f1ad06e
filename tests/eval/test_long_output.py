"""Long output end to end: a writer that keeps to the plan scores everything, a silent one nothing."""

import re

import pytest
from pydantic import ValidationError
from test_grid import desk_for
from test_ruler import decode, encode, stuff

from longspan.eval.tasks._replies import shape
from longspan.eval.tasks.sections import Sections
from longspan.eval.tasks.writing import Writing
from longspan.utils.longform import distinct, loops, worst_distinct


class Writer:
    def __init__(self, *, silent=False):
        self.silent = silent

    def read(self, tokens, *, room_tokens):
        self.text = decode(tokens)
        return self

    def generate(self, questions, *, max_new_tokens, stop_ids=(), sampling=None):
        self.asked = (questions, max_new_tokens, sampling)
        if sampling is not None:
            return [self.drawn[seed] for seed in sampling.seeds]
        if self.silent:
            return [[]]
        if words := re.search(r"exactly (\d+) words", self.text):
            return [encode(" ".join(["word"] * int(words[1])))]
        codes = dict(re.findall(r"- Floor (\d+) has the code word (\w+)\.", self.text))
        many = int(re.search(r"has (\d+) floors", self.text)[1])
        every = re.findall(r"- Floor (\d+) has the code word (\w+)\.", self.text)
        assert codes
        reply = "\n".join(
            f"Floor {n}: a room. " + " ".join(word for floor, word in every if int(floor) == n)
            for n in range(1, many + 1)
        )
        return [encode(reply.removeprefix("Floor 1:"))]


@pytest.mark.parametrize("silent", [False, True])
def test_sections(silent, tmp_path):
    task = Sections(sections=6, checks=5, reply_tokens=400, samples=3)
    task.check(stuff())
    seen = []
    found = task.run(desk_for(Writer(silent=silent), tmp_path, stuff=stuff(), advance=seen.append))
    if silent:
        assert found.facts["sections_6_completion"] == pytest.approx(1 / 6)  # its head stands in the prompt
        assert found.facts["sections_6_weighted"] == 0.0
    else:
        for name in ("completion", "stic_1", "stic_2", "weighted"):
            assert found.facts[f"sections_6_{name}"] == 1.0
    assert found.facts["sections_6_stopped"] == 1.0
    assert sum(seen) == task.cost_tokens(stuff().documents)
    assert {row["score"] for row in found.rows} == {0.0 if silent else 1.0}
    again = task.rebuild(stuff(), found.rows[0]["spec"]["place"])
    assert decode(again.tokens).startswith("The tower ")


@pytest.mark.parametrize("silent", [False, True])
def test_writing(silent, tmp_path):
    task = Writing(words=(10, 50), samples=2)
    task.check(stuff())
    seen = []
    found = task.run(desk_for(Writer(silent=silent), tmp_path, stuff=stuff(), advance=seen.append))
    for words in (10, 50):
        for name in ("length_score", "longen", "precise_match", "flexible_match"):
            full = 100.0 if name == "length_score" else 1.0
            assert found.facts[f"writing_{words}_{name}"] == (0.0 if silent else full)
    assert sum(seen) == task.cost_tokens(stuff().documents)
    assert len({row["context"] for row in found.rows}) == 4


def rows(*replies, stop="eos", context="c"):
    return [{"prediction": reply, "stop": stop, "context": context} for reply in replies]


def test_lengths_and_ends_of_replies_by_hand():
    some = rows("a b c d", "a b", stop="eos") + rows("z " * 40, "a b c d e f", stop="cap", context="d")
    facts = shape("t", some)
    assert facts["t_stopped"] == facts["t_capped"] == 0.5
    assert facts["t_looped"] == 0.25  # only one of those that were cut off says the same again and again
    assert facts["t_words"] == 13.0
    assert (facts["t_words_p0"], facts["t_words_p50"], facts["t_words_p100"]) == (2.0, 5.0, 40.0)
    assert facts["t_words_deviation"] == pytest.approx((((-9) ** 2 + (-11) ** 2 + 27**2 + (-7) ** 2) / 4) ** 0.5)
    assert facts["t_words_between_seeds"] == pytest.approx((1.0 + 17.0) / 2)
    assert "t_words_between_seeds" not in shape("t", rows("a") + rows("b", context="d"))


def test_a_text_that_turns_into_a_loop_is_seen_where_it_does():
    fresh = " ".join(f"w{n}" for n in range(600))
    assert worst_distinct(fresh, 3) == 1.0
    assert worst_distinct(fresh + " so" * 300, 3) < 0.02 < distinct(fresh + " so" * 300, 3)
    assert loops("so " * 30)
    assert not loops(fresh)
    assert not loops("so so so")
    assert worst_distinct("", 3) == 1.0


def test_several_seeds_are_drawn_side_by_side_and_each_has_a_row(tmp_path):
    task = Writing(words=(10,), samples=1, seeds=3, temperature=0.8)
    writer = Writer()
    writer.drawn = {1000 + n: encode(" ".join(["word"] * (9 + n))) for n in range(3)}  # the material's seed is 1
    seen = []
    desk = desk_for(writer, tmp_path, stuff=stuff(), advance=seen.append)
    found = task.run(desk)
    questions, most, sampling = writer.asked
    assert len(questions) == len(most) == 3
    assert sampling.temperature == 0.8
    assert [row["seed"] for row in found.rows] == [1000, 1001, 1002]
    assert len({row["key"] for row in found.rows}) == 3
    assert found.facts["writing_10_words"] == 10.0
    assert sum(seen) == task.cost_tokens(stuff().documents)
    assert task.asked() == {"writing/10": (3, 1)}
    again = task.run(desk_for(None, tmp_path, stuff=stuff()))
    assert again.facts == found.facts
    greedy = Writing(words=(10,), samples=1).run(desk_for(Writer(), tmp_path, stuff=stuff()))
    assert greedy.rows[0]["key"] not in {row["key"] for row in found.rows}


def test_seeds_without_a_temperature_are_refused():
    with pytest.raises(ValidationError, match="do not depend on a seed"):
        Sections(seeds=2)
