"""What a recipe may say about data."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from longspan.data.settings import DataSettings, Mix
from longspan.probes.passkey import Passkey

MIX = TypeAdapter(Mix)


def test_data_settings_from_json() -> None:
    settings = DataSettings.model_validate_json('{"sources": [{"path": "texts"}], "held_out": ["emma*"]}')
    assert settings.sources[0].path.name == "texts"
    assert DataSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "change", [{"sources": []}, {"held_out_share": 1.0}, {"held_out_share": -0.1}, {"max_document_bytes": 0}, {"x": 1}]
)
def test_impossible_data_settings(change) -> None:
    with pytest.raises(ValidationError):
        DataSettings.model_validate_json(json.dumps({"sources": [{"path": "a"}]} | change))


def test_mix_with_a_probe() -> None:
    probe = {"share": 0.3, "probe": {"kind": "passkey", "digits": 7}, "items": 1, "answer_weight": 2.0, "length": 64}
    mix = MIX.validate_json(json.dumps([{"share": 0.7}, probe]))
    assert mix[1].probe == Passkey(digits=7)
    assert mix[0].probe is None
    assert MIX.validate_json(MIX.dump_json(mix)) == mix


@pytest.mark.parametrize(
    "mix",
    [
        [],
        [{"share": 0.5}],
        [{"share": 0.5}, {"share": 0.6}],
        [{"share": 0.0}, {"share": 1.0}],
        [{"share": 1.0, "probe": {"kind": "riddle"}}],
        [{"share": 1.0, "probe": {"kind": "needle"}, "items": 0}],
        [{"share": 1.0, "probe": {"kind": "needle"}, "answer_weight": 0.0}],
        [{"share": 1.0, "length": 1}],
    ],
)
def test_impossible_mixes(mix) -> None:
    with pytest.raises(ValidationError):
        MIX.validate_json(json.dumps(mix))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"items": 12}, "items without a probe"),
        ({"answer_weight": 1.0}, "answer_weight without a probe"),
        ({"items": 12, "answer_weight": 5.0}, "items and answer_weight without a probe"),
        ({"items": 2, "probe": {"kind": "passkey"}}, "items 2: a text carries 1 line of passkey"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(part, words) -> None:
    with pytest.raises(ValidationError, match=words):
        MIX.validate_json(json.dumps([{"share": 1.0} | part]))
