"""Length following as a picture: how many words were asked for, and how many came."""

import re
from collections.abc import Sequence

from markupsafe import Markup

from longspan.records import Evaluation
from longspan.report import numbers
from longspan.report.charts import Axis, Curve, line_chart
from longspan.report.curves import STYLES

MEDIAN = re.compile(r"writing_(\d+)_words_p50")


def length_chart(evaluations: Sequence[Evaluation]) -> Markup | None:
    """Median words of replies over words asked for, a curve for each evaluation, and the line on which both are equal.

    None when no evaluation asked for two lengths: a point alone is in the table of facts.
    """
    ran = [(index, e.name, _medians(e)) for index, e in enumerate(evaluations)]
    asked = sorted({wanted for _, _, points in ran for wanted, _ in points})
    if len(asked) < 2:
        return None
    low, high = float(asked[0]), float(asked[-1])
    written = [max(1.0, words) for _, _, points in ran for _, words in points]
    y = Axis(
        label="words written, median of the replies", low=min(low, *written), high=max(high, *written), scale="log"
    )
    x = Axis(label="words asked for", low=low, high=high, scale="log")
    curves = [Curve(style="fourth thin", label="as asked", points=((low, low), (high, high)))]
    curves += [
        Curve(
            style=STYLES[index % len(STYLES)],
            label=name,
            points=tuple((float(wanted), max(1.0, words)) for wanted, words in points),
            told=tuple(
                f"{name}, {numbers.count(wanted)} words asked for: {words:g} written" for wanted, words in points
            ),
        )
        for index, name, points in ran
        if points
    ]
    return line_chart("Length following", curves, x=x, y=y)


def _medians(evaluation: Evaluation) -> list[tuple[int, float]]:
    found = [(MEDIAN.fullmatch(key), value) for key, value in evaluation.facts.items()]
    return sorted((int(match[1]), float(value)) for match, value in found if match is not None)
