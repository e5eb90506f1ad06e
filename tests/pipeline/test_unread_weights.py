"""A model folder read by ranks part by part: every rank has its rows of it, and never holds the whole."""

from dataclasses import replace

import pytest
import torch
from memory_ranks import unread_weights
from ranks import run_ranks
from test_predicted_memory_ranks import SHAPE

from longspan.model.lora import LoraSettings, add_lora
from longspan.model.weights import Unread, load, save
from longspan.parallel.mesh import Mesh
from longspan.pipeline.benchparts import random_decoder
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default

LAYERS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shape = replace(SHAPE, layers=LAYERS, windows=(None,) * LAYERS)
    frequencies = Default().frequencies(RopeBase(rotary_dim=shape.head_dim, theta=1e4, trained_length=512), 512)
    decoder = random_decoder(shape, frequencies, device=torch.device("cpu"), dtype=torch.float32, seed=0)
    path = tmp_path_factory.mktemp("model") / "folder"
    save(decoder, path)
    return path


@pytest.mark.parametrize("mesh", [Mesh(shard=2), Mesh(ring=2), Mesh(replicate=2)], ids=["shard", "ring", "replicate"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["all weights", "lora"])
def test_every_rank_has_its_rows(folder, mesh, lora):
    whole = load(folder)
    if lora is not None:
        add_lora(whole, lora, 3)
    expected = dict(whole.named_parameters())
    found = run_ranks(2, unread_weights, folder, mesh, lora)
    held_bytes = [0, 0]
    for rank, (rows, trained, _) in enumerate(found):
        assert trained == [name for name, parameter in expected.items() if parameter.requires_grad]
        for name, (first, kept) in rows.items():
            assert torch.equal(torch.from_numpy(kept), expected[name][first : first + len(kept)]), name
            held_bytes[rank] += kept.nbytes
    whole_bytes = sum(parameter.nbytes for parameter in expected.values())
    assert sum(held_bytes) == whole_bytes * mesh.replicate
    largest = max(sum(parameter.nbytes for parameter in part.parameters()) for part in whole.parts)
    for (_, _, peak), held in zip(found, held_bytes, strict=True):
        adapters = sum(parameter.nbytes for name, parameter in expected.items() if ".lora." in name)
        assert peak <= held + adapters + 2 * largest < whole_bytes * 0.95 or mesh.replicate == 2


def test_one_part_on_one_rank(folder, tmp_path):
    decoder, whole = load(folder, device="meta"), load(folder)
    decoder.source = tmp_path  # as in a job that names a tokenizer of its own, which lies in the run folder
    unread = Unread(decoder, folder, device="cpu")
    unread.fill(decoder.blocks[1])
    for name, parameter in decoder.named_parameters():
        assert parameter.is_meta == (not name.startswith("blocks.1."))
        if not parameter.is_meta:
            assert torch.equal(parameter, whole.get_parameter(name))
