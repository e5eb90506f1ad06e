"""Parts on this machine: one after the other, or several at once as processes of datatrove."""

from typing import Literal

from pydantic import Field

from longspan.data.executors.base import Executor, PartStep, Tasks, datatrove, failed


class Local(Executor):
    """Works on `workers` parts at once; a single one does so in the process of the command, and needs no package."""

    kind: Literal["local"] = "local"
    workers: int = Field(default=1, ge=1)

    def require(self) -> None:
        """Raise `ConfigError` when several workers are wanted and datatrove is missing."""
        if self.workers > 1:
            datatrove("local", "executor.local")

    def run(self, tasks: Tasks) -> None:
        """Work on all parts. Raises `DataError` that names the log when one fails."""
        module = datatrove("local", "executor.local")
        # datatrove knows a task by its number alone, so its own memory of what is done is not used.
        executor = module.LocalPipelineExecutor(
            pipeline=[PartStep(tasks.command, tasks.numbers, str(tasks.folder))],
            tasks=len(tasks.numbers),
            workers=min(self.workers, len(tasks.numbers)),
            logging_dir=str(tasks.folder / "datatrove"),
            skip_completed=False,
        )
        try:
            executor.run()
        except RuntimeError as error:
            raise failed(tasks, error) from error
