"""A race of position settings as a page of Markdown: what was run, every number, and what the numbers say."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from longspan.report import numbers
from longspan.report.tables import markdown
from longspan.utils.spread import table_interval

CHEAP, DEAR = "structured", "evolution"  # the few-number search, and the published one that it is to save
LONG = 4.0  # factors from here on are those at which a search is meant to beat every formula


def race_page(
    details: Mapping[str, Any], *, title: str, commands: Sequence[str], versions: Mapping[str, str], picture: str
) -> str:
    """The page of a race's details.json. Raises `KeyError` for a file that is none."""
    devices = sorted({str(found.get("device", "hardware that was not recorded")) for found in details.values()})
    ran = ", ".join(f"{name} {version}" for name, version in versions.items())
    verdicts = [f"- {line}" for found in details.items() for line in _verdicts(*found)]
    parts = [
        f"# {title}",
        "Position settings found and compared without training. Every method was judged on held-out documents that no "
        "search read; formulas were tuned with the same number of evaluations as the search of few numbers.",
        "## Run",
        "```sh\n" + "\n".join(commands) + "\n```",
        f"On {' and '.join(devices)}; {ran}.",
        f"![Held-out loss, needles and cost of every method]({picture})",
        *(["## What the numbers say", "\n".join(verdicts)] if verdicts else []),
        *(section for found in details.items() for section in _factor(*found)),
        "## The columns",
        "*Loss* is the mean over texts and seeds in nats a token, with its 95 % interval (bootstrap over both). "
        "*Against* is the difference from the best closed formula, text by text. *Needles* is the share of planted "
        "lines read back. *Evaluations* and *seconds* are those of one search, its finals on whole texts among them. "
        "All seeds, settings and intervals stand in `details.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _factor(factor: str, found: Mapping[str, Any]) -> list[str]:
    methods = found["methods"]
    first = next(iter(methods.values()))
    texts = f"{len(first['windows'][0])} held-out texts of {numbers.count(found['length'])} tokens"
    rho = found["agreement"]["spearman"]
    alike = "gives no order" if rho is None else f"{rho:.2f}"
    cells = [
        [
            name,
            f"{value['nll']:.4f} [{value['interval'][0]:.4f}, {value['interval'][1]:.4f}]",
            _against(value["minus_best_formula"]),
            f"{value['needle']:.0%}",
            numbers.count(value["evaluations"]),
            f"{value['gpu_seconds']:.1f}",
        ]
        for name, value in sorted(methods.items(), key=lambda entry: entry[1]["nll"])
    ]
    heads = [_place(low, high) for low, high in found["bins"]]
    curves = [*methods.items(), ("unscaled", found["unscaled"])]
    return [
        f"## {factor} × = {numbers.count(found['length'])} tokens",
        f"{texts}, {first['seeds']} seeds. Rank correlation of the cheap sheet with a whole text: {alike}.",
        markdown(["method", "loss", "against", "needles", "evaluations", "seconds"], cells),
        "Perplexity by position:",
        markdown(["method", *heads], [[name, *map(_perplexity, value["nll_by_bin"])] for name, value in curves]),
    ]


def _verdicts(factor: str, found: Mapping[str, Any]) -> list[str]:
    """What was promised at a length, held against its numbers, whichever way they fall."""
    methods, at = found["methods"], f"{factor} ×"
    lines = []
    searched = {name: value for name, value in methods.items() if not value["formula"]}
    if searched:
        name, best = min(searched.items(), key=lambda entry: entry[1]["nll"])
        if (less := best["minus_best_formula"]) is not None:
            aim = "" if float(factor) < LONG else ", where a search was meant to beat every formula"
            lines.append(f"{at}: the best searched set is that of {name}, {_compared(less, less['formula'])}{aim}.")
    if {CHEAP, DEAR} <= methods.keys():
        cheap, dear = methods[CHEAP], methods[DEAR]
        pairs = zip(cheap["windows"], dear["windows"], strict=True)
        less = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
        difference = {"nll": fmean(value for row in less for value in row), "interval": table_interval(less)}
        told = f"{at}: {CHEAP} is {_compared(difference, DEAR)}, for {_share(cheap, dear)} of its seconds"
        each = found["agreement"]["seconds_of_one"]
        whole = dear["evaluations"] * each["full"] / cheap["gpu_seconds"] if cheap["gpu_seconds"] else math.inf
        lines.append(
            f"{told}. An {DEAR} that measures whole texts, as published, would take "
            f"{numbers.count(dear['evaluations'])} × {each['full']:.2f} s, {whole:,.0f} times as long as {CHEAP} "
            "(arithmetic, not run)."
        )
    return lines


def _share(cheap: Mapping[str, Any], dear: Mapping[str, Any]) -> str:
    ratio = dear["gpu_seconds"] / cheap["gpu_seconds"] if cheap["gpu_seconds"] else math.inf
    return f"1/{ratio:.1f}"


def _compared(less: Mapping[str, Any], other: str) -> str:
    low, high = less["interval"]
    word = "better than" if high < 0 else "worse than" if low > 0 else "not told apart from"
    return f"{word} {other} ({less['nll']:+.4f} nats [{low:+.4f}, {high:+.4f}])"


def _against(less: Mapping[str, Any] | None) -> str:
    if less is None:
        return "the best formula"
    low, high = less["interval"]
    return f"{less['nll']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _perplexity(nll: float) -> str:
    return f"{math.exp(nll):,.2f}" if nll < 10 else f"{math.exp(min(nll, 700)):.1e}"


def _place(low: int, high: int) -> str:
    return f"{numbers.length(low)}{numbers.DASH}{numbers.length(high)}"
