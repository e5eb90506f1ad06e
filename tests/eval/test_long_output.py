"""Long output end to end: a writer that keeps to the plan scores everything, a silent one nothing."""

import re

import pytest
from test_grid import desk_for
from test_ruler import decode, encode, stuff

from longspan.eval.tasks.sections import Sections
from longspan.eval.tasks.writing import Writing


class Writer:
    def __init__(self, *, silent=False):
        self.silent = silent

    def read(self, tokens, *, room_tokens):
        self.text = decode(tokens)
        return self

    def generate(self, questions, *, max_new_tokens, stop_ids=()):
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
