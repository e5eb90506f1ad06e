"""A small made-up run, for the tests of the report."""

import dataclasses
import itertools
import math

from longspan.records import Cell, Evaluation, PositionBin, StepMetrics
from longspan.report.page import ReportData

LENGTHS, DEPTHS = (512, 2048, 8192), (0.0, 0.5, 1.0)


def evaluation(name: str, *, hits: int, nll: float, trials: int = 10, probe: str = "passkey") -> Evaluation:
    cells = tuple(Cell(probe=probe, length=n, depth=d, hits=hits, trials=trials) for n in LENGTHS for d in DEPTHS)
    edges = (0, 64, 512, 8192)
    bins = tuple(PositionBin(low=a, high=b, nll_sum=nll * (b - a), tokens=b - a) for a, b in itertools.pairwise(edges))
    return Evaluation(name=name, model="0" * 64, cells=cells, bins=bins, seconds=1.5)


def step(number: int, **changes: object) -> StepMetrics:
    plain = StepMetrics(
        step=number,
        stage=0 if number <= 6 else 1,
        length=2048 if number <= 6 else 8192,
        loss=5 - number / 10,
        gradient_norm=1.0,
        learning_rate=1e-3 / number,
        tokens=4096 * number,
        targets=4000.0,
        seconds=0.5,
    )
    return dataclasses.replace(plain, **changes)


def report(**changes: object) -> ReportData:
    plain = ReportData(
        title="laptop",
        trained_length=512,
        length=8192,
        recipe={"name": "laptop", "stages": [{"length": 2048}, {"length": 8192}]},
        metrics=(*(step(i) for i in range(1, 10)), step(10, event="skipped", loss=math.nan, gradient_norm=math.inf)),
        before=evaluation("before", hits=0, nll=7.125),
        after=evaluation("after", hits=9, nll=3.25),
        model={"family": "llama"},
        export={"largest logit difference": "3.2e-06"},
        seconds={"data": 2.5, "train": 120.0},
        versions={"torch": "2.13.0"},
        notes=("resumed once",),
    )
    return dataclasses.replace(plain, **changes)
