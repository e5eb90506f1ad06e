"""Training on any mesh is training on one rank: the same rows, losses, norms and weights."""

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks
from toy_training import batches, decoder, two_stages
from train_ranks import Unsaved, trained

from longspan.parallel.mesh import Mesh
from longspan.train.loop import train
from longspan.train.settings import TrainSettings

INSIDE = {"clip_norm": "none", "optimizer": {"kind": "adamw", "update": "inside"}}
MESHES = [
    (Mesh(shard=2), Mesh(shard=2)),
    (Mesh(shard=2), Mesh(ulysses=2)),  # short rows apart, long rows together
    (Mesh(ring=2), Mesh(shard=2)),
    (Mesh(replicate=2), Mesh(replicate=2)),
    (Mesh(shard=4), Mesh(ring=2, ulysses=2)),
    (Mesh(replicate=2, shard=2), Mesh(replicate=2, ring=2)),
]


def alone(settings):
    """Plain autograd on one rank, all rows of a step at once."""
    model, seen = decoder(), []
    stages = [replace(plan, rows_per_step=4, micro_rows=4) for plan in two_stages()]
    train(
        model,
        stages,
        settings=TrainSettings.model_validate(settings),
        batches=batches,
        checkpoints=Unsaved(),
        observe=seen.append,
    )
    return [(step.loss, step.gradient_norm, step.targets) for step in seen], dict(model.named_parameters())


def assert_kept(answers, weights):
    for name, weight in weights.items():
        rows = 0
        for _, kept in answers:
            first, part = kept[name][0], torch.as_tensor(kept[name][1])
            torch.testing.assert_close(part, weight.detach()[first : first + len(part)], rtol=1e-4, atol=2e-6)
            rows = max(rows, first + len(part))
        assert rows == len(weight)


@pytest.mark.parametrize("meshes", MESHES, ids=str)
def test_a_mesh_trains_like_one_rank(meshes):
    settings = {"clip_norm": 0.5}  # cuts every step
    want, weights = alone(settings)
    answers = run_ranks(meshes[0].ranks, trained, meshes, settings)
    assert [found for found, _ in answers[1:]] == [[]] * (meshes[0].ranks - 1), "one rank speaks for all"
    torch.testing.assert_close(torch.tensor(answers[0][0]), torch.tensor(want), rtol=1e-5, atol=0)
    assert_kept(answers, weights)


def test_weights_that_change_inside_the_pass():
    meshes = (Mesh(ulysses=2), Mesh(ring=2))
    want, weights = alone(INSIDE)
    answers = run_ranks(2, trained, meshes, INSIDE)
    torch.testing.assert_close(torch.tensor(answers[0][0]), torch.tensor(want), rtol=1e-5, atol=0)
    assert_kept(answers, weights)


def test_one_rank_asked_to_stop_stops_all():
    with pytest.raises(RuntimeError, match="Interrupted: asked to stop"):
        run_ranks(2, trained, MESHES[0], {}, 3, deadline_seconds=20.0)
