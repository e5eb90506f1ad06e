"""A checkpoint's files hold every tensor in its own type; a model's hold no codes."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from longspan.model.tensorfile import Held, file_bytes, read_entries, write_tensors
from longspan.utils.errors import ModelError

TENSORS = {
    "codes": torch.arange(256, dtype=torch.uint8).view(16, 16),
    "weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "scale": torch.randn(7, generator=torch.Generator().manual_seed(1)),
    "step": torch.tensor(3.0),
}


def written(folder):
    path = folder / "state.safetensors"
    held = {name: Held(tensor) for name, tensor in TENSORS.items()}
    write_tensors(path, held, dtype=None)
    assert path.stat().st_size == file_bytes(held, None)
    return path


def test_every_tensor_keeps_its_type(tmp_path):
    path = written(tmp_path)
    theirs, ours = load_file(path), read_entries(path, codes=True)
    assert theirs.keys() == ours.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert theirs[name].dtype == ours[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name].read(), tensor)


def test_codes_are_no_weights_of_a_model(tmp_path):
    with pytest.raises(ModelError) as caught:
        read_entries(written(tmp_path))
    assert caught.value.code == "model.dtype"


def test_one_type_for_all_is_still_asked_for_by_name(tmp_path):
    path = tmp_path / "one.safetensors"
    write_tensors(path, {"weight": Held(TENSORS["weight"])}, dtype=torch.float32)
    assert load_file(path)["weight"].dtype == torch.float32


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ModelError) as caught:
        write_tensors(tmp_path / "bad.safetensors", {"scale": Held(torch.tensor([1.0, torch.nan]))}, dtype=None)
    assert caught.value.code == "model.not-finite"


def test_words_of_the_header_are_read_back(tmp_path):
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"scale": Held(TENSORS["scale"])}, dtype=None, metadata={"place": "[0]"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "place": "[0]"}
