"""Rows of a real run: rebuilt to the byte, merged, compared; a served model; and what is told before a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from longspan.data.store import TokenStore
from longspan.eval.evaluate import evaluation_of
from longspan.eval.rows import Rows, ids_sha256
from longspan.eval.tasks.grid import Grid
from longspan.pipeline import served, stages
from longspan.pipeline.evalrows import changes, compare, merge, names_of, rebuild
from longspan.pipeline.evalverbs import EVAL_VERBS, eval_verb
from longspan.pipeline.forecast import forecast, read_seconds
from longspan.pipeline.observer import Silent
from longspan.pipeline.recipe import Recipe
from longspan.plan.machine import Machine
from longspan.plan.shapes import named_shape
from longspan.probes.needle import Needle
from longspan.records import Evaluation
from longspan.utils.errors import ConfigError, DataError
from longspan.utils.files import read_json


class Listener(Silent):
    def __init__(self):
        self.told = []

    def tell(self, text):
        self.told.append(text)


@pytest.fixture
def run(micro: Path) -> tuple[Path, Listener]:
    """The rows of the micro job's evaluation after training."""
    listener = Listener()
    stages.run(Recipe.read(micro), observer=listener)
    return micro.parent / "run" / "eval" / "after.rows.jsonl", listener


def test_every_row_can_be_rebuilt_and_says_what_was_asked(run):
    rows, _ = run
    for row in Rows(rows):
        found = rebuild(rows, row["key"][:12])
        assert ids_sha256(np.array(found["tokens"])) == row["context"]
        if row["task"].startswith("grid"):
            assert found["gold_tokens"] == row["gold_tokens"]
            assert found["question"] == row["question"]
            # The gold number stands in the text, at the row's offset.
            tail = rebuild(rows, row["key"])["text"]
            assert row["gold"].strip() in tail
    text, found = eval_verb("rebuild", [str(rows), row["key"]])
    assert text == found["text"]


def test_two_files_of_rows_are_a_page_with_what_the_run_itself_found(run, tmp_path):
    after, _ = run
    found = evaluation_of(list(Rows(after)), name="after")
    wrote = Evaluation.from_json(read_json(after.with_name("after.json")))
    assert (found.cells, found.bins, found.scores) == (wrote.cells, wrote.bins, wrote.scores)
    assert found.facts == {key: value for key, value in wrote.facts.items() if key != "branch_difference"}
    before = after.with_name("before.rows.jsonl")  # of a model that finds nothing
    lost = [{**row, "model": "first", "hit": False, "score": 0.0} for row in Rows(after)]
    before.write_text("".join(json.dumps(row) + "\n" for row in lost))
    told, found = eval_verb("compare", [str(before), str(after), str(tmp_path / "page.html")])
    assert told.endswith(f"wrote {tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text()
    assert "after minus before on the very same contexts" in page
    assert page.count("<svg") >= 3
    assert "Recipe" not in page
    entry = found["differences"][0]
    assert f"{100 * entry['difference']:+.1f} [" in page
    with pytest.raises(DataError, match="no two contexts"):
        eval_verb("compare", [str(before), str(tmp_path / "none.jsonl"), str(tmp_path / "other.html")])
    assert not (tmp_path / "other.html").exists()


def test_rows_of_two_models_of_none_and_of_an_unknown_task_are_refused(run):
    path, _ = run
    rows = list(Rows(path))
    for some in ([], [*rows, {**rows[0], "model": "another"}]):
        with pytest.raises(DataError, match=r"rows are of 2 models|there are no rows") as caught:
            evaluation_of(some, name="x")
        assert caught.value.code == "eval.rows-of-models"
    for settings in ({"kind": "from the future"}, {"kind": "grid", "new": 1}, {}):
        with pytest.raises(DataError, match="a task that is not known here") as caught:
            evaluation_of([{**rows[0], "spec": {"task": settings}}], name="x")
        assert caught.value.code == "eval.rows-of-task"


def test_what_two_files_are_called():
    def names(*paths):
        return names_of(*(Path("/r") / path for path in paths))

    assert names("a/eval/before.rows.jsonl", "a/eval/after.rows.jsonl") == ("before", "after")
    assert names("a/eval/after.rows.jsonl", "b/eval/after.rows.jsonl") == ("a after", "b after")
    assert names("one/x.jsonl", "two/x.jsonl") == ("one x", "two x")
    assert names("a/eval/x.rows.jsonl", "a/eval/x.rows.jsonl") == ("x (first)", "x (second)")


def test_what_cannot_be_rebuilt_is_told(run, tmp_path):
    rows, _ = run
    with pytest.raises(DataError, match="no row of this file") as caught:
        rebuild(rows, "zz")
    assert caught.value.code == "eval.no-row"
    with pytest.raises(DataError, match="rows of this file begin"):
        rebuild(rows, "")
    with pytest.raises(DataError, match="no such file"):
        rebuild(tmp_path / "none.jsonl", "a")
    alone = tmp_path / "elsewhere" / "after.rows.jsonl"
    alone.parent.mkdir()
    shutil.copy(rows, alone)
    key = next(iter(Rows(rows)))["key"]
    with pytest.raises(ConfigError, match="do not lie in the eval/ of a run folder"):
        rebuild(alone, key)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for change, words in (
        ({"spec": {**lines[0]["spec"], "text": "other"}}, "not those that the row was made from"),
        ({"context": "other"}, "another one: this version"),
    ):
        rows.write_text(json.dumps({**lines[0], **change}) + "\n")
        with pytest.raises(DataError, match=words) as caught:
            rebuild(rows, key)
        assert caught.value.code == "eval.rebuilt-differs"


def test_merged_in_any_order_the_rows_are_the_same(run, tmp_path):
    rows, _ = run
    lines = rows.read_text().splitlines(keepends=True)
    parts = []
    for index in range(2):
        parts.append(tmp_path / f"{index}.jsonl")
        parts[-1].write_text("".join(lines[index:]))
    for order in (parts, parts[::-1]):
        into = tmp_path / f"into-{order[0].name}"
        told, found = eval_verb("merge", [str(into), *map(str, order)])
        assert found["total"] == found["added"] == len(lines)
        assert told == f"{len(lines)} rows added, {len(lines)} now\n"
        assert {row["key"]: row for row in Rows(into)} == {row["key"]: row for row in Rows(rows)}
    assert merge(into, parts)["added"] == 0
    with pytest.raises(DataError, match="no such file"):
        merge(into, [tmp_path / "none.jsonl"])


def row(context: int, score: float, **more) -> str:
    name = f"c{context}"
    return json.dumps({"key": f"{name}/{more}", "task": "grid/needle", "length": 512, "context": name, "score": score})


def test_two_models_are_compared_on_the_contexts_that_both_answered(tmp_path):
    before, after = tmp_path / "before.rows.jsonl", tmp_path / "after.rows.jsonl"
    before.write_text("".join(row(n, 0.0) + "\n" for n in range(8)))
    after.write_text("".join(row(n, 1.0) + "\n" for n in range(2, 12)))
    (found,) = compare(before, after)["differences"]
    assert (found["task"], found["length"], found["contexts"]) == ("needle", 512, 6)
    assert (found["difference"], found["low"], found["high"]) == (1.0, 1.0, 1.0)
    assert found["p_holm"] == pytest.approx(2 / 64)
    told, _ = eval_verb("compare", [str(before), str(after)])
    assert told == "needle 512: +100.0 points [+100.0, +100.0], p 0.0312 on 6 contexts\n"
    assert changes(tmp_path / "before.json", tmp_path / "after.json") == (found,)
    after.write_text(row(99, 1.0) + "\n")
    with pytest.raises(DataError, match="no two contexts") as caught:
        compare(before, after)
    assert caught.value.code == "eval.nothing-shared"
    assert changes(tmp_path / "before.json", tmp_path / "after.json") == ()
    assert changes(tmp_path / "none.json", tmp_path / "after.json") == ()


def test_it_says_before_it_runs_what_it_can_show_and_how_long_it_takes(run):
    _, listener = run
    assert "grid/needle/128: 2 questions on 2 contexts show 100 points of difference or more" in listener.told
    assert any("about 0 s of reading" in line for line in listener.told)


def test_a_forecast_by_hand(run):
    rows, _ = run
    store = TokenStore.open(rows.parents[1] / "tokens" / "held_out", verify=False)
    machine = Machine(device="NVIDIA H200", device_bytes=2**37, host_bytes=2**37, disk_bytes=2**40, peak_flops=989e12)
    task = Grid(probe=Needle(), lengths=(2**20,), depths=20, trials=4, keys=5, pack=True)
    lines = forecast([task], store, named_shape("llama3-8b"), machine)
    # 400 questions, 100 a context: worth 4 · 100 / (1 + 99 · 0.1) = 36.7; 2.8016 · sqrt(0.5 / 36.7) = 32.7 points.
    assert lines[0] == "grid/pack/needle/1048576: 400 questions on 4 contexts show 33 points of difference or more"
    both = Grid(probe=Needle(), lengths=(512, 1024), depths=5)
    lines = forecast([both], store, named_shape("llama3-8b"), machine)
    assert lines[0].startswith("grid/needle/512 and 1 more: 20 questions on 20 contexts show 44 points")
    seconds = read_seconds(named_shape("llama3-8b"), {2**20: 1}, machine)
    assert 400 < seconds < 1000  # 3.0e17 operations at 300 to 700 TFLOP/s


def test_a_served_model(run, micro, monkeypatch):
    asked = []

    class Reader:
        def __init__(self, url, model, *, encode, decode):
            asked.append((url, model))

        def read(self, tokens, *, room_tokens):
            return self

        def score(self, entries):
            from longspan.eval.desk import Score

            return [Score(hit=True, logprob=None) for _ in entries]

    monkeypatch.setattr(served, "ServerReader", Reader)
    value = Recipe.read(micro).plain()
    value["eval"]["tasks"] = value["eval"]["tasks"][:1]
    path = micro.parent / "grid-only.json"
    path.write_text(json.dumps(value))
    told, found = eval_verb("server", [str(path), "http://127.0.0.1:1/v1", "org/model"])
    assert asked == [("http://127.0.0.1:1/v1", "org/model")]
    assert Path(found["evaluation"]).name == "server-org-model.json"
    assert "needle/128: 1.0" in told
    value["output"] = str(micro.parent / "fresh")
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="its texts are not prepared yet") as caught:
        eval_verb("server", [str(path), "http://127.0.0.1:1/v1", "m"])
    assert caught.value.code == "eval.not-prepared"


@pytest.mark.parametrize("what", EVAL_VERBS)
def test_too_few_words(what):
    with pytest.raises(ConfigError, match="does not take 0 words") as caught:
        eval_verb(what, [])
    assert caught.value.fix == EVAL_VERBS[what]
