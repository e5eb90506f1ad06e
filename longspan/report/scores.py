"""Scores of tasks by length, the length up to which they hold, recall by distance, and two models side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from longspan.records import Evaluation, Recall, TaskScore
from longspan.report import numbers
from longspan.report.charts import Axis, Curve, Mark, fitted, line_chart
from longspan.report.curves import STYLES
from longspan.utils.stats import effective_length

RULER_BAR = 0.856  # the score of Llama-2-7B-chat at 4,096 tokens: RULER's threshold (arXiv:2404.06654)
OWN_SHARE = 0.85  # of the score at the shortest length, as NoLiMa asks


@dataclass(frozen=True, kw_only=True)
class ScoreCell:
    """A score in per cent, its interval, and whether it reaches RULER's bar for sure (True) or possibly (None)."""

    score: str
    interval: str
    trials: str
    passes: bool | None


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of one evaluation: a row a task, a column a length, and the lengths that hold.

    Short benchmarks have a single column without a name.
    """

    name: str
    lengths: tuple[int, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ScoreCell | None, ...], str, str], ...]


def score_tables(evaluations: Sequence[Evaluation]) -> list[ScoreTable]:
    """One table for each evaluation that has scores."""
    found = []
    for evaluation in evaluations:
        if not evaluation.scores:
            continue
        long = [score for score in evaluation.scores if score.length]
        found += [_table(evaluation.name, long)] if long else []
        short = [score for score in evaluation.scores if not score.length]  # benchmarks that have no length
        found += [_table(f"{evaluation.name}, short benchmarks", short)] if short else []
    return found


def _table(name: str, scores: Sequence[TaskScore]) -> ScoreTable:
    lengths = tuple(sorted({score.length for score in scores}))
    rows = []
    for task in dict.fromkeys(score.task for score in scores):
        mine = {score.length: score for score in scores if score.task == task}
        cells = tuple(_cell(mine.get(length)) for length in lengths)
        bars = (RULER_BAR, OWN_SHARE * mine[min(mine)].value)
        bar, own = (_holds(mine, value) if lengths != (0,) else "" for value in bars)
        rows.append((task, cells, bar, own))
    heads = tuple(numbers.length(n) if n else "" for n in lengths)
    return ScoreTable(name=name, lengths=lengths, heads=heads, rows=tuple(rows))


def _cell(score: TaskScore | None) -> ScoreCell | None:
    if score is None:
        return None
    return ScoreCell(
        score=f"{100 * score.value:.1f}",
        interval=f"{100 * score.low:.0f}{numbers.DASH}{100 * score.high:.0f}",
        trials=f"{numbers.count(score.trials)} questions, {numbers.count(score.contexts)} contexts",
        passes=True if score.low >= RULER_BAR else (None if score.high >= RULER_BAR else False),
    )


def _holds(scores: Mapping[int, TaskScore], threshold: float) -> str:
    """The certified and the not refuted length for a threshold: `8K / 32K`, a dash for none."""
    if threshold <= 0:
        return f"{numbers.DASH} / {numbers.DASH}"
    certified, possible = effective_length({n: (score.low, score.high) for n, score in scores.items()}, threshold)
    return " / ".join(numbers.DASH if n is None else numbers.length(n) for n in (certified, possible))


def recall_chart(evaluations: Sequence[Evaluation], *, trained_length: int) -> Markup | None:
    """Log-probability of a string over its distance, a curve for each evaluation, with the floor beside it."""
    ran = [(index, e) for index, e in enumerate(evaluations) if e.recalls]
    if not ran:
        return None
    curves = []
    for index, evaluation in ran:
        style = STYLES[index % len(STYLES)]
        recalls = sorted(evaluation.recalls, key=lambda entry: entry.distance)
        points = tuple((float(entry.distance), entry.logprob) for entry in recalls)
        told = tuple(_told(evaluation.name, entry) for entry in recalls)
        curves.append(Curve(style=style, label=evaluation.name, points=points, told=told))
        floor = tuple((float(entry.distance), entry.floor) for entry in recalls)
        curves.append(Curve(style=f"{style} floor", points=floor))
    every = [entry for _, evaluation in ran for entry in evaluation.recalls]
    low, high = min(e.distance for e in every), max(e.distance for e in every)
    x = Axis(label="distance, tokens", low=low, high=max(high, 2 * low), scale="log", unit="length")
    y = fitted("log-probability, nats per token", [v for e in every for v in (e.logprob, e.floor)])
    marks = [Mark(x=trained_length, caption="trained length")] if low < trained_length < high else []
    return line_chart("Recall by distance", curves, x=x, y=y, marks=marks)


def _told(name: str, entry: Recall) -> str:
    interval = f"[{entry.low:.2f}, {entry.high:.2f}]"
    return f"{name}, {numbers.count(entry.distance)} tokens before: {entry.logprob:.2f} {interval} in {entry.trials}"


def difference_rows(differences: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """Task, length, difference in points with its interval, p after Holm, contexts."""
    return [
        (
            entry["task"],
            numbers.count(entry["length"]),
            f"{100 * entry['difference']:+.1f} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]",
            f"{entry['p_holm']:.3f}",
            numbers.count(entry["contexts"]),
        )
        for entry in differences
    ]
