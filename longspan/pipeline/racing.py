"""The race: strategies at several lengths with several seeds, judged on held-out documents they never saw."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch

from longspan.engine import candidates as engine
from longspan.eval.evaluate import evaluate
from longspan.eval.tasks.grid import Grid
from longspan.pipeline.job import Job
from longspan.pipeline.judging import Texts
from longspan.pipeline.machine import probe
from longspan.pipeline.material import material_of
from longspan.pipeline.memory import memory_errors
from longspan.pipeline.racepage import PICTURE, SUMMARY, write_race
from longspan.pipeline.searching import SMALLER, Outcome, Searcher, described
from longspan.rope.frequencies import Frequencies
from longspan.utils.errors import ConfigError
from longspan.utils.lines import Lines
from longspan.utils.spread import table_interval
from longspan.utils.values import canonical_sha256

FIRST_BIN_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What held-out documents say of one set: summed loss in nats of each bin, window by window, and needles found."""

    nll_sums: tuple[tuple[float, ...], ...]
    hits: int
    trials: int


def compare(job: Job) -> dict[str, Any]:
    """Race the recipe's strategies; table, picture and numbers are written to the run's search folder.

    `summary.json` holds {factor: {method: {nll, needle, gpu_seconds, evaluations, seeds}}}: mean held-out loss in nats
    and share of needles found over seeds, seconds and evaluations of one search, number of seeds. `details.json` holds
    every seed, intervals, losses by position, and the rank correlations. Both are rewritten after each length.
    """
    searcher = Searcher(job)
    race = searcher.settings.compare
    if searcher.settings.window:
        raise ConfigError(
            "search.window-race",
            "the original window of an extended model is searched alone",
            where="recipe: search.window",
            fix="leave out --compare, or window",
        )
    for strategy in race.strategies:
        strategy.require()
    lengths = {f"{factor:g}": round(searcher.decoder.frequencies.length * factor) for factor in race.factors}
    for length in lengths.values():  # what is missing is told before the first search
        searcher.judge(length, race.seeds[0])
        Texts(store=job.stores().held_out, length=length, seed=job.recipe.seed).require(1)
    details: dict[str, Any] = {}
    for factor, length in lengths.items():
        details[factor] = _length(searcher, length)
        _tell(job, details[factor])
        write_race(searcher.folder, details)
    path = searcher.folder / SUMMARY
    return {"run": str(job.folder.path), "summary": str(path), "picture": str(searcher.folder / PICTURE)}


def _tell(job: Job, found: dict[str, Any]) -> None:
    """The table of one length, with each method's difference from the best closed formula."""
    job.observer.tell(
        f"{found['length']:,} tokens: held-out loss [95 %], needles, evaluations and seconds of one search"
    )
    for name, value in found["methods"].items():
        low, high = value["interval"]
        cost = f"{value['evaluations']:,.0f} evaluations, {value['gpu_seconds']:.1f} s"
        against, less = "", value["minus_best_formula"]
        if less is not None:
            low_less, high_less = less["interval"]
            against = f"; {less['nll']:+.4f} [{low_less:+.4f}, {high_less:+.4f}] against {less['formula']}"
        told = f"{value['nll']:.4f} [{low:.4f}, {high:.4f}], {value['needle']:.0%}, {cost}{against}"
        job.observer.tell(f"  {name}: {told}")


def _length(searcher: Searcher, length: int) -> dict[str, Any]:
    """All strategies and seeds at one length."""
    race, job = searcher.settings.compare, searcher.job
    judges = {seed: searcher.judge(length, seed) for seed in race.seeds}
    job.observer.phase(f"search at {length:,} tokens", skipped=False)
    agreement = searcher.agreement(judges[race.seeds[0]], seed=race.seeds[0])
    outcomes = {
        strategy.name: [searcher.run(strategy, judges[seed], seed=seed) for seed in race.seeds]
        for strategy in race.strategies
    }
    job.observer.phase(f"held-out documents at {length:,} tokens", skipped=False)
    space, bench = searcher.space(length), _Bench(searcher, length, sets=len(race.strategies) * len(race.seeds) + 1)
    unscaled = bench.measure(searcher.decoder.frequencies)
    measured = {
        name: [bench.measure(space.frequencies(outcome.found.method)) for outcome in ran]
        for name, ran in outcomes.items()
    }
    formulas = {strategy.name for strategy in race.strategies if strategy.tunes_a_formula}
    differences = _against_best({name: list(map(bench.window_nll, ran)) for name, ran in measured.items()}, formulas)
    methods = {
        name: {
            **_costs(ran),
            **bench.described(measured[name]),
            "formula": name in formulas,
            "minus_best_formula": differences.get(name),
            "found": [described(space, outcome) for outcome in ran],
        }
        for name, ran in outcomes.items()
    }
    return {
        "length": length,
        "device": probe(job.device, folder=searcher.folder).device,
        "bins": bench.edges,
        "agreement": agreement,
        "methods": methods,
        "unscaled": bench.described([unscaled]),
    }


def _against_best(tables: dict[str, list[list[float]]], formulas: set[str]) -> dict[str, dict[str, Any]]:
    """How much less each method loses than the best closed formula, text by text and seed by seed, with an interval."""
    best = min(formulas, key=lambda name: (_mean(tables[name]), name), default=None)
    found = {}
    for name, table in tables.items():
        if best is not None and name != best:
            pairs = zip(table, tables[best], strict=True)
            less = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
            found[name] = {"formula": best, "nll": _mean(less), "interval": table_interval(less)}
    return found


def _mean(table: Sequence[Sequence[float]]) -> float:
    return fmean(value for row in table for value in row)


def _costs(ran: Sequence[Outcome]) -> dict[str, Any]:
    """Of one search, in the mean."""
    return {
        "gpu_seconds": fmean(outcome.seconds for outcome in ran),
        "evaluations": fmean(outcome.evaluations for outcome in ran),
        "seeds": len(ran),
    }


def _edges(length: int) -> list[tuple[int, int]]:
    """Bins of position, each twice as wide as the one before."""
    edges = [(0, min(FIRST_BIN_TOKENS, length))]
    while edges[-1][1] < length:
        low = edges[-1][1]
        edges.append((low, min(2 * low, length)))
    return edges


class _Bench:
    """Held-out documents at one length, and what is known of each set of frequencies already."""

    def __init__(self, searcher: Searcher, length: int, *, sets: int) -> None:
        """`sets` will be measured in all."""
        self._searcher, self._length, self._race = searcher, length, searcher.settings.compare
        self._store = searcher.job.stores().held_out
        self._texts = Texts(store=self._store, length=length, seed=searcher.job.recipe.seed)
        self._windows = min(self._race.windows, len(self._texts.places()))
        self._lines = Lines(searcher.folder / "held-out.jsonl")
        self._known = {row["key"]: row for row in self._lines.rows}
        self._done, self._sets = 0, sets
        self.edges = _edges(length)

    def measure(self, frequencies: Frequencies) -> HeldOut:
        """Loss of every window by position, and needles found; rows on disk are not measured again."""
        with memory_errors(lambda: f"held-out documents at {self._length:,} tokens", fix=SMALLER):
            rows = [self._window(frequencies, number) for number in range(self._windows)]
            hits, trials = self._needles(frequencies)
        self._done += 1
        self._searcher.job.progress(self._done, self._sets, "sets of frequencies")
        return HeldOut(nll_sums=tuple(tuple(row["nll_sums"]) for row in rows), hits=hits, trials=trials)

    def window_nll(self, held: HeldOut) -> list[float]:
        """Mean loss of each window, in nats."""
        return [sum(sums) / self._length for sums in held.nll_sums]

    def described(self, ran: Sequence[HeldOut]) -> dict[str, Any]:
        """Loss with its interval, loss by position and needles, over the seeds of one method."""
        table = [self.window_nll(held) for held in ran]
        bins = [
            fmean(sums[index] / (high - low) for held in ran for sums in held.nll_sums)
            for index, (low, high) in enumerate(self.edges)
        ]
        return {
            "nll": _mean(table),
            "interval": table_interval(table),
            "windows": table,
            "nll_by_bin": bins,
            "needle": sum(held.hits for held in ran) / sum(held.trials for held in ran),
            "needles": [[held.hits, held.trials] for held in ran],
        }

    def _window(self, frequencies: Frequencies, number: int) -> dict[str, Any]:
        job = self._searcher.job
        identity = [job.base_identity, self._store.fingerprint, job.device.type, asdict(frequencies), job.recipe.seed]
        key = canonical_sha256(["held-out", *identity, self._length, number])[:32]
        if key not in self._known:
            job.poll()
            text = torch.from_numpy(self._texts.read(number))
            sheet = engine.Sheet(
                tokens=text[None, :-1],
                positions=torch.arange(self._length)[None],
                targets=text[None, 1:],
                scored=torch.ones((1, self._length), dtype=torch.bool),
            )
            pass_tokens = self._searcher.pass_tokens
            candidate = engine.Candidate(frequencies=frequencies)
            nll = engine.candidate_nll(self._searcher.decoder, sheet, [candidate], pass_tokens=pass_tokens)[0]
            losses = nll.double().cpu().numpy()
            sums = [float(losses[low:high].sum()) for low, high in self.edges]
            row = {"key": key, "length": self._length, "window": number, "nll_sums": sums}
            self._lines.append(row)
            self._known[key] = row
        return self._known[key]

    def _needles(self, frequencies: Frequencies) -> tuple[int, int]:
        """Lines of the recipe's probe, several in one held-out text, through the evaluation's own task."""
        searcher, race, job = self._searcher, self._race, self._searcher.job
        task = Grid(
            probe=searcher.settings.probe,
            lengths=(self._length,),
            depths=race.needles,
            trials=race.needle_contexts,
            pack=True,
        )
        decoder, own = searcher.decoder, searcher.decoder.frequencies
        decoder.frequencies = frequencies
        try:
            found = evaluate(
                decoder,
                (task,),
                name="race",
                material=replace(material_of(job), documents=self._store),
                model_id=canonical_sha256([job.base_identity, asdict(frequencies)]),
                rows_path=searcher.folder / "needles.rows.jsonl",
                progress=lambda _done, _total: job.poll(),
                stop=job.stop,
            )
        finally:
            decoder.frequencies = own
        return sum(cell.hits for cell in found.cells), sum(cell.trials for cell in found.cells)
