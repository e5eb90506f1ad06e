"""A judge behind a real HTTP server on this machine: what it is asked, what counts as marks, once for each reply."""

import json

import pytest
from pydantic import ValidationError
from test_grid import desk_for
from test_long_output import Writer
from test_ruler import stuff
from test_server import serving

from longspan.eval.judge import MARKS, Judge, quality, read_marks
from longspan.eval.rows import counts_as_score
from longspan.eval.tasks.writing import Writing
from longspan.utils.errors import ConfigError, ModelError

GOOD = dict.fromkeys(MARKS, 4) | {"clarity": 5, "breadth": 2}


def says(text):
    return lambda body: (200, {"choices": [{"message": {"content": text}}]})


def test_replies_are_marked_once_and_a_second_run_asks_nothing(tmp_path):
    with serving(says(f"Here it is: {json.dumps(GOOD)}.")) as (url, asked):
        task = Writing(words=(10,), samples=2, judge=Judge(url=url, model="j"))
        found = task.run(desk_for(Writer(), tmp_path, stuff=stuff()))
        assert len(asked) == 2
        path, body = asked[0]
        assert (path, body["model"], body["temperature"]) == ("/v1/chat/completions", "j", 0)
        (message,) = body["messages"]
        assert "A text of exactly 10 words about" in message["content"]
        assert "word word" in message["content"]
        desk = desk_for(None, tmp_path, stuff=stuff())
        assert task.run(desk).facts == found.facts
        assert len(asked) == 2
    # By hand: (4 + 4 + 4 + 5 + 2 + 4) / 6 = 23 / 6, less one, times 25.
    assert found.facts["writing_10_quality"] == pytest.approx(25 * (23 / 6 - 1))
    assert found.facts["writing_10_judged"] == 1.0
    judged = [row for row in desk.rows if row["task"].startswith("judge/")]
    assert len(judged) == 2
    assert not any(counts_as_score(row) for row in judged)
    assert {row["judge"] for row in judged} == {f"j at {url}"}


def test_an_answer_without_marks_is_counted_as_none(tmp_path):
    with serving(says("I like it.")) as (url, _):
        task = Writing(words=(10,), samples=1, judge=Judge(url=url, model="j"))
        facts = task.run(desk_for(Writer(), tmp_path, stuff=stuff())).facts
    assert facts["writing_10_judged"] == 0.0
    assert "writing_10_quality" not in facts


@pytest.mark.parametrize(
    ("said", "marks"),
    [
        (json.dumps(GOOD), GOOD),
        ('{"a": 1} then ' + json.dumps(GOOD), GOOD),
        (json.dumps(GOOD | {"clarity": 6}), None),
        (json.dumps(GOOD | {"clarity": 0}), None),
        (json.dumps(GOOD | {"clarity": 2.5}), None),
        (json.dumps(GOOD | {"clarity": True}), None),
        (json.dumps(GOOD | {"clarity": "5"}), None),
        ("{broken", None),
        ("{broken: 1}", None),
    ],
)
def test_marks_are_six_whole_numbers_from_1_to_5(said, marks):
    assert read_marks(said) == marks


def test_quality_by_hand():
    assert quality(dict.fromkeys(MARKS, 1)) == 0.0
    assert quality(dict.fromkeys(MARKS, 3)) == 50.0
    assert quality(dict.fromkeys(MARKS, 5)) == 100.0


def test_a_key_goes_with_the_request_and_stands_in_no_row(tmp_path):
    (tmp_path / "key").write_text("open sesame\n")
    sent = []
    with serving(says(json.dumps(GOOD)), headers=sent) as (url, _):
        judge = Judge(url=url, model="j", key_file=tmp_path / "key")
        task = Writing(words=(10,), samples=1, judge=judge)
        desk = desk_for(Writer(), tmp_path / "rows", stuff=stuff())
        task.run(desk)
    assert sent[0]["Authorization"] == "Bearer open sesame"
    assert "sesame" not in json.dumps(list(desk.rows))


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match="key cannot be read") as caught:
        Judge(url="http://127.0.0.1:9/v1", model="j", key_file=tmp_path / "none").marks("a", "b")
    assert caught.value.code == "eval.judge-key"
    with serving(lambda body: (200, {"choices": []})) as (url, _), pytest.raises(ModelError, match="has no text"):
        Judge(url=url, model="j").marks("a", "b")
    with pytest.raises(ValidationError):
        Judge(url="ftp://x", model="j")
