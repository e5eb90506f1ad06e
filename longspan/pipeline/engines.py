"""The engine of every stage: chosen for this machine before anything is loaded, made when its stage begins."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from longspan.attention.layout import tokens_of
from longspan.attention.schemes.base import Scheme
from longspan.batch import Batch
from longspan.data.curricula.base import Slots
from longspan.engine.gradients import OnGradients
from longspan.engine.hostmemory import HostMemory
from longspan.engine.precision import compute_dtype
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice
from longspan.model.decoder import Decoder
from longspan.model.weights import Unread
from longspan.parallel.dist import World
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

    def __init__(self, job: Job, rows: Sequence[Slots]) -> None:
        self.plan = job.plans[0]  # of the stage at work
        self._chosen, self._folder, self._world = choices(job), job.folder.anchors, job.world
        self._slots, self._tell, self._stages = rows, job.observer.tell, job.round_stages
        if job.world is None:
            self.decoder = job.base()
            self.weights: Weights = Whole(self.decoder)
        else:
            self.decoder, self.weights = self._placed(job, job.world)
            self._folder /= f"rank-{job.world.launch.rank}"
        self._host = HostMemory(job.device)

    def _placed(self, job: Job, world: World) -> tuple[Decoder, Weights]:
        """The decoder over the ranks. Out of a folder every rank reads one part at a time, and keeps its rows of it."""
        model = job.recipe.model.folder
        decoder = job.base(unread=model is not None)
        fill = {} if model is None else {"fill": Unread(decoder, model, device=world.device).fill}
        dtype = compute_dtype(decoder, world.device)
        return decoder, place_weights(decoder, decoder.parts, world=world, mesh=self.plan.mesh, dtype=dtype, **fill)

    def __call__(self, plan: StagePlan) -> Pass:
        """The pass of one stage."""
        self.plan, choice = plan, self._chosen[self._stages[plan.index]]
        if choice.keep == "everything":
            return plain_engine(self.decoder)(plan)
        self._host.reset()
        schemes, tokens = self._schemes(plan, choice), plan.micro_rows * plan.length
        if schemes:
            tokens = max(self._tokens(plan, row_tokens, scheme) for row_tokens, scheme in schemes.items())
        engine = Engine(self.decoder, choice, tokens=tokens, host=self._host, folder=self._folder, weights=self.weights)

        def run(batch: Batch, *, divisor: float, on_gradients: OnGradients | None = None) -> Tensor:
            scheme = schemes.get(batch.tokens.shape[1])
            here = engine if scheme is None else engine.under(scheme)
            return here.forward_backward(batch, divisor=divisor, on_gradients=on_gradients)

        return run

    def _schemes(self, plan: StagePlan, choice: EngineChoice) -> dict[int, Scheme]:
        """How ranks attend together in rows of each length of a stage; made in one order on all ranks, which meet."""
        if self._world is None:
            return {}
        meshes = {row_tokens: plan.mesh_for(row_tokens) for row_tokens in self._slots[plan.index].first_slots()}
        made = {mesh: scheme_of(mesh, self._world, choice) for mesh in dict.fromkeys(meshes.values())}
        for mesh in made if len(made) > 1 else ():
            lengths = sorted(row_tokens for row_tokens, own in meshes.items() if own == mesh)
            self._tell(f"stage {plan.index}, rows of {lengths[0]:,} to {lengths[-1]:,} tokens: {mesh}")
        return {row_tokens: made[mesh] for row_tokens, mesh in meshes.items()}

    @staticmethod
    def _tokens(plan: StagePlan, row_tokens: int, scheme: Scheme) -> int:
        """The most tokens of one pass that a rank has under a scheme."""
        _, parts = plan.part_of(0, row_tokens)
        together = plan.micro_rows * plan.length // parts
        return max(tokens_of(scheme.layout(together, rank)) for rank in range(scheme.ranks))


def _choice(value: dict[str, Any]) -> EngineChoice:
    return EngineChoice(**value | {"anchors": tuple(value["anchors"])})
