"""The results of a run as a folder to publish: counted again from its rows, with what they cost."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from longspan.config import Settings
from longspan.pipeline.evalrows import short_differences
from longspan.pipeline.figures import nll_by_position
from longspan.pipeline.gates import gate_lines
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder
from longspan.records import Evaluation
from longspan.report.results import Results, results_page
from longspan.train.metrics import read_metrics
from longspan.utils.errors import ConfigError
from longspan.utils.files import read_json, storage_errors, write_atomic, write_json

GPU_PHASES = ("before", "train", "after", "canaries", "export")
COPIED = {
    "report.html": "the whole report",
    "heatmaps.svg": "needles by length and depth",
    "recipe.json": "the recipe with every default",
    "versions.json": "what it ran with",
    "metrics.jsonl": "a line a step",
    "engine.json": "how each stage was run",
}
PACKED = "pack/"


class Prices(Settings):
    """What is assumed to turn seconds of a GPU into money, energy and carbon dioxide."""

    gpus: float = Field(default=1, gt=0)
    gpu_hour_dollars: float = Field(default=3.5, ge=0)
    gpu_watts: float = Field(default=700, ge=0)
    kwh_kg_co2: float = Field(default=0.4, ge=0)


def write_evidence(
    run: Path, folder: Path, *, prices: Prices, before: Path | None = None, beside: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Write README.md, summary.json and copies of a run's records into `folder`; the summary comes back.

    `before` is the evaluation of the model before training, where another run holds it; `beside` are evaluations of
    other models by name. Raises `ConfigError` when the run has not been evaluated after training, or a file is missing.
    """
    place = RunFolder(run)
    if not place.evaluation("after").exists():
        raise ConfigError(
            "evidence.not-evaluated",
            "this run has no evaluation after training",
            where=str(run),
            fix="longspan eval RECIPE after, and then this again",
        )
    recipe = Recipe.read(place.recipe)
    first = place.evaluation("before") if before is None else before
    known = {"before": first} if before is not None or first.exists() else {}
    evaluations = {
        name: _evaluation(path, name)
        for name, path in {**known, "after": place.evaluation("after"), **(beside or {})}.items()
    }
    metrics = tuple(read_metrics(place.metrics))
    cost = _cost(place, prices, tokens=metrics[-1].tokens if metrics else 0)
    summary = {
        "needle": needles(evaluations["after"]),
        "nll_by_position": {name: nll_by_position(evaluations.get(name)) for name in ("before", "after")},
        "short_panel": _panel(evaluations, first, place.evaluation("after")),
        "gpu_seconds": cost["total_gpu_seconds"],
        "cost": cost,
        "beside": {name: needles(evaluations[name]) for name in (*known, *(beside or {}))},
    }
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: what for name, what in COPIED.items() if (run / name).exists()}
        for name in files:
            shutil.copyfile(run / name, folder / name)
        for path in place.verdicts():
            shutil.copyfile(path, folder / f"gate-{path.name}")
            files[f"gate-{path.name}"] = "the verdict of a gate"
    write_json(folder / "summary.json", summary)
    page = Results(
        title=recipe.name,
        evaluations=tuple(evaluations.values()),
        metrics=metrics,
        summary=summary,
        cost=cost,
        notes=_notes(place, recipe),
        versions=read_json(place.versions, error=ConfigError, code="evidence.versions"),
        files={"summary.json": "the figures", **files},
        seed=recipe.seed,
    )
    write_atomic(folder / "README.md", results_page(page).encode())
    return {"evidence": str(folder), **summary}


def needles(evaluation: Evaluation) -> dict[str, dict[str, dict[str, Any]]]:
    """Hits k of n for each probe and length, with the lower end of the 95 % interval.

    Where a probe was asked both with other lines in the context and alone, the entry with the others counts at each
    length that has one: it is the harder task. `shared` says which it is.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    probes = sorted({cell.probe for cell in evaluation.cells}, key=lambda name: name.startswith(PACKED))
    for probe in probes:
        for length, (hits, trials) in sorted(evaluation.by_length(probe).items()):
            low = evaluation.interval(probe, length)[0]
            entry = {"k": hits, "n": trials, "low": round(low, 6), "shared": probe.startswith(PACKED)}
            found.setdefault(probe.removeprefix(PACKED), {})[str(length)] = entry
    return found


def _panel(evaluations: Mapping[str, Evaluation], first: Path, second: Path) -> dict[str, dict[str, float]]:
    """Scores before and after, and the 95 % interval of the change, of every short benchmark and of all questions."""
    if "before" not in evaluations:
        return {}
    scores = [
        {score.task: score.value for score in evaluations[name].scores if score.task.startswith("short/")}
        for name in ("before", "after")
    ]
    both = [task for task in scores[0] if task in scores[1]]
    if not both:
        return {}
    changes = short_differences(*(path.with_suffix(".rows.jsonl") for path in (first, second)))
    found = {}
    for task in both:
        low, high = changes[task][1:]
        found[task.removeprefix("short/")] = {
            "before": scores[0][task],
            "after": scores[1][task],
            "low": low,
            "high": high,
        }
    means = [sum(side[task] for task in both) / len(both) for side in scores]
    low, high = changes["all"][1:]
    return found | {"mean": {"before": means[0], "after": means[1], "low": low, "high": high}}


def _cost(place: RunFolder, prices: Prices, *, tokens: int) -> dict[str, Any]:
    seconds = {phase: round(s * prices.gpus, 1) for phase, s in place.seconds().items() if phase in GPU_PHASES}
    total = sum(seconds.values())
    dollars = total / 3600 * prices.gpu_hour_dollars
    training = seconds.get("train", 0.0) / 3600 * prices.gpu_hour_dollars
    kwh = total * prices.gpu_watts / 3.6e6
    return {
        **prices.model_dump(),
        "gpu_seconds": seconds,
        "total_gpu_seconds": round(total, 1),
        "dollars": round(dollars, 4),
        "dollars_per_million_tokens": round(training / (tokens / 1e6), 6) if tokens else 0.0,
        "kwh": round(kwh, 4),
        "kg_co2": round(kwh * prices.kwh_kg_co2, 4),
    }


def _notes(place: RunFolder, recipe: Recipe) -> tuple[str, ...]:
    stages = (
        f"stage {n}: rows of {s.length:,} tokens, positions up to {s.reach:,}" for n, s in enumerate(recipe.stages)
    )
    return (*stages, *gate_lines(place))


def _evaluation(path: Path, name: str) -> Evaluation:
    if not path.is_file():
        raise ConfigError(
            "evidence.file", "there is no such evaluation", where=str(path), fix="name an eval/….json of a run"
        )
    return Evaluation.from_json({**read_json(path, error=ConfigError, code="evidence.file"), "name": name})
