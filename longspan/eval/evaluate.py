"""One evaluation from tasks to findings: checked before it starts, resumable while it runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from longspan.engine.precision import compute_dtype
from longspan.eval.context import DecoderReader
from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Rows
from longspan.eval.tasks.base import Task
from longspan.model.decoder import Decoder
from longspan.records import Evaluation
from longspan.utils.errors import ConfigError


def check(tasks: Sequence[Task], material: Material) -> None:
    """Refuse now what would fail later: two tasks that measure the same, too little text, lines that do not fit.

    Raises `ConfigError` or `DataError`. It needs no model, so call it before training.
    """
    twice = [part for part, count in Counter(part for task in tasks for part in task.parts).items() if count > 1]
    if twice:
        raise ConfigError(
            "eval.same-task", f"two tasks measure {', '.join(twice)}", where="eval.tasks", fix="keep one of them"
        )
    for task in tasks:
        task.check(material)


def evaluate(
    decoder: Decoder,
    tasks: Sequence[Task],
    *,
    name: str,
    material: Material,
    model_id: str,
    rows_path: Path,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> Evaluation:
    """Run the tasks in order, one row an answer in the JSONL file `rows_path`; rows that exist are not run again.

    `progress(done, total)` counts context tokens (questions are small beside them), rows found on disk included.
    `model_id` names the weights and positions; a different one shares no row. `stop` is polled before every context.
    Raises `Interrupted` when stopped (call again to go on), `ConfigError` and `DataError` as `check` does.
    """
    check(tasks, material)
    total = sum(task.cost_tokens(material.documents) for task in tasks)
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    desk = Desk(
        reader=DecoderReader(decoder),
        material=material,
        rows=Rows(rows_path),
        model_id=f"{model_id}/{str(compute_dtype(decoder)).removeprefix('torch.')}",
        stop=stop,
        advance=advance,
    )
    findings = [task.run(desk) for task in tasks]
    return Evaluation(
        name=name,
        model=model_id,
        cells=tuple(cell for found in findings for cell in found.cells),
        bins=tuple(entry for found in findings for entry in found.bins),
        seconds=sum(row["seconds"] for found in findings for row in found.rows),
    )
