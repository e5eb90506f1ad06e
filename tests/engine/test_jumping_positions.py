"""Rows whose positions jump: the engine against transformers' eager model with the same position ids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_toys import choice_of
from torch.nn import functional

from longspan.batch import Batch
from longspan.data.rows import jumping
from longspan.engine.run import Engine
from longspan.model.families.base import family_named
from longspan.model.weights import load

transformers = pytest.importorskip("transformers")

LENGTH, REACH, DIVISOR = 45, 3000, 11.0


def test_loss_and_gradients_equal_transformers_with_these_position_ids(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "llama",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=REACH,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.copy_(float("norm" in name) + 0.15 * torch.randn(weight.shape, generator=generator))
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(0, 97, (1, LENGTH + 1), generator=generator)
    positions = torch.from_numpy(jumping(LENGTH, reach=REACH, pieces=6, rng=np.random.default_rng(2)))[None]
    assert positions.max() > 2 * LENGTH, "the row must jump for this to test anything"

    logits = theirs(tokens[:, :-1], position_ids=positions).logits
    (functional.cross_entropy(logits[0], tokens[0, 1:], reduction="sum") / DIVISOR).backward()
    expected = functional.cross_entropy(logits[0].detach(), tokens[0, 1:], reduction="sum")
    plain = theirs(tokens[:, :-1]).logits
    assert (plain - logits).abs().max() > 0.05, "positions matter to this model"

    ours = load(tmp_path).train()
    batch = Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=torch.ones(1, LENGTH),
        positions=positions,
        spans=((0, LENGTH),),
    )
    choice = choice_of(ours, tile_tokens=16, loss_tile_tokens=7, segment=2)
    found = Engine(ours, choice, tokens=LENGTH).forward_backward(batch, divisor=DIVISOR)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    names = family_named("llama").names(ours.shape)
    for name, weight in ours.named_parameters():
        wanted = gradients[names[name]]
        assert weight.grad is not None
        assert (weight.grad - wanted).norm() <= 2e-5 * wanted.norm() + 1e-6, name
