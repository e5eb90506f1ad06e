"""Parts on a Ray cluster that sees the run folder."""

import importlib
import shutil
from typing import Literal

from pydantic import Field

from longspan.data.executors.base import STOP, Executor, PartStep, Tasks, datatrove, failed


class Ray(Executor):
    """Works on `workers` parts at once, each with `cpus` and `memory_gib`, on the cluster that `ray.init()` finds."""

    kind: Literal["ray"] = "ray"
    workers: int = Field(default=8, ge=1)
    cpus: int = Field(default=1, ge=1)
    memory_gib: float = Field(default=4.0, gt=0.0)

    def require(self) -> None:
        """Raise `ConfigError` when datatrove or Ray is missing."""
        datatrove("ray", "executor.ray")

    def run(self, tasks: Tasks) -> None:
        """Work on all parts. Raises `DataError` that names the logs when one fails."""
        module, ray = datatrove("ray", "executor.ray"), importlib.import_module("ray")
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        notes = tasks.folder / "datatrove"
        shutil.rmtree(notes, ignore_errors=True)
        executor = module.RayPipelineExecutor(
            pipeline=[PartStep(tasks.command, tasks.numbers, str(tasks.folder))],
            tasks=len(tasks.numbers),
            workers=min(self.workers, len(tasks.numbers)),
            cpus_per_task=self.cpus,
            mem_per_cpu_gb=self.memory_gib / self.cpus,
            logging_dir=str(notes),
            skip_completed=False,
        )
        try:
            executor.run()
        except Exception as error:  # Ray wraps what a task raised in classes of its own
            raise failed(tasks, error) from error
        done = len(list(notes.glob("completions/*")))
        if done < len(tasks.numbers) and not (tasks.folder / STOP).exists():  # which datatrove only warns of
            raise failed(tasks, RuntimeError(f"{len(tasks.numbers) - done} tasks came to no end"))
