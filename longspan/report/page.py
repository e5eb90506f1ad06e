"""The report of a run: what was done and what came of it, in one HTML file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from longspan.records import Evaluation, StepMetrics
from longspan.report import numbers
from longspan.report.curves import loss_by_position, training_charts
from longspan.report.heatmap import axes, chart_css, heatmap_row, legend, map_size, probes
from longspan.report.lengths import length_chart
from longspan.report.race import race_chart, read_race
from longspan.report.scores import difference_rows, recall_chart, score_tables
from longspan.report.svg import clean
from longspan.report.tables import needle_tables, position_table, stage_table, tiles
from longspan.utils.files import write_atomic

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page shows; what is empty or None is left out of it.

    `trained_length` and `length` in tokens: the context the model came with, and the one it was taken to; None where
    two files of rows are compared, of which nothing else is known.
    `differences` are those of after and before on the same contexts, as `longspan eval compare` gives them.
    `seconds` by phase, in the order in which they are shown. `recipe` is the resolved recipe as a JSON value.
    `model`, `export` and `versions` are shown a line for each key.
    """

    title: str
    trained_length: int | None
    length: int | None
    recipe: Mapping[str, Any] | None
    metrics: tuple[StepMetrics, ...] = ()
    before: Evaluation | None = None
    after: Evaluation | None = None
    others: tuple[Evaluation, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    differences: tuple[Mapping[str, Any], ...] = ()
    race: Mapping[str, Any] | None = None  # details.json of a search that compared

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Those that exist: before, after, then the others."""
        return tuple(e for e in (self.before, self.after, *self.others) if e is not None)


def write_report(path: Path, data: ReportData) -> None:
    """Write the page, atomically. It holds no script, asks for nothing outside itself, and escapes all it shows.

    Raises `StorageError` when the file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": numbers.count, "duration": numbers.duration, "shown": numbers.shown}
    page = environment.get_template("page.html.jinja").render(_view(data))
    write_atomic(path, clean(page).encode("utf-8"))


def _view(data: ReportData) -> dict[str, Any]:
    evaluations = data.evaluations
    main = [e for e in (data.before, data.after) if e is not None]
    return {
        "data": data,
        "css": chart_css(),
        "tiles": tiles(main, trained_length=data.trained_length, length=data.length, seconds=data.seconds),
        "needles": needle_tables(evaluations),
        "maps": [
            {"grids": heatmap_row(probe, evaluations), "width": map_size(*axes(probe, evaluations))[0]}
            for probe in probes(evaluations)
        ],
        "legend": legend(),
        "scores": score_tables(evaluations),
        "recall": recall_chart(evaluations, trained_length=data.trained_length or 0),
        "differences": difference_rows(data.differences),
        "measured": {e.name: e.facts for e in evaluations if e.facts},
        "lengths": length_chart(evaluations),
        "position_chart": loss_by_position(evaluations, trained_length=data.trained_length or 0),
        "positions": position_table(evaluations),
        "race": race_chart(read_race(data.race))[0] if data.race else None,
        "training": training_charts(data.metrics),
        "stages": stage_table(data.metrics),
        "step_count": len(data.metrics),
        "total_seconds": sum(data.seconds.values()),
        "recipe": json.dumps(data.recipe, indent=2, ensure_ascii=False, default=str),
    }
