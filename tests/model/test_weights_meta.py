"""A model on the device "meta" costs a look at the headers: every check, and no weight."""

from pathlib import Path

import pytest

from longspan.model.decoder import Decoder
from longspan.model.families.base import family_named
from longspan.model.folder import WHOLE
from longspan.model.tensorfile import Entry
from longspan.model.weights import load, save
from longspan.rope.frequencies import Frequencies
from longspan.utils.errors import ModelError

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "tie_word_embeddings": False,
    "max_position_embeddings": 16,
}


def test_no_weight_is_read_and_headers_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Frequencies(theta=1e4, factors=(1.0,) * 2, attention_factor=1.0, length=16, trained_length=16)
    decoder = Decoder(family_named("llama").shape(CONFIG), plain)
    decoder.initialise(0)
    save(decoder, tmp_path / "model")

    def read(_: Entry) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr(Entry, "read", read)
    sizes = load(tmp_path / "model", device="meta")
    assert {name: weight.shape for name, weight in sizes.state_dict().items()} == {
        name: weight.shape for name, weight in decoder.state_dict().items()
    }
    assert all(weight.is_meta for weight in sizes.parameters())
    weights = tmp_path / "model" / WHOLE
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError):
        load(tmp_path / "model", device="meta")
