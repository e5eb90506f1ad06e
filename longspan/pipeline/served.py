"""Evaluating a model where it is served, with the tasks and texts of a recipe."""

from typing import Any

from longspan.eval.evaluate import check, evaluate_reader
from longspan.eval.server import ServerReader
from longspan.pipeline.job import Job
from longspan.pipeline.material import material_of
from longspan.pipeline.observer import SILENT, Observer, Stop, never
from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError
from longspan.utils.files import write_json


def evaluate_server(
    recipe: Recipe, url: str, model: str, *, observer: Observer = SILENT, stop: Stop = never
) -> dict[str, Any]:
    """Put the recipe's tasks to a server; rows and findings go to eval/server-MODEL in the run folder.

    The texts must have been prepared. Raises `ConfigError` when they were not or there are no tasks, `ModelError` when
    the server does not answer or a task needs what a server cannot give.
    """
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        if not recipe.eval.tasks or not job.folder.tokens.exists():
            raise ConfigError(
                "eval.not-prepared",
                "the recipe names nothing to evaluate" if not recipe.eval.tasks else "its texts are not prepared yet",
                where=str(job.folder.path),
                fix="add [[eval.tasks]] and run `longspan eval` with the recipe first",
            )
        material = material_of(job)
        check(recipe.eval.tasks, material)
        name = f"server-{''.join(c if c.isalnum() else '-' for c in model)}"
        path = job.folder.evaluation(name)
        found = evaluate_reader(
            ServerReader(url, model, encode=material.encode, decode=material.decode),
            recipe.eval.tasks,
            name=name,
            material=material,
            model_id=f"{model} at {url}",
            row_model=f"{model} at {url}",
            facts={"server": url, "served_model": model},
            rows_path=path.with_suffix(".rows.jsonl"),
            progress=lambda done, total: job.progress(done, total, "tokens read"),
            stop=stop,
        )
        write_json(path, found.to_json())
        scores = {f"{s.task}/{s.length}": round(s.value, 4) for s in found.scores}
        return {"evaluation": str(path), **scores}
