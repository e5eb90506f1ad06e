"""Every ready recipe is planned for its machine, and the table of what it takes is what comes out."""

import re
from pathlib import Path

import pytest

from longspan.pipeline.observer import SILENT
from longspan.pipeline.planning import plan
from longspan.pipeline.recipe import Recipe
from longspan.plan.machine import known_machine
from longspan.utils.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = re.compile(r"^\| `([\w.-]+)` \| ([\w.-]+) \| (\d+) ([A-Z0-9]+) \|", re.MULTILINE)
TABLE = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def planned(recipe: str, shape: str, ranks: int, machine: str) -> str:
    """The row of the table, as the planner has it."""
    found = plan(Recipe.read(EXAMPLES / recipe), observer=SILENT, shape=shape, machine=machine, ranks=ranks)
    device, host = (max(stage[f"{tier}_gib"] for stage in found["stages"]) for tier in ("device", "host"))
    tokens = sum(stage["tokens"] for stage in found["stages"])
    hours, all_hours = found["seconds"] / 3600, found["device_seconds"] / 3600
    return (
        f"| `{recipe}` | {shape} | {ranks} {machine} | {tokens / 1e6:,.0f}M | {device:.1f} | {host:.1f} | "
        f"{hours:.2f} | {all_hours:.1f} |"
    )


@pytest.mark.parametrize("row", [match.groups() for match in ROW.finditer(TABLE)], ids=lambda row: "-".join(row))
def test_the_table_says_what_the_planner_says(row: tuple[str, str, str, str]) -> None:
    recipe, shape, ranks, machine = row
    assert planned(recipe, shape, int(ranks), machine) in TABLE.splitlines()


def test_every_recipe_for_a_gpu_is_in_the_table() -> None:
    laptop = {"laptop.toml", "laptop-base.toml", "search-smollm2.toml"}
    assert {match[1] for match in ROW.finditer(TABLE)} == {path.name for path in EXAMPLES.glob("*.toml")} - laptop


def test_a_machine_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="no machine 'H900'") as error:
        known_machine("H900")
    assert error.value.code == "plan.machine"


def test_time_is_that_of_the_mix_and_memory_that_of_the_dearest_row() -> None:
    """Rows of short documents hold as much, and attend to less: at equal tokens by the ratio of their lengths."""
    value = Recipe.read(EXAMPLES / "smollm2-1m.toml").plain()
    found = {}
    for name, mix in (("long", [{"share": 1.0}]), ("short", [{"share": 1.0, "length": 8192}])):
        value["stages"][2]["mix"] = mix
        recipe = Recipe.from_plain(value, folder=EXAMPLES, where="test")
        found[name] = plan(recipe, observer=SILENT, shape="smollm2-135m", machine="H200")["stages"][2]
    assert found["long"]["device_gib"] == found["short"]["device_gib"]
    # Attention of 2^20 tokens is 305 s of 307 in whole rows, and 1/128 of that in rows of 8,192.
    assert found["short"]["step_seconds"] == pytest.approx(found["long"]["step_seconds"] * (1 / 128 + 0.0055), rel=0.15)
