"""What a recipe will cost, told before anything is loaded: stage by stage, on this machine or on one by its name."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longspan.model.weights import load
from longspan.parallel.mesh import Mesh
from longspan.pipeline.forecast import read_seconds, reading
from longspan.pipeline.machine import probe
from longspan.pipeline.meshes import automatic, meshes
from longspan.pipeline.observer import Observer
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.workloads import workload
from longspan.plan.account import Plan
from longspan.plan.choose import choose
from longspan.plan.machine import Machine, known_machine
from longspan.plan.seconds import predict_seconds
from longspan.plan.shapes import named_shape
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape
from longspan.utils.errors import DataError

HELD_OUT_TOKENS = 2**24  # of the one document that evaluations are counted on, as long as any


def plan(
    recipe: Recipe,
    *,
    observer: Observer,
    shape: str | None = None,
    machine: str | None = None,
    ranks: int | None = None,
) -> dict[str, Any]:
    """Choose the engine of every stage and add up its time; the figures come back, the account goes to the observer.

    `shape` is a known model's name, in place of the recipe's folder; `machine` a known device's, in place of this one;
    `ranks` are devices of one node, one unless told. Raises `LongspanError` (`plan.memory`) for what cannot fit.
    """
    model, count = _shape(recipe, shape), ranks or 1
    device = torch.device("cuda" if machine or (torch.cuda.is_available() and recipe.device != "cpu") else "cpu")
    here = probe(device, folder=recipe.output) if machine is None else known_machine(machine)
    pick = partial(automatic, recipe, model, here, launch=(count, count), device=device)
    spread = meshes(recipe, ranks=count, automatic=(lambda _: Mesh()) if count == 1 else pick)
    stages = [_Stage(recipe, model, device, here, index, mesh).told(observer) for index, mesh in enumerate(spread)]
    asked, missing = reading_seconds(recipe, model, here)
    if recipe.eval.tasks:
        without = f", without {', '.join(missing)}, whose files are not here" if missing else ""
        observer.tell(f"an evaluation: about {asked:,.0f} s of reading on one device{without}")
    seconds = sum(stage["seconds"] for stage in stages)
    observer.tell(f"training: about {seconds:,.0f} s, {count * seconds / 60:,.1f} device-minutes")
    return {
        "machine": here.device,
        "ranks": count,
        "stages": stages,
        "seconds": round(seconds, 1),
        "device_seconds": round(count * seconds, 1),
        "evaluation_seconds": round(asked, 1),
    }


@dataclass(frozen=True)
class _Stage:
    recipe: Recipe
    shape: ModelShape
    device: torch.device
    machine: Machine
    index: int
    mesh: Mesh

    def told(self, observer: Observer) -> dict[str, Any]:
        """Plan this stage, tell its account, and give its figures."""
        stage = self.recipe.stages[self.index]
        # Positions change no cost: any frequencies will do.
        base = RopeBase(rotary_dim=self.shape.head_dim, theta=1e4, trained_length=self.shape.trained_length)
        plan = self.recipe.train.plan(
            index=self.index,
            length=stage.length,
            steps=stage.steps,
            rows_per_step=stage.rows_per_step,
            learning_rate=stage.learning_rate,
            frequencies=Default().frequencies(base, stage.reach),
            mesh=self.mesh,
        )
        work = workload(self.recipe, self.shape, self.device, rows=plan.micro_rows, length=plan.length, mesh=plan.mesh)
        found: Plan = choose(work, self.recipe.engine, self.machine)
        passes = plan.rows_per_rank / plan.micro_rows
        step_seconds = passes * self._seconds(found)
        lines = found.account()
        observer.tell(f"stage {self.index}, rows of {plan.length:,} tokens: {lines[0]}")
        for line in lines[1:]:
            observer.tell(f"  {line}")
        observer.tell(
            f"  {plan.steps:,} steps of {plan.rows_per_step:,} rows, {plan.steps * plan.tokens_per_step:,} tokens: "
            f"{step_seconds:,.1f} s a step in the mean of the mix, {plan.steps * step_seconds:,.0f} s in all"
        )
        return {
            "length": plan.length,
            "steps": plan.steps,
            "tokens": plan.steps * plan.tokens_per_step,
            "device_gib": round(found.memory.device_bytes / 2**30, 2),
            "host_gib": round(found.memory.host_bytes / 2**30, 2),
            "step_seconds": round(step_seconds, 2),
            "seconds": round(plan.steps * step_seconds, 1),
        }

    def _seconds(self, found: Plan) -> float:
        """Of one pass in the mean of the mix: the documents of a part are no longer than its `length`."""
        total = 0.0
        for part in self.recipe.stages[self.index].mix:
            own = part.length or self.recipe.stages[self.index].length
            work = replace(found.work, lengths=(own,) * (sum(found.work.document_lengths) // own))
            total += part.share * predict_seconds(work, found.choice, found.machine).total
        return total


def _shape(recipe: Recipe, name: str | None) -> ModelShape:
    if name is not None:
        return named_shape(name)
    if recipe.model.new is not None:
        return recipe.model.new.shape(recipe.stages[0].length)
    recipe.check_paths()
    assert recipe.model.folder is not None, "a model is new or comes from a folder"
    return load(recipe.model.folder, device="meta").shape


class _AnyDocument:
    """A held-out text as long as any, of which only the length is known."""

    lengths: NDArray[np.int64] = np.array([HELD_OUT_TOKENS])

    def read(self, document: int, start: int, length: int) -> NDArray[np.int64]:  # noqa: ARG002
        """Nothing is read to count contexts."""
        raise AssertionError("contexts are counted by their lengths")


def reading_seconds(recipe: Recipe, shape: ModelShape, machine: Machine) -> tuple[float, list[str]]:
    """About how long one evaluation reads, and the kinds of tasks whose own files are not here to be counted."""
    seconds, missing = 0.0, []
    for task in recipe.eval.tasks:
        try:
            contexts = reading([task], _AnyDocument())
        except DataError:
            missing.append(task.kind)
            continue
        seconds += read_seconds(shape, contexts, machine)
    return seconds, missing
