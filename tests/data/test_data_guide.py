"""The tables of the guide are settings that hold."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from longspan.data.settings import DataSettings, Mix

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "data.md").read_text(encoding="utf-8")
TABLES = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_tables_hold(table: dict) -> None:
    from longspan.data.canaries import CanarySettings
    from longspan.pipeline.recipe import Stage

    if "mix" in table:
        assert TypeAdapter(Mix).validate_json(json.dumps(table["mix"]))
    if "data" in table:
        DataSettings.model_validate_json(json.dumps({"sources": [{"path": "a"}]} | table["data"]))
    if "canaries" in table:
        CanarySettings.model_validate_json(json.dumps(table["canaries"]))
    for stage in table.get("stages", []):
        needed = {"tokens": 2**20, "batch_tokens": 2**17, "learning_rate": 1e-3, "rope": {"kind": "default"}}
        Stage.model_validate_json(json.dumps(needed | stage))
