"""Canaries through a whole training: what lies in one document is learnt, what lies across a border is not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from longspan.data.canaries import Insertion, foils
from longspan.pipeline import stages
from longspan.pipeline.canaryscores import advantage
from longspan.pipeline.recipe import Recipe


def recipe_with(micro: Path, canaries: dict[str, Any], **stage: Any) -> Recipe:
    value = Recipe.read(micro).plain()
    value["stages"] = [value["stages"][0] | {"canaries": canaries} | stage]
    value["eval"] = {"tasks": []}
    value["train"] |= {"save_every_steps": 1_000, "micro_batch_tokens": 1_024}
    return Recipe.from_plain(value, folder=micro.parent, where="test")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_map_is_kept_and_a_run_with_another_one_is_refused_its_checkpoints(micro: Path) -> None:
    canaries = {"groups": ["near", "middle"], "repeats": [1], "pairs": 2, "tokens": 3}
    stages.data(recipe_with(micro, canaries))
    path = micro.parent / "run" / "insertions-0.jsonl"
    first = path.read_text()
    assert len(lines(path)) == 1 + 4
    stages.data(recipe_with(micro, canaries))
    assert path.read_text() == first
    stages.data(recipe_with(micro, canaries | {"tokens": 4}))
    assert path.read_text() != first
    value = Recipe.read(micro).plain()["stages"][1]
    with pytest.raises(ValidationError, match="canaries take no probes"):
        type(Recipe.read(micro).stages[0]).model_validate_json(json.dumps(value | {"canaries": canaries}))


@pytest.mark.parametrize("distance", [3, 9])
def test_advantage_by_hand(micro: Path, distance: int) -> None:
    from test_curation import tiny

    decoder = tiny()
    entry = Insertion(
        id=0,
        group="far",
        repeats=1,
        distance=distance,
        key=(1, 2, 3),
        value=(7, 8),
        slot=0,
        row=0,
        key_at=0,
        value_at=9,
    )
    filler = list(range(20, 40))

    def likelihood(key: tuple[int, ...]) -> float:
        ids = [*key, *filler[: distance - 3], 7, 8]
        with torch.no_grad():
            shares = torch.log_softmax(decoder(torch.tensor([ids]))[0].double(), dim=-1)
        return sum(float(shares[at - 1, ids[at]]) for at in (len(ids) - 2, len(ids) - 1))

    others = foils(entry, 16, vocabulary=50)
    assert len(others) == 16
    expected = likelihood((1, 2, 3)) - sum(map(likelihood, others)) / 16
    assert math.isclose(advantage(decoder, entry, filler), expected, abs_tol=1e-5)


@pytest.mark.slow
def test_what_is_learnt_is_what_lies_in_one_document(micro: Path) -> None:
    texts = micro.parent / "texts"
    words = (texts / "page-0.txt").read_text().split()
    (texts / "lines.jsonl").write_text(
        "\n".join(json.dumps({"text": " ".join(words[at : at + 14])}) for at in range(0, 1_000, 14))
    )
    canaries = {"groups": ["near", "middle", "across"], "repeats": [40], "pairs": 4, "tokens": 3}
    recipe = recipe_with(micro, canaries, tokens=64 * 16 * 250, batch_tokens=64 * 16, learning_rate=1e-2)
    value = recipe.plain()
    value["model"]["new"] |= {"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_width": 128, "layers": 2}
    stages.run(Recipe.from_plain(value, folder=micro.parent, where="test"))
    found = {e["group"]: e for e in json.loads((micro.parent / "run" / "canaries.json").read_text())}
    for group in ("near", "middle"):
        assert found[group]["advantage_nats"] > 5
        assert found[group]["advantage_nats"] > 4 * found[group]["standard_error"]
    apart = abs(found["near"]["advantage_nats"] - found["middle"]["advantage_nats"])
    assert apart < 3 * (found["near"]["standard_error"] + found["middle"]["standard_error"]), "equal groups"
    assert (
        abs(found["across"]["advantage_nats"])
        < 0.1 * found["near"]["advantage_nats"] + 3 * (found["across"]["standard_error"])
    )
    assert "canaries of stage 0, near" in (micro.parent / "run" / "report.html").read_text()
