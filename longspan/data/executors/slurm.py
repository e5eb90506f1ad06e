"""Parts as an array job of Slurm."""

import shlex
import shutil
from typing import Any, Literal

from pydantic import Field

from longspan.data.executors.base import Executor, Tasks, datatrove, failed
from longspan.utils.errors import ConfigError


class Slurm(Executor):
    """Submits the parts as one array of jobs, `workers` at once, and waits for its end.

    datatrove writes the script and submits it. Its own jobs load a pickled executor, which is not done here: a job runs
    the part's command. `qos` and `time_limit` are Slurm's.
    """

    kind: Literal["slurm"] = "slurm"
    partition: str
    time_limit: str = "24:00:00"
    qos: str = ""
    workers: int = Field(default=64, ge=1)
    cpus: int = Field(default=1, ge=1)
    memory_gib_per_cpu: int = Field(default=4, ge=1)

    def require(self) -> None:
        """Raise `ConfigError` when datatrove or Slurm is missing."""
        datatrove("slurm", "executor.slurm")
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "curate.no-slurm",
                "there is no sbatch on this machine",
                where="recipe: data.curate.executor",
                fix="run this on a machine that submits to Slurm, or take another executor",
            )

    def run(self, tasks: Tasks) -> None:
        """Work on all parts. Raises `DataError` that names the logs when one fails."""
        module = datatrove("slurm", "executor.slurm")
        executor: Any = module.SlurmPipelineExecutor(
            pipeline=[],
            tasks=len(tasks.numbers),
            time=self.time_limit,
            partition=self.partition,
            qos=self.qos,
            workers=self.workers,
            cpus_per_task=self.cpus,
            mem_per_cpu_gb=self.memory_gib_per_cpu,
            job_name="longspan-data",
            logging_dir=str(tasks.folder / "datatrove"),
            slurm_logs_folder=str(tasks.folder),
        )
        numbers = " ".join(map(str, tasks.numbers))
        script = f'parts=({numbers})\n{shlex.join(tasks.command)} "${{parts[$SLURM_ARRAY_TASK_ID]}}"'
        contents = executor.get_launch_file_contents(executor.get_sbatch_args(len(tasks.numbers)), script)
        try:
            module.launch_slurm_job(contents, executor.job_id_retriever, "--wait")
        except Exception as error:  # sbatch ends with the status of the worst job; datatrove raises several classes
            raise failed(tasks, error) from error
