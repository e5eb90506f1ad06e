"""One evaluation of one decoder of a job, over all its ranks, resumable row by row."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from longspan.engine.kept import Keep
from longspan.eval.evaluate import evaluate
from longspan.eval.tasks.base import Task
from longspan.model.decoder import Decoder
from longspan.pipeline.evalranks import answer, asking, spread_prefill
from longspan.pipeline.forecast import forecast
from longspan.pipeline.job import Job
from longspan.pipeline.machine import probe
from longspan.pipeline.material import material_of
from longspan.pipeline.memory import memory_errors
from longspan.records import Evaluation
from longspan.utils.values import canonical_sha256

FIX = "use shorter lengths in eval.tasks, or a machine with more memory"


def evaluated(
    job: Job, decoder: Decoder, identity: str, tasks: Sequence[Task], *, topic: str, rows_path: Path
) -> Evaluation:
    """What the tasks find of a decoder whose weights `identity` names; the ranks that follow call `answer_here`.

    Raises as `longspan.eval.evaluate.evaluate` does.
    """
    material, keep = material_of(job), _keep(job)
    far = spread_prefill(decoder, keep, job.world)
    machine = probe(job.device, folder=job.folder.path)
    for line in forecast(tasks, material.documents, decoder.shape, machine):
        job.observer.tell(line)
    where = f"evaluation {topic} training" if topic in ("before", "after") else f"evaluation of {topic}"
    with memory_errors(lambda: where, fix=FIX), asking(far, job.world, topic):
        return evaluate(
            decoder.eval(),
            tasks,
            name=topic,
            material=material,
            model_id=canonical_sha256([identity, asdict(decoder.frequencies)]),
            rows_path=rows_path,
            progress=lambda done, total: job.progress(done, total, "tokens read"),
            stop=job.stop,
            keep=keep,
            far=far,
        )


def answer_here(job: Job, decoder: Decoder, *, topic: str) -> None:
    """What a rank that follows does while the one that leads evaluates."""
    answer(decoder.eval(), _keep(job), job.world, topic)


def _keep(job: Job) -> Keep:
    return Keep(codes=job.recipe.eval.kept == "fp8")
