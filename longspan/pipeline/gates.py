"""Gates between stages: what the model shows after one decides whether training goes on, repeats it, or stops."""

import math
from pathlib import Path
from typing import Any, Literal

from longspan.eval.rows import Rows
from longspan.eval.tasks.base import Task
from longspan.model.decoder import Decoder
from longspan.pipeline.evalrows import short_differences
from longspan.pipeline.evaluating import answer_here, evaluated
from longspan.pipeline.gatesettings import Gate
from longspan.pipeline.job import Job
from longspan.pipeline.rundir import RunFolder
from longspan.pipeline.training import train_here
from longspan.records import Evaluation
from longspan.utils.errors import ConfigError, LongspanError
from longspan.utils.files import read_json, write_json
from longspan.utils.values import canonical_sha256

Verdict = Literal["go", "repeat", "stop"]
BASE = "gate-base"


def train_through(job: Job) -> None:
    """All stages with their gates, from the newest checkpoint on.

    A gate speaks at the end of its stage; one that a recipe gets after that is too late. Raises as `train_here`, and
    `train.gate` when one stops the run.
    """
    while True:
        closed = _closed(job)
        train_here(job, job.rounds if closed is None else job.rounds[: closed + 1])
        if closed is None:
            return
        _judge(job, closed)
        job.observer.phase("train", skipped=False)  # so that its steps are not told as the gate's


def _closed(job: Job) -> int | None:
    """The number of the first stage, repeats counted, whose gate training has not gone through."""
    stages = job.round_stages
    gated = [number for number, stage in enumerate(stages) if job.recipe.stages[stage].gate is not None]
    closed = [number for number in gated if job.verdict(number) in (None, "stop")]
    if not closed:
        return None
    newest = job.checkpoints().latest()
    return next((number for number in closed if newest is None or number >= newest.progress.stage), None)


def _judge(job: Job, number: int) -> None:
    """Evaluate, decide and write the verdict down; every rank calls this. Raises `train.gate` when it is to stop."""
    stage = job.round_stages[number]
    gate = job.recipe.stages[stage].gate
    assert gate is not None
    topic, path = f"gate-{number}", job.folder.gate(number)
    checkpoint = job.checkpoints().latest()
    assert checkpoint is not None, "training has just ended with one"
    if not job.leads:
        if job.hear(topic) == "go":
            if gate.short:
                answer_here(job, job.base(), topic=f"{topic}/base")
            decoder = job.base()
            checkpoint.restore(decoder)
            answer_here(job, decoder, topic=f"{topic}/rows")
        if job.hear(f"{topic}/verdict") == "stop":
            raise _stopped(stage, "the rank that leads tells why")
        return
    plain = gate.model_dump(mode="json")
    question = canonical_sha256([plain, checkpoint.sha256, job.base_identity, job.held_out_sha256, job.recipe.seed])
    known = read_json(path, error=ConfigError, code="run.gate") if path.exists() else {}
    same = known.get("question") == question
    job.observer.phase(f"gate after stage {stage}", skipped=same)
    job.say(topic, "skip" if same else "go")
    if not same:
        before = _base(job, gate, topic)
        decoder = job.base()
        checkpoint.restore(decoder)
        after = _rows(job, decoder, checkpoint.sha256, gate.tasks, name=topic, topic=f"{topic}/rows")
        known = _decided(job, gate, number, before=before, after=after)
        write_json(path, {"question": question, "weights": checkpoint.sha256, **known})
    for line in known["findings"]:
        job.observer.tell(f"  {line}")
    job.observer.tell(f"gate after stage {stage}: {known['verdict']}")
    job.say(f"{topic}/verdict", known["verdict"])
    if known["verdict"] == "stop":
        raise _stopped(stage, "; ".join(known["failed"]))


def _base(job: Job, gate: Gate, topic: str) -> Evaluation | None:
    """What the model before training makes of the short benchmarks; rows of other evaluations of it serve again."""
    if not gate.short:
        return None
    mine = Rows(job.folder.gate_rows(BASE))
    earlier = job.folder.evaluation("before").with_suffix(".rows.jsonl")
    if earlier.exists():
        mine.merge([Rows(earlier)])
    return _rows(job, job.base(), job.base_identity, gate.short, name=BASE, topic=f"{topic}/base")


def _rows(job: Job, decoder: Decoder, identity: str, tasks: tuple[Task, ...], *, name: str, topic: str) -> Evaluation:
    return evaluated(job, decoder, identity, tasks, topic=topic, rows_path=job.folder.gate_rows(name))


def _decided(job: Job, gate: Gate, number: int, *, before: Evaluation | None, after: Evaluation) -> dict[str, Any]:
    """The verdict with its findings, a line each, and those that failed."""
    stages = job.round_stages
    findings, failed = judged(gate, before=before, after=after, rows=_pair(job, number))
    tries = stages.count(stages[number])  # so far: a repeat comes right after
    verdict: Verdict = "go" if not failed else "repeat" if tries <= gate.repeats else "stop"
    return {"stage": stages[number], "try": tries, "verdict": verdict, "findings": findings, "failed": failed}


def _pair(job: Job, number: int) -> tuple[Path, Path]:
    return job.folder.gate_rows(BASE), job.folder.gate_rows(f"gate-{number}")


def judged(
    gate: Gate, *, before: Evaluation | None, after: Evaluation, rows: tuple[Path, Path]
) -> tuple[list[str], list[str]]:
    """What was found, a line each, and those lines that do not pass; `rows` are files of both evaluations."""
    findings, failed = [], []
    for name in dict.fromkeys(cell.probe for cell in after.cells):
        for length, (hits, trials) in sorted(after.by_length(name).items()):
            low = after.interval(name, length)[0]
            line = f"{name} at {length:,}: {hits} of {trials}, at least {low:.1%} (wanted: {gate.least_rate:.1%})"
            findings.append(line)
            if low < gate.least_rate:
                failed.append(line)
    if before is not None:
        drop = short_mean(before) - short_mean(after)
        difference, low, high = short_differences(*rows)["all"]
        line = (
            f"short benchmarks: {short_mean(before):.1%} before, {short_mean(after):.1%} after; question by question "
            f"{difference:+.1%} [{low:+.1%}, {high:+.1%}] (wanted: a drop of {gate.most_drop:.1%} at most)"
        )
        findings.append(line)
        if drop > gate.most_drop:
            failed.append(line)
    return findings, failed


def short_mean(evaluation: Evaluation) -> float:
    """The mean over the short benchmarks of their scores."""
    values = [score.value for score in evaluation.scores if score.task.startswith("short/")]
    return math.fsum(values) / len(values)


def gate_lines(folder: RunFolder) -> list[str]:
    """The verdicts so far, a line each, for a report."""
    return [
        f"gate after stage {known['stage']}, try {known['try']}: {known['verdict']}; {'; '.join(known['findings'])}"
        for known in (read_json(path, error=ConfigError, code="run.gate") for path in folder.verdicts())
    ]


def _stopped(stage: int, why: str) -> LongspanError:
    return LongspanError(
        "train.gate",
        f"the model does not pass the gate after this stage: {why}",
        where=f"recipe: stages.{stage}.gate",
        fix="change the stage in a new output, allow repeats of it, or ask for less: with another gate the same "
        "command judges the same weights again, and goes on if they pass",
    )
