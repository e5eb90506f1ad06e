"""The engine of every stage: chosen for this machine before anything is loaded, made when its stage begins."""

from dataclasses import asdict
from typing import Any

from longspan.attention.layout import tokens_of
from longspan.engine.hostmemory import HostMemory
from longspan.engine.precision import compute_dtype
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice
from longspan.parallel.weights import Weights, Whole, place_weights
from longspan.pipeline.job import Job
from longspan.pipeline.meshes import machine_of, scheme_of
from longspan.pipeline.workloads import workload
from longspan.plan.choose import choose
from longspan.train.passes import Pass, plain_engine
from longspan.train.plan import StagePlan
from longspan.utils.files import read_json, write_json
from longspan.utils.values import canonical_sha256

PLANNER = 1  # raised when choices of before cannot be read or no longer mean the same


def choices(job: Job) -> tuple[EngineChoice, ...]:
    """How the engine will run every stage; kept in the run folder, so that a run goes on as it began, to the bit.

    The observer hears each new plan's account. Raises `LongspanError` (`plan.memory`) when a stage cannot fit.
    """
    machine, file = machine_of(job.world, job.device, folder=job.folder.path), job.folder.engine
    works = [
        workload(job.recipe, job.start[0], job.device, rows=plan.micro_rows, length=plan.length, mesh=plan.mesh)
        for plan in job.plans
    ]
    # What is free differs from minute to minute, and another choice would round differently.
    settings = job.recipe.engine.model_dump(mode="json")
    question = canonical_sha256([PLANNER, machine.device, settings, [asdict(work) for work in works]])
    known = read_json(file) if file.exists() else {}
    if known.get("question") == question:
        return tuple(_choice(value) for value in known["choices"])
    found = []
    for plan, work in zip(job.plans, works, strict=True):
        chosen = choose(work, job.recipe.engine, machine)
        found.append(chosen.choice)
        for number, line in enumerate(chosen.account()):
            job.observer.tell(f"stage {plan.index}, {line}" if number == 0 else f"  {line}")
    write_json(file, {"question": question, "choices": [asdict(choice) for choice in found]})
    return tuple(found)


class StageEngines:
    """Makes the pass of each stage for the training loop. The host memory of one stage serves the next."""

    def __init__(self, job: Job) -> None:
        self.plan = job.plans[0]  # of the stage at work
        self._chosen, self._folder, self._world = choices(job), job.folder.anchors, job.world
        self._stages = job.round_stages
        self.decoder = job.base()
        self.weights: Weights = Whole(self.decoder)
        if job.world is not None:
            dtype = compute_dtype(self.decoder)
            self.weights = place_weights(
                self.decoder, self.decoder.parts, world=job.world, mesh=self.plan.mesh, dtype=dtype
            )
            self._folder /= f"rank-{job.world.launch.rank}"
        self._host = HostMemory(job.device)

    def __call__(self, plan: StagePlan) -> Pass:
        """The pass of one stage."""
        self.plan, choice = plan, self._chosen[self._stages[plan.index]]
        if choice.keep == "everything":
            return plain_engine(self.decoder)(plan)
        self._host.reset()
        tokens, scheme = plan.micro_rows * plan.length, None
        if self._world is not None:
            scheme = scheme_of(plan.mesh, self._world, choice)
            tokens = max(tokens_of(scheme.layout(tokens, rank)) for rank in range(scheme.ranks))
        return Engine(
            self.decoder,
            choice,
            tokens=tokens,
            host=self._host,
            folder=self._folder,
            scheme=scheme,
            weights=self.weights,
        ).forward_backward


def _choice(value: dict[str, Any]) -> EngineChoice:
    return EngineChoice(**value | {"anchors": tuple(value["anchors"])})
