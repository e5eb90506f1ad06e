"""The run folder: where everything is, whose it is, and what is already done."""

import contextlib
import fcntl
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.pipeline.recipe import Recipe
from longspan.utils.errors import ConfigError
from longspan.utils.files import read_json, storage_errors, write_json
from longspan.utils.values import canonical_sha256, differences

PHASES = ("curate", "prepare", "before", "train", "after", "canaries", "export", "report")
PACKAGES = ("longspan", "torch", "numpy", "tokenizers", "safetensors", "pydantic", "pyarrow", "transformers")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is known of one phase: with which inputs, for how many seconds in all, and whether it is done."""

    inputs: str
    seconds: float
    done: bool


class RunFolder:
    """Names of everything in a run folder::

    recipe.json            the recipe with every default written out
    versions.json          what it ran with
    base.json              hash of the model that was started from; a new model has none
    tokenizer.json         the tokenizer of this run, and tokenizer_config.json beside it
    curated/               documents/, what the filters have kept, and manifest.json with every drop by its reason
    insertions-0.jsonl     where the canaries of this stage are planted, a line each
    canaries.json          what the trained model knows of each of them
    tokens/                train/ and held_out/, the texts as token files; tokens.old-1/ when the texts changed
    data.json              what was prepared: documents, tokens, lengths and repeats of every stage, drops by reason
    identity.json          what the checkpoints were made from: recipe, model, tokens
    engine.json            how the engine runs each stage: chosen once
    anchors/               what the backward pass needs, while a stage runs whose anchors go to disk
    checkpoints/           step-000123/ and latest.json
    metrics.jsonl          one line an optimizer step
    tracking/              the tracker's own files, and id.json, which tells this run from others of its name
    gates/                 the verdict after each stage that has a gate, and a .rows.jsonl beside with every answer
    eval/                  before.json and after.json, and a .rows.jsonl beside each with every answer
    export/                the Hugging Face folder
    adapter/               the adapters alone, in PEFT's format, when the recipe asks for LoRA
    export.json            how far transformers' logits are from ours
    search/                found.json, export/ if asked for; of a race, race.svg, summary.json, details.json;
                           a line each measurement
    report.html            the page
    heatmaps.svg           its heat maps alone
    summary.json           the figures
    done/                  one mark a phase, so that the same command goes on where it stopped
    .lock                  held while a process works here
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.json"
        self.versions = path / "versions.json"
        self.tokenizer = path / "tokenizer.json"
        self.tokenizer_config = path / "tokenizer_config.json"
        self.curated = path / "curated"
        self.canaries = path / "canaries.json"
        self.data = path / "data.json"
        self.tokens = path / "tokens"
        self.identity = path / "identity.json"
        self.engine = path / "engine.json"
        self.anchors = path / "anchors"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tracking = path / "tracking"
        self.export = path / "export"
        self.adapter = path / "adapter"
        self.proof = path / "export.json"
        self.search = path / "search"
        self.race = path / "search" / "details.json"
        self.report = path / "report.html"
        self.heatmaps = path / "heatmaps.svg"
        self.summary = path / "summary.json"

    def insertions(self, stage: int) -> Path:
        """Where the insertion map of a stage lies."""
        return self.path / f"insertions-{stage}.jsonl"

    def gate(self, number: int) -> Path:
        """Where the verdict after the stage trained as `number`, repeats counted, lies."""
        return self.path / "gates" / f"{number}.json"

    def verdicts(self) -> list[Path]:
        """The verdicts of gates that there are, in the order of training."""
        return sorted((self.path / "gates").glob("*.json"), key=lambda path: int(path.stem))

    def gate_rows(self, name: str) -> Path:
        """Where the answers that a verdict rests on lie."""
        return self.path / "gates" / f"{name}.rows.jsonl"

    def evaluation(self, name: str) -> Path:
        """Where the evaluation called `name` lies."""
        return self.path / "eval" / f"{name}.json"

    def has_checkpoints(self) -> bool:
        """Whether there is work of training that must not be lost or mixed with another's."""
        return any(self.checkpoints.glob("step-*"))

    @contextlib.contextmanager
    def opened(self, recipe: Recipe) -> Iterator[None]:
        """Hold the folder for `recipe`, alone; it is created when it is not there.

        Raises `ConfigError` when another process holds it, when it holds other things, or when there are
        checkpoints of a recipe whose `shaping` differs, key by key. Without checkpoints the new recipe takes it over.
        """
        if self.path.exists() and (not self.path.is_dir() or (any(self.path.iterdir()) and not self._ours())):
            raise ConfigError(
                "run.not-a-run",
                "the output is a file, or a folder that longspan did not make",
                where=str(self.path),
                fix="name a new folder as output",
            )
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "run.locked",
                    "another process works in this run folder",
                    where=str(self.path),
                    fix="wait for it, or give this run another output",
                ) from None
            self._claim(recipe)
            yield

    def _ours(self) -> bool:
        return (self.path / ".lock").exists() or self.recipe.exists()

    def _claim(self, recipe: Recipe) -> None:
        if self.recipe.exists():
            differing = differences(Recipe.read(self.recipe).shaping, recipe.shaping)
            if differing and self.has_checkpoints():
                raise ConfigError(
                    "run.other-recipe",
                    f"this run folder was made by another recipe; {len(differing)} keys differ: "
                    + "; ".join(differing[:12]),
                    where=str(self.path),
                    fix="change them back, or give this recipe another output",
                )
            if differing:  # a first attempt that came to nothing: what it measured must not pass for this recipe's
                evaluations = self.evaluation("before"), self.evaluation("after")
                for stale in (self.metrics, *evaluations, *self.verdicts()):
                    with storage_errors(stale):
                        stale.unlink(missing_ok=True)
        write_json(self.recipe, recipe.plain())
        write_json(self.versions, versions())

    def mark(self, phase: str) -> Mark | None:
        """What is known of a phase; None when it never began."""
        path = self._mark_path(phase)
        return Mark(**read_json(path, error=ConfigError, code="run.mark")) if path.exists() else None

    def done(self, phase: str, inputs: Any, *, outputs: tuple[Path, ...] = ()) -> bool:
        """Whether the phase is done with these inputs and its `outputs` still exist."""
        mark = self.mark(phase)
        known = mark is not None and mark.done and mark.inputs == canonical_sha256(inputs)
        return known and all(path.exists() for path in outputs)

    def once(self, phase: str, inputs: Any, *, work: Callable[[], None], outputs: tuple[Path, ...] = ()) -> None:
        """Do the work of a phase unless it is done with the same `inputs`, a JSON value, and its `outputs` exist.

        The seconds of interrupted attempts with the same inputs are added up.
        """
        if self.done(phase, inputs, outputs=outputs):
            return
        mark = self.mark(phase)
        key = canonical_sha256(inputs)
        before = mark.seconds if mark is not None and mark.inputs == key and not mark.done else 0.0
        # Marked as begun first: a kill in mid-work must not leave the mark of other, older inputs.
        write_json(self._mark_path(phase), {"inputs": key, "seconds": before, "done": False})
        start = time.monotonic()
        done = False
        try:
            work()
            done = True
        finally:
            seconds = before + time.monotonic() - start
            write_json(self._mark_path(phase), {"inputs": key, "seconds": seconds, "done": done})

    def seconds(self) -> dict[str, float]:
        """Seconds that every phase that began took so far."""
        marks = {phase: self.mark(phase) for phase in PHASES}
        return {phase: mark.seconds for phase, mark in marks.items() if mark is not None}

    def _mark_path(self, phase: str) -> Path:
        return self.path / "done" / f"{phase}.json"


def versions() -> dict[str, str]:
    """Versions of the interpreter, the machine and the packages that decide numbers."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
