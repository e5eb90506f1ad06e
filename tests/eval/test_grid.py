"""The retrieval grid: an oracle scores all, an empty answer none; lengths are exact, depths stratified, keys new."""

import json
import random

import numpy as np
import pytest
from eval_toys import Copier, decode, encode, material, prose
from eval_toys import stuff as make
from pydantic import TypeAdapter, ValidationError

from longspan.config import any_kind, kinds
from longspan.eval.desk import Desk, Score
from longspan.eval.rows import Rows
from longspan.eval.tasks.grid import Grid
from longspan.probes.key_value import KeyValue
from longspan.probes.needle import Needle
from longspan.probes.passkey import Passkey
from longspan.utils.errors import DataError, Interrupted


def desk_for(reader, path, *, stuff=None, stop=lambda: False, advance=lambda tokens: None, model_id="m"):
    return Desk(
        reader=reader,
        material=stuff or material(),
        rows=Rows(path / "rows.jsonl"),
        model_id=model_id,
        stop=stop,
        advance=advance,
    )


GRIDS = [
    Grid(probe=Needle(), lengths=(600, 1100), depths=3, trials=2, pack=True),
    Grid(probe=KeyValue(), lengths=(700,), depths=4, trials=3),
    Grid(probe=Passkey(), lengths=(300, 512), depths=3, trials=2),
]


@pytest.mark.parametrize("task", GRIDS, ids=lambda task: task.name)
def test_a_perfect_copier_hits_all_and_a_blind_one_none(task, tmp_path):
    for blind in (False, True):
        found = task.run(desk_for(Copier(blind=blind), tmp_path / str(blind)))
        assert [(c.length, c.depth) for c in found.cells] == [
            (length, pytest.approx((i + 0.5) / task.depths)) for length in task.lengths for i in range(task.depths)
        ]
        assert all(cell.probe == task.name for cell in found.cells)
        assert all((cell.hits, cell.trials) == (0 if blind else task.trials, task.trials) for cell in found.cells)


@pytest.mark.parametrize("task", GRIDS, ids=lambda task: task.name)
def test_contexts_fill_their_length_and_the_cost_is_told_before(task, tmp_path):
    reader, seen = Copier(), []
    task.run(desk_for(reader, tmp_path, advance=seen.append))
    packs = 1 if task.pack else task.depths
    expected = [length for length in task.lengths for _ in range(task.trials * packs)]
    assert reader.lengths == seen == expected
    assert sum(seen) == task.cost_tokens(material().documents)
    assert len({context.tobytes() for context in reader.contexts}) == len(expected)


def test_one_prefill_carries_all_depths_of_a_pack_and_rows_say_where(tmp_path):
    reader = Copier()
    task = Grid(probe=Needle(), lengths=(900,), depths=5, trials=1, pack=True)
    rows = task.run(desk_for(reader, tmp_path)).rows
    assert len(reader.contexts) == 1
    assert len(rows) == len({row["key"] for row in rows}) == 5
    assert len({row["cluster"] for row in rows}) == 1
    text = decode(reader.contexts[0])
    for stratum, row in enumerate(rows):
        assert stratum / 5 <= row["depth"] < (stratum + 1) / 5
        name = row["question"].split()[-2]
        assert text[row["offset_tokens"] :].startswith(f"\nThe code of {name} is{row['gold']}.\n")
        assert row["offset_tokens"] / len(text) == pytest.approx(row["depth"], abs=0.15)
        assert decode(row["gold_tokens"]) == decode(row["predicted_tokens"]) == row["gold"]
    on_disk = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert on_disk == list(rows)


def test_depths_inside_a_stratum_vary(tmp_path):
    task = Grid(probe=Passkey(), lengths=(256,), depths=1, trials=40)
    depths = np.sort([row["depth"] for row in task.run(desk_for(Copier(), tmp_path)).rows])
    steps = np.arange(1, 41) / 40
    assert max(np.abs(depths - steps).max(), np.abs(depths - steps + 1 / 40).max()) < 1.95 / 40**0.5  # KS at 0.1 %


def test_same_seed_same_bytes_for_every_model(tmp_path):
    read = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        reader = Copier(blind=name == "b")
        GRIDS[0].run(desk_for(reader, tmp_path / name, stuff=material(seed=seed), model_id=name))
        read.append([context.tobytes() for context in reader.contexts])
    assert read[0] == read[1]
    assert not set(read[0]) & set(read[2])


def test_a_miss_shows_what_the_model_says(tmp_path):
    class Confused(Copier):
        def read(self, tokens, *, room_tokens):
            reading = super().read(tokens, room_tokens=room_tokens)
            reading.generate = lambda questions, *, max_new_tokens: [encode(" 12") for _ in questions]
            reading.score = lambda asked: [Score(hit=False, logprob=-1.0) for _ in asked]
            return reading

    rows = Grid(probe=Needle(), lengths=(600,), depths=1, trials=1).run(desk_for(Confused(), tmp_path)).rows
    assert decode(rows[0]["predicted_tokens"]) == " 12"
    assert rows[0]["hit"] is False


@pytest.mark.parametrize("killed_after", [0, 1, 2, 5])
def test_a_stopped_grid_goes_on_with_the_rows_of_an_unbroken_one(killed_after, tmp_path):
    task = GRIDS[2]
    unbroken = task.run(desk_for(Copier(), tmp_path / "whole"))
    first, budget = Copier(), iter([False] * killed_after)
    with pytest.raises(Interrupted, match="rows are saved"):
        task.run(desk_for(first, tmp_path / "cut", stop=lambda: next(budget, True)))
    assert len(first.contexts) == killed_after
    # A kill in the middle of a write as well:
    with (tmp_path / "cut" / "rows.jsonl").open("ab") as file:
        file.write(b'{"key": "half a r')
    second = Copier()
    resumed = task.run(desk_for(second, tmp_path / "cut"))
    assert len(second.contexts) == 12 - killed_after
    assert without_seconds(resumed.rows) == without_seconds(unbroken.rows)
    assert resumed.cells == unbroken.cells
    third = Copier()
    assert task.run(desk_for(third, tmp_path / "cut", stop=lambda: True)).rows == resumed.rows
    assert third.contexts == []


def without_seconds(rows):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def test_a_context_with_some_rows_runs_only_the_others(tmp_path):
    task = Grid(probe=Needle(), lengths=(900,), depths=4, trials=1, pack=True)
    whole = task.run(desk_for(Copier(), tmp_path))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    again = task.run(desk_for(Copier(), tmp_path))
    assert without_seconds(again.rows) == without_seconds(whole.rows)
    assert again.rows[:3] == whole.rows[:3]
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("change", ["model", "text", "settings"])
def test_another_model_text_or_setting_shares_no_row(change, tmp_path):
    task = GRIDS[0]
    task.run(desk_for(Copier(), tmp_path))
    stuff, model_id = material(), "m"
    if change == "model":
        model_id = "m with yarn"
    if change == "text":
        stuff = make(prose(9, 2000), seed=7)
    if change == "settings":
        task = Grid(probe=Needle(digits=7), lengths=(600, 1100), depths=3, trials=2, pack=True)
    reader = Copier()
    task.run(desk_for(reader, tmp_path, stuff=stuff, model_id=model_id))
    assert len(reader.contexts) == 4


def test_what_cannot_be_built_is_refused_before_anything_is_read():
    with pytest.raises(DataError, match="are missing, and text is never repeated"):
        Grid(probe=Needle(), lengths=(512, 100_000)).check(material())
    with pytest.raises(DataError, match="too few for the lines"):
        Grid(probe=Needle(), lengths=(300, 1000), depths=10, pack=True).check(material())
    GRIDS[0].check(material())


def test_settings():
    adapter = TypeAdapter(any_kind("longspan.eval.tasks"))
    task = adapter.validate_json('{"kind": "grid", "probe": {"kind": "needle", "digits": 5}, "lengths": [512, 1024]}')
    assert task == Grid(probe=Needle(digits=5), lengths=(512, 1024))
    assert task.parts == ("grid/needle/512", "grid/needle/1024")
    for lengths in ("[]", "[1024, 512]", "[512, 512]", "[8]"):
        with pytest.raises(ValidationError):
            adapter.validate_json(f'{{"kind": "grid", "probe": {{"kind": "needle"}}, "lengths": {lengths}}}')
    with pytest.raises(ValidationError, match="leave out pack"):
        Grid(probe=Passkey(), lengths=(512,), pack=True)
    assert Grid(probe=Needle(), lengths=(512,), pack=True).parts == ("grid/pack/needle/512",)
    assert set(kinds("longspan.eval.tasks")) >= {"grid", "position_loss"}


def test_needle_keys_come_from_the_evaluation_words(tmp_path):
    trained = {item.answer for seed in range(50) for item in Needle().items(50, rng=random.Random(seed), split="train")}
    rows = Grid(probe=Needle(), lengths=(900,), depths=4, trials=5).run(desk_for(Copier(), tmp_path)).rows
    assert len({row["gold"] for row in rows}) == 20
    assert not {row["gold"] for row in rows} & trained
