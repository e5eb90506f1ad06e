"""Recall by distance: strings stand where they should, and the floor is of strings that the text does not hold."""

import pytest
from eval_toys import decode, material
from pydantic import ValidationError
from test_grid import desk_for

from longspan.eval.desk import Score
from longspan.eval.tasks.recall import Recall


class Reader:
    """Its log-probability of each token of an answer falls with the distance to it; what is not there gets -9."""

    def read(self, tokens, *, room_tokens):
        self.text = decode(tokens)
        return self

    def score(self, asked):
        found = []
        for entry in asked:
            answer = decode(entry.answer).strip()
            at = self.text.find(answer) if len(answer) == 8 else -1
            each = -9.0 if at < 0 else -(len(self.text) - at) / 1000
            found.append(Score(hit=False, logprob=each * len(entry.answer)))
        return found

    def generate(self, questions, *, max_new_tokens, stop_ids=()):
        return [[] for _ in questions]


def test_strings_stand_at_their_distances_and_foils_nowhere(tmp_path):
    task = Recall(length=1500, trials=3)
    assert task.distances == (128, 256, 512, 1024)
    found = task.run(desk_for(Reader(), tmp_path))
    assert [entry.distance for entry in found.recalls] == [128, 256, 512, 1024]
    for entry in found.recalls:
        # A line moves up to 32 tokens to a line start, and stands before its question.
        assert -entry.logprob * 1000 == pytest.approx(entry.distance, abs=80)
        assert entry.low <= entry.logprob <= entry.high
        assert (entry.floor, entry.trials) == (pytest.approx(-9.0), 3)
    texts = {row["cluster"]: decode(task.rebuild(material(), row["spec"]["place"]).tokens) for row in found.rows}
    for index, row in enumerate(found.rows):
        key, text = row["question"].split()[1], texts[row["cluster"]]
        assert text.count(f"\nKey {key} ".rstrip()) == 1
        assert (row["gold"].strip() in text) == (index % 2 == 0)


def test_settings():
    with pytest.raises(ValidationError):
        Recall(length=300)
    with pytest.raises(ValidationError):
        Recall(length=2000, trials=1)
