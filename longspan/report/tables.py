"""The tables of the report, as rows of plain text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from longspan.records import Evaluation, PositionBin, StepMetrics
from longspan.report import numbers
from longspan.report.heatmap import probes


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline figure: what it is, the value before (or empty), the value now, and a remark."""

    label: str
    value: str
    was: str = ""
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One entry of a needle table: `rate` such as 97.5 %, `hits` such as 39/40, `interval` such as 87–100."""

    rate: str
    hits: str
    interval: str


@dataclass(frozen=True, kw_only=True)
class NeedleTable:
    """Accuracy of one probe by length: a column for each evaluation that ran it, None where a length was not run."""

    probe: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Rate | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """What one stage did; losses in nats per target token, of its first and its last step."""

    number: int
    length: int
    steps: int
    skipped: int
    tokens: int
    first_loss: str
    last_loss: str
    peak_rate: str
    tokens_per_second: str
    seconds: float


def tiles(
    evaluations: Sequence[Evaluation], *, trained_length: int | None, length: int | None, seconds: Mapping[str, float]
) -> list[Tile]:
    """The figures at the top: context, retrieval at the longest length, loss at the far end, time.

    With two evaluations the first is the state before.
    """
    found = [*_retrieval(evaluations), *_far_loss(evaluations)]
    if trained_length is not None and length is not None:
        context = Tile(
            label="Context, tokens",
            was=numbers.count(trained_length),
            value=numbers.count(length),
            remark=_growth(length, trained_length),
        )
        found.insert(0, context)
    if seconds:
        found.append(Tile(label="Time", value=numbers.duration(sum(seconds.values())), remark="all phases together"))
    return found


def needle_tables(evaluations: Sequence[Evaluation]) -> list[NeedleTable]:
    """One table for each probe."""
    found = []
    for probe in probes(evaluations):
        ran = [e for e in evaluations if e.by_length(probe)]
        lengths = sorted({n for e in ran for n in e.by_length(probe)})
        rows = tuple((n, tuple(_rate(e, probe, n) for e in ran)) for n in lengths)
        found.append(NeedleTable(probe=probe, columns=tuple(e.name for e in ran), rows=rows))
    return found


def position_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[tuple[str, list[str], str]]]:
    """Names of the evaluations with loss by position, and rows: positions, a loss for each, tokens measured."""
    ran = [(e.name, {(b.low, b.high): b for b in e.bins if b.tokens}) for e in evaluations if e.bins]
    ranges = sorted({key for _, bins in ran for key in bins})
    rows = []
    for low, high in ranges:
        bins = [bins.get((low, high)) for _, bins in ran]
        losses = [f"{found.nll:.4f}" if found else numbers.DASH for found in bins]
        tokens = " / ".join(dict.fromkeys(numbers.count(found.tokens) for found in bins if found))
        rows.append((f"{numbers.count(low)}{numbers.DASH}{numbers.count(high - 1)}", losses, tokens))
    return [name for name, _ in ran], rows


def stage_table(metrics: Sequence[StepMetrics]) -> list[StageRow]:
    """One row for each stage, in the order in which they ran."""
    rows, before = [], 0
    for stage, group in groupby(metrics, key=lambda step: step.stage):
        steps = list(group)
        done = [step for step in steps if step.event == "step"]
        tokens, seconds = steps[-1].tokens - before, sum(step.seconds for step in steps)
        rows.append(
            StageRow(
                number=stage + 1,
                length=steps[0].length,
                steps=len(steps),
                skipped=len(steps) - len(done),
                tokens=tokens,
                first_loss=f"{done[0].loss:.3f}" if done else numbers.DASH,
                last_loss=f"{done[-1].loss:.3f}" if done else numbers.DASH,
                peak_rate=f"{max(step.learning_rate for step in steps):.2e}",
                tokens_per_second=numbers.count(tokens / seconds) if seconds > 0 else numbers.DASH,
                seconds=seconds,
            )
        )
        before = steps[-1].tokens
    return rows


def _growth(length: int, trained_length: int) -> str:
    return "" if length == trained_length else f"{length / trained_length:.3g} times as long"


def _rate(evaluation: Evaluation, probe: str, length: int) -> Rate | None:
    found = evaluation.by_length(probe).get(length)
    if found is None:
        return None
    interval = numbers.percents(*evaluation.interval(probe, length))
    return Rate(rate=numbers.percent(*found), hits=f"{found[0]}/{found[1]}", interval=interval)


def _retrieval(evaluations: Sequence[Evaluation]) -> list[Tile]:
    """Hits of the main probe at the longest length that the last evaluation asked it at."""
    main = next((e.main_probe for e in reversed(evaluations) if e.cells), None)
    found = [lengths for e in evaluations if (lengths := e.by_length(main or ""))]
    if not found:
        return []
    longest = max(found[-1])
    totals = [lengths.get(longest, (0, 0)) for lengths in found]
    hits, trials = totals[-1]
    last = next(e for e in reversed(evaluations) if e.by_length(main or ""))
    interval = numbers.percents(*last.interval(main or "", longest))
    return [
        Tile(
            label=f"Needles found at {numbers.count(longest)}",
            was=numbers.percent(*totals[0]) if len(totals) > 1 else "",
            value=numbers.percent(hits, trials),
            remark=f"{hits} of {trials} [{interval} %]",
        )
    ]


def _far_loss(evaluations: Sequence[Evaluation]) -> list[Tile]:
    ran = [e for e in evaluations if any(b.tokens for b in e.bins)]
    if not ran:
        return []
    last: PositionBin = max((b for b in ran[-1].bins if b.tokens), key=lambda b: b.low)
    losses = [f"{b.nll:.2f}" for e in ran for b in e.bins if b.low == last.low and b.tokens]
    return [
        Tile(
            label=f"Loss from position {numbers.count(last.low)}",
            was=losses[0] if len(losses) > 1 else "",
            value=losses[-1],
            remark="nats per held-out token",
        )
    ]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))
