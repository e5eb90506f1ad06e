"""What a recipe asks of the engine on one rank, as the planner takes it."""

import torch

from longspan.parallel.mesh import Mesh
from longspan.pipeline.recipe import Recipe
from longspan.plan.workload import States, Workload
from longspan.shape import ModelShape


def weight_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The type that weights are loaded in: what the optimizer trains; frozen ones as the engine computes."""
    if recipe.lora is not None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, recipe.train.optimizer.weight_dtype)
    return dtype


def workload(
    recipe: Recipe, shape: ModelShape, device: torch.device, *, rows: int, length: int, mesh: Mesh
) -> Workload:
    """One pass over so many rows. A row of one document is the dearest case; documents may be shorter."""
    optimizer, stored = recipe.train.optimizer, weight_dtype(recipe, device)
    states = States(
        weight_bytes=stored.itemsize,
        gradient_bytes=torch.float32.itemsize,
        state_bytes=optimizer.state_bytes,
        states_on=optimizer.states,
        update_inside=optimizer.update == "inside",
        trainable=None if recipe.lora is None else recipe.lora.trained_parameters(shape),
        copied_bytes=optimizer.checkpoint_bytes if recipe.train.save == "async" else 0.0,
    )
    return Workload(
        shape=shape,
        tokens=-(-rows * length // mesh.context),
        lengths=(length,) * rows,
        mesh=mesh,
        element_bytes=torch.bfloat16.itemsize if device.type == "cuda" else stored.itemsize,
        states=states,
    )
