"""The curves of the report: loss by position, and what training saw step by step."""

import math
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from longspan.records import Evaluation, PositionBin, StepMetrics
from longspan.report import numbers
from longspan.report.charts import Axis, Band, Curve, Mark, Point, fitted, line_chart, thinned

STYLES = ("before", "after", "third", "fourth")  # of evaluations in their order; a fifth begins again


def loss_by_position(evaluations: Sequence[Evaluation], *, trained_length: int) -> Markup | None:
    """Loss over position in the text, a curve for each evaluation; None when nothing was measured."""
    ran = [(i, e.name, [b for b in e.bins if b.tokens]) for i, e in enumerate(evaluations)]
    every = [b for _, _, bins in ran for b in bins]
    if not every:
        return None
    curves = [
        Curve(
            style=STYLES[i % len(STYLES)],
            label=name,
            points=tuple((_middle(b), b.nll) for b in bins),
            told=tuple(_told(name, b) for b in bins),
        )
        for i, name, bins in ran
        if bins
    ]
    # The first bin begins at position 0, which a logarithmic axis does not have.
    low = max(min(max(1.0, b.low) for b in every), min(b.high for b in every) / 4)
    high = max(b.high for b in every)
    x = Axis(label="position in the text, tokens", low=low, high=max(high, 2 * low), scale="log", unit="length")
    marks = (
        [Mark(x=trained_length, caption=f"trained length, {numbers.count(trained_length)}")]
        if low < trained_length < high
        else []
    )
    y = fitted("loss, nats per token", [b.nll for b in every])
    return line_chart("Loss by position", curves, x=x, y=y, marks=marks)


def training_charts(metrics: Sequence[StepMetrics]) -> list[Markup]:
    """Loss, gradient norm and learning rate over tokens, with a band for each stage; none when nothing was trained."""
    if not metrics:
        return []
    stages = [list(group) for _, group in groupby(metrics, key=lambda step: step.stage)]
    skipped = [Mark(x=step.tokens) for step in metrics if step.event == "skipped"]

    def chart(label: str, values: list[list[Point]], style: str, *, main: bool, caption: str = "") -> Markup:
        x = Axis(label=caption, low=0, high=float(max(1, metrics[-1].tokens)), unit="amount")
        y = fitted(label, (value for points in values for _, value in points), zero=not main)
        curves = [Curve(style=f"{style} thin", points=thinned(points)) for points in values]
        bands = _bands(stages, captions=main)
        return line_chart(label, curves, x=x, y=y, bands=bands, marks=skipped, height=300 if main else 150)

    # A skipped step has no gradient worth drawing: it was skipped because of it.
    done = [[step for step in stage if step.event == "step"] for stage in stages]
    losses: list[list[Point]] = [[(step.tokens, step.loss) for step in stage] for stage in done]
    norms: list[list[Point]] = [[(step.tokens, step.gradient_norm) for step in stage] for stage in done]
    rates: list[list[Point]] = [[(step.tokens, step.learning_rate) for step in stage] for stage in stages]
    return [
        chart("training loss, nats per target", losses, "after", main=True),
        chart("gradient norm", norms, "third", main=False),
        chart("learning rate", rates, "fourth", main=False, caption="tokens seen"),
    ]


def _bands(stages: Sequence[Sequence[StepMetrics]], *, captions: bool) -> list[Band]:
    bands, low = [], 0
    for i, stage in enumerate(stages):
        high = stage[-1].tokens
        caption = f"stage {stage[0].stage + 1} · {numbers.length(stage[0].length)}" if captions else ""
        bands.append(Band(low=low, high=high, caption=caption, shaded=i % 2 == 1))
        low = high
    return bands


def _middle(b: PositionBin) -> float:
    """The middle of a bin on a logarithmic axis; a bin from 0 counts from half its end."""
    return math.sqrt((b.low or b.high / 2) * b.high)


def _told(name: str, b: PositionBin) -> str:
    span = f"{numbers.count(b.low)} to {numbers.count(b.high - 1)}"
    return f"{name}, positions {span}: {b.nll:.4f} nats over {numbers.count(b.tokens)} tokens"
