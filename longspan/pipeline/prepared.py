"""What preparing the data came to, in words for people and numbers for scripts."""

import json
from collections.abc import Sequence
from typing import Any

from longspan.data.build import Stores
from longspan.data.canaries import CanarySettings, Insertion, WithCanaries, planned
from longspan.data.curate import MANIFEST
from longspan.data.curricula.base import Slots, StageText
from longspan.data.tokenize import plain_encode
from longspan.pipeline.job import Job
from longspan.pipeline.recipe import MOST_STAGES, Recipe
from longspan.pipeline.texts import chat_format, data_sha256
from longspan.utils.errors import DataError
from longspan.utils.files import read_json, write_atomic
from longspan.utils.values import canonical_sha256

HARMLESS = ("hidden", "link-inside")  # set aside by rule, without anything amiss


def set_aside(stores: Stores) -> list[str]:
    """What of the sources was not taken, a line for each reason."""
    found = stores.train.manifest.origin.quarantine
    return [
        f"{entry.count:,} set aside as {reason}: {_named(entry.first, entry.count)}"
        for reason, entry in found.items()
        if reason not in HARMLESS
    ]


def short_documents(recipe: Recipe, stores: Stores) -> list[str]:
    """A word of warning when no document is as long as the longest rows: nothing in the text then reaches so far."""
    wanted = max(part.length or stage.length for stage in recipe.stages for part in stage.mix)
    longest = int(max(stores.train.lengths)) - 1  # without its separator
    if longest >= wanted:
        return []
    return [f"rows of {wanted:,} tokens will hold several documents; the longest has {longest:,}"]


def stage_slots(job: Job) -> list[Slots]:
    """The rows of every stage, in the order of its curriculum, with its canaries planted."""
    return _slots(job, [(stage, stage) for stage in range(len(job.recipe.stages))])


def round_slots(job: Job) -> list[Slots]:
    """The rows of every stage in the order of training; one that its gate has sent back gets others."""
    order = job.round_stages
    keys = [stage + MOST_STAGES * order[:number].count(stage) for number, stage in enumerate(order)]
    return _slots(job, list(zip(order, keys, strict=True)))


def _slots(job: Job, wanted: Sequence[tuple[int, int]]) -> list[Slots]:
    """The rows of each (stage, key); the key decides what is drawn."""
    store, encode, chat = job.stores().train, plain_encode(job.tokenizer()), chat_format(job)
    found: list[Slots] = []
    for number, key in wanted:
        stage, plan = job.recipe.stages[number], job.plans[number]
        text = StageText(
            store=store,
            length=stage.length,
            mix=stage.mix,
            steps=plan.steps,
            slots_per_step=plan.rows_per_step,
            seed=job.recipe.seed,
            stage=key,
            encode=encode,
            answers=None if chat is None else chat.answers,
        )
        slots = stage.curriculum.slots(text)
        if stage.canaries is not None:
            slots = WithCanaries(slots, _insertions(job, stage.canaries, slots, text))
        found.append(slots)
    return found


def _insertions(job: Job, settings: CanarySettings, slots: Slots, text: StageText) -> tuple[Insertion, ...]:
    """The insertion map of a stage, made once and kept in the run folder, a line an insertion."""
    path = job.folder.insertions(text.stage)
    question = canonical_sha256(
        [
            settings.model_dump(mode="json"),
            job.recipe.shaping["stages"][text.stage],
            job.recipe.seed,
            text.store.manifest.sha256,
        ]
    )
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if lines and json.loads(lines[0]) == {"question": question}:
        return tuple(Insertion.model_validate_json(line) for line in lines[1:])
    found = planned(settings, slots, text, vocabulary=job.start[0].vocabulary)
    write_atomic(
        path,
        "".join(
            f"{line}\n" for line in [json.dumps({"question": question}), *(entry.model_dump_json() for entry in found)]
        ).encode(),
    )
    return found


def insertions(job: Job) -> dict[int, tuple[Insertion, ...]]:
    """The insertion maps of the stages that have canaries, by stage."""
    return {index: slots.insertions for index, slots in enumerate(stage_slots(job)) if isinstance(slots, WithCanaries)}


def told(job: Job) -> list[str]:
    """What became of the documents of a curation, a line each; nothing without filters."""
    if job.recipe.data.curate is None:
        return []
    found = _manifest(job)
    read = sum(found["read"].values())
    aside = sum(entry["count"] for entry in found["set_aside"].values())
    lines = [
        f"{found['kept_documents']:,} of {read:,} documents kept for training ({found['kept_bytes']:,} bytes), "
        f"{found['held_out_documents']:,} held out, {aside:,} set aside"
    ]
    for reason, entry in found["set_aside"].items():
        if reason in HARMLESS:
            continue
        lines.append(f"set aside as {reason}: {entry['count']:,}, {_named(entry['first'], entry['count'])}")
    for what in ("dropped", "changed"):
        for kind, reasons in found[what].items():
            for reason, entry in reasons.items():
                names = _named(entry["first"], entry["documents"])
                lines.append(f"{kind} {what} {entry['documents']:,}, {reason} ({entry['bytes']:,} bytes): {names}")
    return lines


def notes_on_data(job: Job) -> tuple[str, ...]:
    """All that a report says of the data."""
    if not job.folder.data.exists():
        return ()
    return (*told(job), *set_aside(job.stores()), *length_lines(job), *canary_lines(job))


def length_lines(job: Job) -> list[str]:
    """How long the documents in the rows of each stage are, and how often its parts go through theirs, a line each."""
    if not job.folder.data.exists():
        return []
    found = read_json(job.folder.data, error=DataError, code="data.facts")
    return [
        f"stage {number}, rows of {stage['length']:,} tokens: documents in them have {stage['mean_length_tokens']:,} "
        f"in the mean, tokens have {stage['mean_context_tokens']:,} before them, attention costs "
        f"{stage['attention_share']:.1%} of that of whole rows; times through the documents: "
        + ", ".join(f"{times:g}" for times in stage["repeats"])
        for number, stage in enumerate(found["stages"])
    ]


def canary_lines(job: Job) -> list[str]:
    """What the trained model knows of the planted pairs, a line for each group and number of repeats."""
    if not job.folder.canaries.exists():
        return []
    return [
        f"canaries of stage {entry['stage']}, {entry['group']}, planted {entry['repeats']} times: the value is "
        f"likelier after its key than after foils by {entry['advantage_nats']:.2f} nats (pairs: {entry['pairs']})"
        for entry in read_json(job.folder.canaries, error=DataError, code="data.canaries")
    ]


def _named(first: Sequence[str], count: int) -> str:
    return ", ".join(first) + (", …" if count > len(first) else "")


def _manifest(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = read_json(job.folder.curated / MANIFEST, error=DataError, code="curate.manifest")
    return found


def data_facts(job: Job) -> dict[str, Any]:
    """What was prepared: documents and tokens of both stores, and the counts of the curation."""
    stores = job.stores()
    facts: dict[str, Any] = {
        "made_as": data_sha256(job),
        "documents": len(stores.train),
        "tokens": stores.train.tokens,
        "longest_document_tokens": int(max(stores.train.lengths)),
        "held_out_documents": len(stores.held_out),
        "held_out_tokens": stores.held_out.tokens,
        "set_aside": {reason: entry.count for reason, entry in stores.train.manifest.origin.quarantine.items()},
    }
    facts["stages"] = [
        {"length": plan.length, **slots.lengths().facts(plan.length), "repeats": [round(r, 3) for r in slots.repeats()]}
        for plan, slots in zip(job.plans, stage_slots(job), strict=True)
    ]
    return facts if job.recipe.data.curate is None else facts | {"curation": _manifest(job)}
