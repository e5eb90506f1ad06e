"""The verbs: each takes a recipe, does one part of the work that is not done yet, and says what came of it."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch

from longspan.data.build import Stores, build_stores
from longspan.data.hub import fetch_sources
from longspan.data.tokenize import separator_id
from longspan.eval.evaluate import check
from longspan.model.decoder import Decoder
from longspan.model.lora import merge_lora
from longspan.model.peft import save_adapter
from longspan.pipeline.canaryscores import canary_scores
from longspan.pipeline.curation import curate
from longspan.pipeline.engines import choices
from longspan.pipeline.evalrows import changes
from longspan.pipeline.evaluating import answer_here, evaluated
from longspan.pipeline.exportcheck import save_checked
from longspan.pipeline.figures import summary
from longspan.pipeline.gates import gate_lines, train_through
from longspan.pipeline.job import Job
from longspan.pipeline.material import material_of
from longspan.pipeline.observer import SILENT, Observer, Stop, never
from longspan.pipeline.prepared import (
    data_facts,
    insertions,
    length_lines,
    notes_on_data,
    set_aside,
    short_documents,
    stage_slots,
)
from longspan.pipeline.proof import SAMPLE_TOKENS, can_prove, logit_differences, round_weights
from longspan.pipeline.racing import compare as compare_settings
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import versions
from longspan.pipeline.searching import search as search_settings
from longspan.pipeline.texts import chat_format, curate_inputs, make_tokenizer, only_tokens, texts
from longspan.pipeline.verify import verify_here
from longspan.records import Evaluation
from longspan.report.heatmap import heatmaps_svg
from longspan.report.page import ReportData, write_report
from longspan.train.metrics import read_metrics
from longspan.utils.errors import ConfigError, LongspanError
from longspan.utils.files import read_json, sha256, storage_errors, write_atomic, write_json


def run(recipe: Recipe, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """The whole job; what is done already is not done again. The content of summary.json comes back.

    Raises `LongspanError` for whatever the user can mend, `Interrupted` when stopped: run it again to go on.
    """
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        if not job.leads:
            return follow(job, "before", "train", "after")
        _require_room(job)
        _prepare(job)
        _evaluate(job, "before")
        _train(job)
        _evaluate(job, "after")
        _canaries(job)
        _export(job)
        return _report(job)


def train(recipe: Recipe, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Prepare the data and train; the last step's figures come back. Raises as `run` does."""
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        if not job.leads:
            return follow(job, "train")
        _require_room(job)
        _prepare(job)
        _train(job)
        metrics = read_metrics(job.folder.metrics)
        last = metrics[-1] if metrics else job.newest().progress  # without its diary a trained model is still one
        loss = metrics[-1].loss if metrics else math.nan
        return {
            "run": str(job.folder.path),
            "step": last.step,
            "tokens": last.tokens,
            "loss": loss if math.isfinite(loss) else None,  # JSON has no word for NaN
        }


def verify(recipe: Recipe, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Compare the meshes of the recipe with one rank on a slice of its model and data. Raises as `run` does.

    Raises `LongspanError` (`verify.differs`) when one does not compute the same.
    """
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        if job.leads:
            _prepare(job)
        job.meet("verify")
        tables = verify_here(job, stage_slots(job))
        for table in tables:
            job.observer.tell(table)
        return {"run": str(job.folder.path), "compared": len(tables)}


def data(recipe: Recipe, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Prepare the data alone: filter, tokenize, try every stage; the counts come back. Raises as `run` does."""
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        _prepare(job)
        for line in length_lines(job):
            observer.tell(line)
        return {"run": str(job.folder.path), **read_json(job.folder.data)}


def evaluate(recipe: Recipe, when: str, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Evaluate the model `before` or `after` training; its figures come back. Raises as `run` does."""
    if when == "before" and recipe.model.new is not None:
        raise ConfigError(
            "eval.new-model",
            "a new model has random weights before training",
            where="recipe: model.new",
            fix="evaluate it after training",
        )
    if not recipe.eval.tasks:
        raise ConfigError(
            "eval.no-tasks", "the recipe names nothing to evaluate", where="recipe: eval", fix="add [[eval.tasks]]"
        )
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        if not job.leads:
            return follow(job, when)
        if when == "after":
            job.require_trained()
        _prepare(job)
        _evaluate(job, when)
        found = {when: _evaluation(job, when)}
        facts = {"run": str(job.folder.path), "evaluation": str(job.folder.evaluation(when))}
        figures = summary(before=found.get("before"), after=found.get("after"))
        return facts | {key: value for key, value in figures.items() if key.endswith(when)}


def export(recipe: Recipe, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Write the trained model as a Hugging Face folder, adapters merged, and prove it. Raises as `run` does."""
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        _export(job)
        proof = read_json(job.folder.proof)
        adapter = {} if recipe.lora is None else {"adapter": str(job.folder.adapter)}
        return {"run": str(job.folder.path), "export": str(job.folder.export), **adapter, **proof}


def report(recipe: Recipe, *, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Write the page and summary.json from what the run folder holds. Raises as `run` does."""
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        return _report(job)


def search(recipe: Recipe, *, race: bool, observer: Observer = SILENT, stop: Stop = never) -> dict[str, Any]:
    """Search position settings for the recipe's model, or `race` strategies. Raises as `run` does."""
    with Job.opened(recipe, observer=observer, stop=stop) as job:
        _prepare(job)
        return compare_settings(job) if race else search_settings(job)


def _once(job: Job, phase: str, inputs: Any, work: Any, *outputs: Path) -> None:
    job.poll()
    job.observer.phase(phase, skipped=job.folder.done(phase, inputs, outputs=outputs))
    job.folder.once(phase, inputs, work=work, outputs=outputs)


def _require_room(job: Job) -> None:
    """Raise `LongspanError` (`plan.memory`) now when a stage that is still to be trained cannot fit this machine."""
    mark = job.folder.mark("train")
    if mark is None or not mark.done:
        choices(job)


def _prepare(job: Job) -> None:
    """Texts become tokens, and every stage and task is tried on them.

    Raises `ConfigError` when there are checkpoints, and they are of other tokens.
    """

    moved = only_tokens(job)

    def build() -> None:
        tokenizer = make_tokenizer(job)
        stores = build_stores(
            job.folder.tokens,
            texts(job),
            tokenizer=tokenizer,
            vocabulary=job.start[0].vocabulary,
            separator=separator_id(tokenizer),
            chat=chat_format(job),
            progress=lambda done, total: job.progress(done, total, "bytes of text"),
        )
        for warning in (*set_aside(stores), *short_documents(job.recipe, stores)):
            job.observer.warn(warning)

    def work() -> None:
        if moved:
            job.observer.tell("the texts are not here: their tokens in the run folder serve")
            Stores.open(job.folder.tokens)  # every hash of them
        else:
            build()
        for index, rows in enumerate(stage_slots(job)):
            try:
                rows.check()
            except LongspanError as error:
                if error.where.startswith("mix."):
                    error.where = f"recipe: stages.{index}.{error.where}"
                raise
        _check_tasks(job)
        write_json(job.folder.data, data_facts(job))

    if not moved:
        _load(job)
    if job.recipe.data.curate is not None and not moved:
        _once(job, "curate", curate_inputs(job), lambda: curate(job), job.folder.curated / "manifest.json")
    _once(job, "prepare", job.prepare_inputs, work, job.folder.tokens, job.folder.tokenizer, job.folder.data)
    job.require_same()


def _load(job: Job) -> None:
    """Bring what sources name elsewhere."""
    sources = job.recipe.data.sources
    if any((source.stream or source.hub) and not source.path.exists() for source in sources):
        job.observer.phase("load", skipped=False)
    fetch_sources(sources, progress=lambda done, total: job.progress(done, total, "rows streamed"))


def _check_tasks(job: Job) -> None:
    """Try the tasks of the evaluation, and those of every gate, on the held-out texts."""
    gates = [stage.gate.tasks for stage in job.recipe.stages if stage.gate is not None]
    for tasks in (*gates, job.recipe.eval.tasks):
        check(tasks, material_of(job))


def _evaluate(job: Job, when: str) -> None:
    """One evaluation, resumable row by row; none without tasks, nor of random weights."""
    path = job.folder.evaluation(when)
    if not job.recipe.eval.tasks or (when == "before" and job.recipe.model.new is not None):
        job.say(when, "skip")
        return
    inputs = job.before_inputs if when == "before" else job.after_inputs
    job.say(when, "skip" if job.folder.done(when, inputs, outputs=(path,)) else "go")

    def work() -> None:
        decoder, identity = (job.base(), job.base_identity) if when == "before" else job.trained()
        rows_path = path.with_suffix(".rows.jsonl")
        found = evaluated(job, decoder, identity, job.recipe.eval.tasks, topic=when, rows_path=rows_path)
        write_json(path, found.to_json())

    _once(job, when, inputs, work, path)


def _train(job: Job) -> None:
    """All stages, from the newest checkpoint on, on all ranks."""
    inputs = job.train_inputs
    job.say("train", "skip" if job.folder.done("train", inputs) else "go")
    _once(job, "train", inputs, lambda: train_through(job))


def follow(job: Job, *phases: str) -> dict[str, Any]:
    """What the ranks do that do not lead: they wait for the phases that all work on. They have nothing to tell."""
    for phase in phases:
        if job.hear(phase) == "skip":
            continue
        if phase == "train":
            train_through(job)
            continue
        answer_here(job, job.base() if phase == "before" else job.trained()[0], topic=phase)
    return {}


def _canaries(job: Job) -> None:
    """What the trained model knows of the planted pairs; nothing without them."""
    if all(stage.canaries is None for stage in job.recipe.stages):
        return

    def work() -> None:
        decoder, _ = job.trained()
        filler = _sample(job).tolist()
        write_json(job.folder.canaries, canary_scores(decoder.eval(), insertions(job), filler))

    _once(job, "canaries", job.train_inputs, work, job.folder.canaries)


def _export(job: Job) -> None:
    """The Hugging Face folder, and that of the adapters, written beside their places, proven, then moved there."""
    base, written = job.recipe.model.folder, [job.folder.export]
    if job.recipe.lora is not None:
        written.append(job.folder.adapter)
    fresh = {final: final.with_name(f".{final.name}-new") for final in written}

    def work() -> None:
        decoder, _ = job.trained()
        dtype = getattr(torch, job.recipe.export.dtype)
        for folder in fresh.values():
            with storage_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
        if job.folder.adapter in fresh:
            save_adapter(decoder, fresh[job.folder.adapter], base=str(base))
            merge_lora(decoder)
        save_checked(decoder, fresh[job.folder.export], job.recipe.export, warn=job.observer.warn)
        write_json(job.folder.proof, _proven(job, fresh[job.folder.export], decoder, dtype))
        for final, folder in fresh.items():
            with storage_errors(final):
                shutil.rmtree(final, ignore_errors=True)
                folder.rename(final)

    job.require_trained()
    window = job.recipe.export.window_result
    seen = None if window is None else read_json(window, error=ConfigError, code="export.window")
    inputs = {
        **job.export_inputs,
        "window": seen,
        "provable": can_prove(),
    }  # once transformers is there, it is written and checked
    _once(job, "export", inputs, work, *written, job.folder.proof)


def _proven(job: Job, folder: Path, decoder: Decoder, dtype: torch.dtype) -> dict[str, Any]:
    if not can_prove():
        job.observer.warn("the export is not checked: install transformers and export again to check it")
        return {"export_max_logit_diff": None}
    round_weights(decoder, dtype)
    return logit_differences(folder, decoder, _sample(job))


def _sample(job: Job) -> torch.Tensor:
    """The beginning of the longest document."""
    store = max((job.stores().train, job.stores().held_out), key=lambda store: max(store.lengths, default=0))
    document = int(store.lengths.argmax())
    count = min(SAMPLE_TOKENS, int(store.lengths[document]), job.plans[-1].length)
    return torch.from_numpy(store.read(document, 0, count))


def _evaluation(job: Job, when: str) -> Evaluation | None:
    path = job.folder.evaluation(when)
    return Evaluation.from_json(read_json(path)) if job.recipe.eval.tasks and path.exists() else None


def _report(job: Job) -> dict[str, Any]:
    """The page and the summary, from whatever is there."""
    folder, (shape, frequencies) = job.folder, job.start
    parts = (folder.metrics, folder.evaluation("before"), folder.evaluation("after"), folder.proof, folder.race)
    proof = read_json(folder.proof) if folder.proof.exists() else {}
    notes = (*notes_on_data(job), *gate_lines(folder))

    def work() -> None:
        before, after = _evaluation(job, "before"), _evaluation(job, "after")
        phases = {phase: seconds for phase, seconds in folder.seconds().items() if phase != "report"}
        model = {
            "start": str(job.recipe.model.folder or "new"),
            "family": shape.family,
            "parameters": shape.parameters,
            "layers": shape.layers,
            "trained_length": frequencies.length,
            "length": job.recipe.stages[-1].reach,
        }
        page = ReportData(
            title=job.recipe.name,
            trained_length=frequencies.length,
            length=job.recipe.stages[-1].reach,
            recipe=job.recipe.plain(),
            metrics=tuple(read_metrics(folder.metrics)),
            before=before,
            after=after,
            model=model,
            export={"dtype": job.recipe.export.dtype, **proof} if proof else {},
            seconds=phases,
            versions=versions(),
            notes=notes,
            differences=changes(folder.evaluation("before"), folder.evaluation("after")),
            race=read_json(folder.race) if folder.race.exists() else None,
        )
        write_report(folder.report, page)
        maps = heatmaps_svg([evaluation for evaluation in (before, after) if evaluation is not None])
        write_atomic(folder.heatmaps, maps.encode())
        facts = {
            "name": job.recipe.name,
            "model": folder.export.name if folder.export.exists() else None,
            "report": folder.report.name,
            "start": model,
            "tokens": job.total_tokens,
            **summary(before=before, after=after),
            "export_max_logit_diff": proof.get("export_max_logit_diff"),
            "float32_angles_logit_diff": proof.get("float32_angles_logit_diff"),
            "seconds": round(sum(phases.values()), 3),
            "phases": {phase: round(seconds, 3) for phase, seconds in phases.items()},
        }
        write_json(folder.summary, facts)

    inputs = {
        "recipe": job.recipe.plain(),
        "notes": notes,
        **{part.name: sha256(part) for part in parts if part.exists()},
    }
    _once(job, "report", inputs, work, folder.report, folder.heatmaps, folder.summary)
    return {"run": str(folder.path), **read_json(folder.summary)}
