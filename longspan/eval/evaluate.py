"""One evaluation from tasks to findings: checked before it starts, resumable while it runs."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from longspan.config import kind_class
from longspan.engine.kept import Keep
from longspan.engine.precision import compute_dtype
from longspan.engine.prefill import Prefill
from longspan.eval.context import DecoderReader
from longspan.eval.desk import Desk, Material, Reader
from longspan.eval.rows import Row, Rows, counts_as_score
from longspan.eval.tasks.base import Findings, Task
from longspan.model.decoder import Decoder
from longspan.records import Evaluation, TaskScore
from longspan.utils.errors import ConfigError, DataError
from longspan.utils.stats import Group, mean, score_interval
from longspan.utils.values import canonical_sha256


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


def evaluate(  # noqa: PLR0913 - what an evaluation is told
    decoder: Decoder,
    tasks: Sequence[Task],
    *,
    name: str,
    material: Material,
    model_id: str,
    rows_path: Path,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
    keep: Keep | None = None,
    far: Prefill | None = None,
) -> Evaluation:
    """Run the tasks in order, one row an answer in the JSONL file `rows_path`; rows that exist are not run again.

    `progress(done, total)` counts context tokens (questions are small beside them), rows found on disk included. `far`
    reads long contexts over several ranks. `model_id` names the weights and positions; a different one shares no row.
    `stop` is polled before every context. Raises `Interrupted` when stopped (call again to go on), `ConfigError` and
    `DataError` as `check` does, `ModelError` when questions after a kept context do not get the logits of a plain
    forward.
    """
    check(tasks, material)
    reader = DecoderReader(decoder, keep, far=far)
    dtype = str(compute_dtype(decoder)).removeprefix("torch.")
    kept = "fp8" if keep is not None and keep.codes else dtype
    facts = {"dtype": dtype, "kv_dtype": kept, "attention": "exact"}
    return evaluate_reader(
        reader,
        tasks,
        name=name,
        material=material,
        model_id=model_id,
        row_model=f"{model_id}/{dtype}" + ("" if kept == dtype else f"/{kept}"),
        facts=facts | {"branch_difference": reader.check()},
        rows_path=rows_path,
        progress=progress,
        stop=stop,
    )


def evaluate_reader(  # noqa: PLR0913 - what an evaluation is told
    reader: Reader,
    tasks: Sequence[Task],
    *,
    name: str,
    material: Material,
    model_id: str,
    row_model: str,
    facts: dict[str, Any],
    rows_path: Path,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> Evaluation:
    """As `evaluate`, with any reader; `row_model` names the model and how it is run, and `facts` stand in every row."""
    total = sum(task.cost_tokens(material.documents) for task in tasks)
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    desk = Desk(
        reader=reader,
        material=material,
        rows=Rows(rows_path),
        model_id=row_model,
        stop=stop,
        advance=advance,
        facts={key: value for key, value in facts.items() if key != "branch_difference"},
    )
    findings = [task.run(desk) for task in tasks]
    scores = scores_of(row for found in findings for row in found.rows)
    return Evaluation(
        name=name,
        model=model_id,
        cells=tuple(cell for found in findings for cell in found.cells),
        bins=tuple(entry for found in findings for entry in found.bins),
        seconds=sum(row["seconds"] for found in findings for row in found.rows),
        scores=scores,
        recalls=tuple(entry for found in findings for entry in found.recalls),
        facts={**facts, **_facts_of(findings), **packed_minus_single(scores)},
    )


def evaluation_of(rows: Sequence[Row], *, name: str) -> Evaluation:
    """What rows say without the model and the texts: cells, losses, recall, and scores by task and length.

    Raises `DataError` when they are of several models, or of a task that this version does not know.
    """
    models = sorted({row["model"] for row in rows})
    if len(models) != 1:
        raise DataError(
            "eval.rows-of-models",
            f"the rows are of {len(models)} models" if models else "there are no rows",
            where=name,
            fix="give the rows of one model",
        )
    tasks: dict[str, tuple[Task, list[Row]]] = {}
    for row in rows:
        if row["task"].startswith("judge/"):
            continue
        settings = canonical_sha256(row["spec"]["task"])
        if settings not in tasks:
            tasks[settings] = (task_of(row, where=name), [])
        tasks[settings][1].append(row)
    findings, scores = [task.findings(mine) for task, mine in tasks.values()], scores_of(rows)
    shared: dict[str, Any] = {key: rows[0][key] for key in ("dtype", "kv_dtype", "attention") if key in rows[0]}
    return Evaluation(
        name=name,
        model=models[0],
        cells=tuple(cell for found in findings for cell in found.cells),
        bins=tuple(entry for found in findings for entry in found.bins),
        seconds=sum(row["seconds"] for row in rows),
        scores=scores,
        recalls=tuple(entry for found in findings for entry in found.recalls),
        facts={**shared, **_facts_of(findings), **packed_minus_single(scores)},
    )


def task_of(row: Row, *, where: str) -> Task:
    """The task that made a row. Raises `DataError` when this version does not know it."""
    settings = row["spec"]["task"]
    try:
        task = kind_class("longspan.eval.tasks", settings["kind"]).model_validate_json(json.dumps(settings))
    except (ConfigError, ValueError, KeyError) as cause:
        raise DataError(
            "eval.rows-of-task",
            f"a row is of a task that is not known here: {cause}",
            where=where,
            fix="use the version of longspan that wrote it, or evaluate again",
        ) from cause
    assert isinstance(task, Task)
    return task


def scores_of(rows: Iterable[Row]) -> tuple[TaskScore, ...]:
    """Mean score of every task at every length; contexts are the clusters of the interval."""
    groups: dict[tuple[str, int], dict[str, Group]] = {}
    for row in rows:
        if not counts_as_score(row):
            continue
        clusters = groups.setdefault((row["task"].removeprefix("grid/"), row["length"]), {})
        total, count = clusters.get(row["cluster"], (0.0, 0.0))
        clusters[row["cluster"]] = (total + row["score"], count + 1)
    found = []
    for (task, length), clusters in groups.items():
        mine = list(clusters.values())
        low, high = score_interval(mine)
        trials = int(sum(count for _, count in mine))
        found.append(
            TaskScore(task=task, length=length, value=mean(mine), low=low, high=high, trials=trials, contexts=len(mine))
        )
    return tuple(found)


def packed_minus_single(scores: Sequence[TaskScore]) -> dict[str, str]:
    """What sharing a context with other lines costs, in points, where a probe was asked both ways at a length.

    The two are of different contexts: the interval adds the squares of both half widths.
    """
    known = {(score.task, score.length): score for score in scores}
    found = {}
    for (task, length), single in known.items():
        if (packed := known.get((f"pack/{task}", length))) is not None:
            difference = packed.value - single.value
            half = math.hypot(*((score.high - score.low) / 2 for score in (packed, single)))
            interval = f"[{100 * (difference - half):+.0f}, {100 * (difference + half):+.0f}]"
            found[f"packed_minus_single_{task}_{length}"] = f"{100 * difference:+.0f} points {interval}"
    return found


def _facts_of(findings: Sequence[Findings]) -> dict[str, Any]:
    return {key: value for found in findings for key, value in found.facts.items()}
