"""A proof holds only for numbers: NaN anywhere is no agreement."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.model.decoder import Decoder
from longspan.model.weights import save
from longspan.pipeline import proof
from longspan.pipeline.recipe import NewModel
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.utils.errors import ModelError

SIZES = NewModel(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp_width=32, vocabulary=300)


def test_the_largest_of_some_numbers_is_nan_wherever_it_stands() -> None:
    numbers = [torch.tensor(value) for value in (1.0, 3.0, 2.0)]
    assert proof.largest(numbers) == 3.0
    for place in range(4):
        assert math.isnan(proof.largest([*numbers[:place], torch.tensor(torch.nan), *numbers[place:]]))


def test_nan_at_the_end_of_the_context_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = RopeBase(rotary_dim=8, theta=1e4, trained_length=64)
    decoder = Decoder(SIZES.shape(64), Default().frequencies(base, 64)).eval()
    decoder.initialise(0)
    save(decoder, tmp_path / "export")
    tokens = torch.arange(16)
    assert proof.logit_differences(tmp_path / "export", decoder, tokens)["export_max_logit_diff"] < 1e-4
    right = proof._logits

    def logits(model: Decoder, ids: torch.Tensor, positions: torch.Tensor, **options: Any) -> torch.Tensor:
        return right(model, ids, positions, **options) * (torch.nan if positions[0, 0] > 0 else 1.0)

    monkeypatch.setattr(proof, "_logits", logits)
    with pytest.raises(ModelError) as caught:
        proof.logit_differences(tmp_path / "export", decoder, tokens)
    assert caught.value.code == "export.differs"
