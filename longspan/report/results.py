"""The results of a run as a page in Markdown, for a repository: every table with its counts and intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longspan.records import Evaluation, StepMetrics
from longspan.report import numbers
from longspan.report.scores import score_tables
from longspan.report.tables import markdown, needle_tables, position_table, stage_table


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that the page shows. `summary` is what stands in summary.json beside it; `cost` is by phase, in seconds of
    one device, with what they came to; `files` are those that lie beside the page, with a word on each.
    """

    title: str
    evaluations: tuple[Evaluation, ...]
    metrics: tuple[StepMetrics, ...]
    summary: Mapping[str, Any]
    cost: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


def results_page(results: Results) -> str:
    """The page as text."""
    parts = [
        f"# {results.title}: what came of it",
        "Made by `longspan evidence` from the rows of the run. A rate is followed by what it was counted from and its "
        "95 % interval in per cent (Wilson's, on what lines that share a context are worth).",
    ]
    for found in needle_tables(results.evaluations):
        rows = [[numbers.length(n), *(_rate(cell) for cell in cells)] for n, cells in found.rows]
        parts += [f"## Found: {found.probe}", markdown(["tokens", *found.columns], rows)]
    names, positions = position_table(results.evaluations)
    if positions:
        rows = [[place, *losses, tokens] for place, losses, tokens in positions]
        parts += [
            "## Loss by position, nats a token of whole held-out documents",
            markdown(["positions", *names, "tokens"], rows),
        ]
    parts += _recalls(results.evaluations)
    panel = results.summary["short_panel"]
    if panel:
        rows = [
            [
                task,
                f"{v['before']:.1%}",
                f"{v['after']:.1%}",
                f"{v['after'] - v['before']:+.1%}",
                f"{v['low']:+.1%} to {v['high']:+.1%}",
            ]
            for task, v in panel.items()
        ]
        parts += ["## Short benchmarks", markdown(["benchmark", "before", "after", "change", "95 % interval"], rows)]
    for table in score_tables(results.evaluations):
        rows = [
            [task, *("" if cell is None else f"{cell.score} [{cell.interval}]" for cell in cells)]
            for task, cells, _, _ in table.rows
        ]
        parts += [f"## Scores: {table.name}", markdown(["task", *table.heads], rows)]
    parts += [*_training(results.metrics), *_cost(results.cost)]
    parts += ["## How", *(f"- {note}" for note in results.notes), f"- seed {results.seed}"]
    parts.append("- versions: " + ", ".join(f"{name} {version}" for name, version in results.versions.items()))
    parts += ["## Beside this page", *(f"- [{name}]({name}): {what}" for name, what in results.files.items())]
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: Sequence[str]) -> list[str]:
    """Lines of one list together, all else apart."""
    found: list[str] = []
    for part in parts:
        if found and part.startswith("- ") and found[-1].startswith("- "):
            found[-1] += f"\n{part}"
        else:
            found.append(part)
    return found


def _rate(cell: Any) -> str:
    return numbers.DASH if cell is None else f"{cell.rate} ({cell.hits}; {cell.interval})"


def _recalls(evaluations: Sequence[Evaluation]) -> list[str]:
    ran = [evaluation for evaluation in evaluations if evaluation.recalls]
    distances = sorted({recall.distance for evaluation in ran for recall in evaluation.recalls})
    if not distances:
        return []
    rows = []
    for distance in distances:
        row = [numbers.count(distance)]
        for evaluation in ran:
            found = next((r for r in evaluation.recalls if r.distance == distance), None)
            row.append(numbers.DASH if found is None else f"{found.logprob:.3f} (not there: {found.floor:.3f})")
        rows.append(row)
    heads = ["distance", *(evaluation.name for evaluation in ran)]
    return ["## Recall by distance, nats a token of a random string", markdown(heads, rows)]


def _training(metrics: Sequence[StepMetrics]) -> list[str]:
    rows = [
        [
            str(row.number),
            numbers.length(row.length),
            str(row.steps),
            numbers.count(row.tokens),
            f"{row.first_loss} to {row.last_loss}",
            row.tokens_per_second,
            numbers.duration(row.seconds),
        ]
        for row in stage_table(metrics)
    ]
    heads = ["stage", "row", "steps", "tokens", "loss", "tokens/s", "time"]
    return ["## Training", markdown(heads, rows)] if rows else []


def _cost(cost: Mapping[str, Any]) -> list[str]:
    rows = [[phase, numbers.duration(seconds)] for phase, seconds in cost["gpu_seconds"].items()]
    rows.append(["all", numbers.duration(cost["total_gpu_seconds"])])
    text = (
        f"At {cost['gpu_hour_dollars']:g} dollars a GPU-hour: {cost['dollars']:.2f} dollars in all, training "
        f"{cost['dollars_per_million_tokens']:.4f} dollars a million tokens. At {cost['gpu_watts']:g} W a GPU: "
        f"{cost['kwh']:.3f} kWh; at {cost['kwh_kg_co2']:g} kg CO2 a kWh: {cost['kg_co2']:.3f} kg. Prices, power and "
        "grid are assumptions."
    )
    return ["## Cost", markdown(["phase", "time of one GPU"], rows), text]
