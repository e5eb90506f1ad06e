"""The search verb: position settings for one length, or a race of strategies at several, in the run folder."""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from longspan.data.tokenize import plain_encode
from longspan.model.decoder import Decoder
from longspan.model.weights import load, load_to_read
from longspan.pipeline.exportcheck import save_checked
from longspan.pipeline.job import Job
from longspan.pipeline.judging import PASS_TOKENS, DecoderJudge, Texts, rope_base
from longspan.pipeline.memory import memory_errors
from longspan.rope.frequencies import Method
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.longrope2 import Longrope2, critical_pair
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.search.desk import Budget, Desk, Spent
from longspan.search.halving import Found, halve
from longspan.search.judge import Candidate, Sheet
from longspan.search.settings import SearchSettings
from longspan.search.space import Space
from longspan.search.strategies.base import Strategy
from longspan.search.window import Window
from longspan.utils.errors import ConfigError
from longspan.utils.files import storage_errors, write_json
from longspan.utils.lines import Lines
from longspan.utils.spread import spearman

FOUND, EXPORT = "found.json", "export"
SMALLER = "lower search.pass_tokens, or search for a shorter length"
ENOUGH = 0.8  # the least rank correlation at which the skip sheet may stand for full texts


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one strategy found with one seed, and what it cost in all: exploring and finals."""

    name: str
    seed: int
    found: Found
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Searcher:
    """A job's model, texts and settings, as every search of the job uses them."""

    job: Job

    @property
    def settings(self) -> SearchSettings:
        """The recipe's, or the defaults."""
        return self.job.recipe.search or SearchSettings()

    @property
    def folder(self) -> Path:
        """Where searches of this run lie."""
        return self.job.folder.search

    @cached_property
    def decoder(self) -> Decoder:
        """The model that the recipe starts from, weights frozen."""
        model = self.job.recipe.model.folder
        if model is None:
            raise ConfigError(
                "search.new-model",
                "a new model has no weights that a search could listen to",
                where="recipe: model.new",
                fix="train it, export it, and search on the export",
            )
        return load_to_read(model, self.job.device)

    @property
    def pass_tokens(self) -> int:
        """What one forward pass takes."""
        return self.settings.pass_tokens or PASS_TOKENS[self.job.device.type]

    def space(self, length: int) -> Space:
        """The model and a length."""
        own = self.decoder.frequencies
        if self.settings.window:
            n0 = own.trained_length
            return Window(own=rope_base(own), trained_length=n0, length=n0, extended_length=own.length)
        return Space(own=rope_base(own), trained_length=own.length, length=length)

    def judge(self, length: int, seed: int) -> DecoderJudge:
        """The model on texts of one length, drawn by one seed. Raises `DataError` when there are too few."""
        store, settings = self.job.stores().train, self.settings
        texts = Texts(store=store, length=length, seed=seed)
        texts.require(max(settings.skip_rows, *(count for _, count in settings.halving)))
        identity = [self.job.base_identity, store.fingerprint, str(self.job.device.type)]
        return DecoderJudge(
            self.decoder,
            texts,
            settings,
            pass_tokens=self.pass_tokens,
            encode=plain_encode(self.job.tokenizer()),
            identity=identity,
        )

    def run(self, strategy: Strategy, judge: DecoderJudge, *, seed: int) -> Outcome:
        """One strategy with one seed, and its finals; goes on where it stopped."""
        sheet = Sheet(kind=strategy.explore or self.settings.explore)
        desk = self.desk(judge, sheet, seed=seed, name=strategy.name, budget=strategy.budget)
        length = desk.space.length
        with memory_errors(lambda: f"search at {length:,} tokens", fix=SMALLER):
            with contextlib.suppress(Spent):  # what was tried by then stands
                strategy.run(desk)
            found = halve(desk, self.settings.halving)
        outcome = Outcome(
            name=strategy.name, seed=seed, found=found, evaluations=desk.evaluations, seconds=desk.seconds
        )
        self.job.observer.tell(
            f"{length:,} · {strategy.name} · seed {seed}: loss {found.loss:.4f} nats, "
            f"{desk.evaluations:,} evaluations, {desk.seconds:.1f} s"
        )
        return outcome

    def desk(self, judge: DecoderJudge, sheet: Sheet, *, seed: int, name: str, budget: Budget) -> Desk:
        """Where one strategy works; its rows lie in a file of its own."""
        space = self.space(judge.length)
        return Desk(
            space=space,
            judge=judge,
            lines=Lines(self.folder / str(space.length) / f"{name}-{seed}.jsonl"),
            budget=budget,
            seed=seed,
            sheet=sheet,
            poll=self.job.poll,
            told=_teller(self.job, f"{space.length:,} · {name} · seed {seed}"),
        )

    def agreement(self, judge: DecoderJudge, *, seed: int) -> dict[str, Any]:
        """How well the skip sheet ranks closed formulas as a full text does: told, warned of below `ENOUGH`.

        Source of the set: one point of each method, and NTK ramps with their top at other pairs.
        """
        sheets = (Sheet(kind="skip"), Sheet(kind="full"))
        space = self.space(judge.length)
        candidates = [Candidate(method=method) for method in closed_formulas(space)]
        budget = Budget(evaluations=len(candidates))
        desk = self.desk(judge, sheets[0], seed=seed, name="agreement", budget=budget)
        with memory_errors(lambda: f"search at {space.length:,} tokens", fix=SMALLER):
            skip, full = (desk.on_sheet(candidates, sheet) for sheet in sheets)
        seconds = {sheet.kind: desk.seconds_of(sheet) for sheet in sheets}
        rho = spearman(skip, full)
        shown = "without order" if rho is None else f"{rho:.2f}"
        line = f"{space.length:,}: skip and full texts rank {len(candidates)} closed formulas alike: Spearman {shown}"
        if self.settings.explore == "skip" and (rho is None or rho < ENOUGH):
            self.job.observer.warn(f'{line}, less than {ENOUGH}: explore = "full" is slower and surer')
        else:
            self.job.observer.tell(line)
        names = [space.rope(candidate.method) for candidate in candidates]
        rows = [{"rope": n, "skip": s, "full": f} for n, s, f in zip(names, skip, full, strict=True)]
        return {"spearman": rho, "seed": seed, "seconds_of_one": seconds, "candidates": rows}


def search(job: Job) -> dict[str, Any]:
    """Search settings for the length that a recipe reaches with its strategy; they are written to search/found.json.

    The recipe's seed draws texts and random numbers. The answer holds the path and the settings, ready for a stage's
    `rope`. Raises `ConfigError` when the length is no longer than the model's, `DataError` without long texts.
    """
    searcher = Searcher(job)
    settings = searcher.settings
    settings.strategy.require()
    space, seed = searcher.space(settings.length or job.recipe.stages[-1].reach), job.recipe.seed
    length = space.length
    job.observer.phase(f"search at {length:,} tokens", skipped=False)
    judge = searcher.judge(length, seed)
    # Closed formulas are for longer texts: a window has none to compare sheets by.
    agreement = None if settings.window else searcher.agreement(judge, seed=seed)
    outcome = searcher.run(settings.strategy, judge, seed=seed)
    path = searcher.folder / FOUND
    write_json(path, {**described(space, outcome), "agreement": agreement})
    shipped = {"export": str(_ship(searcher, space, outcome))} if settings.export else {}
    return {
        "run": str(job.folder.path),
        "found": str(path),
        **shipped,
        "stage": f'rope = {{ kind = "searched", result = {json.dumps(str(path))} }}',
        "rope": space.rope(outcome.found.method),
        "loss": outcome.found.loss,
        "evaluations": outcome.evaluations,
        "search_seconds": round(outcome.seconds, 3),
    }


def _ship(searcher: Searcher, space: Space, outcome: Outcome) -> Path:
    """The model as it came, written with the settings that were found, and checked as every export is."""
    job, final = searcher.job, searcher.folder / EXPORT
    model, fresh = job.recipe.model.folder, final.with_name(f".{EXPORT}-new")
    assert model is not None  # the decoder that was searched on came from it
    decoder = load(model)
    decoder.frequencies = space.served(outcome.found.method)
    with storage_errors(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
    # A window_result is of another search, for the model that is trained.
    export = job.recipe.export.model_copy(update={"window_result": None})
    if searcher.settings.window and not export.mixed_window:
        job.observer.warn("the factors of the window are not in the export: export.mixed_window = true writes them")
    save_checked(decoder, fresh, export, warn=job.observer.warn)
    with storage_errors(final):
        shutil.rmtree(final, ignore_errors=True)
        fresh.rename(final)
    return final


def described(space: Space, outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON: the settings, the model that they belong to, and how they were found.

    `kept_tokens` is the n̂ that an evolution ended with. It has no place in any engine, so `rope` and `loss` are
    without it.
    """
    found = outcome.found
    return {
        "rope": space.rope(found.method),
        "model": {
            "rotary_dim": space.own.rotary_dim,
            "theta": space.own.theta,
            "trained_length": space.trained_length,
        },
        "length": space.length,
        "strategy": outcome.name,
        "seed": outcome.seed,
        "loss": found.loss,
        "full_texts": found.sheets,
        "kept_tokens": found.kept_tokens,
        "evaluations": outcome.evaluations,
        "seconds": outcome.seconds,
        "frequencies": asdict(space.frequencies(found.method)),
    }


def closed_formulas(space: Space) -> list[Method]:
    """One point of each closed method, and NTK ramps whose top is at other pairs, for the rank correlation."""
    critical = float(critical_pair(space.base))
    ramps = [Longrope2(critical_pair=max(1.0, critical * share), attention_factor=1.0) for share in (0.6, 0.8, 1.0)]
    return [Linear(), Ntk(), ThetaLaw(), Yarn(), Yarn(beta_fast=4.0), *ramps]


def _teller(job: Job, what: str) -> Callable[[Desk], None]:
    """Shows progress of a desk, and says a line now and then."""

    def told(desk: Desk) -> None:
        done, total = len(desk.tried), desk.budget.evaluations
        best = f" · best {desk.best:.4f} nats" if desk.tried else ""
        job.progress(min(done, total), max(1, total), f"{what}{best} · {desk.seconds:.1f} s")

    return told
