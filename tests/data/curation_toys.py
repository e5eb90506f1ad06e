"""Documents and whole curations small enough for a test."""

import json
import random
from pathlib import Path
from typing import Any

from longspan.data.curate import Curation, curated_documents, curated_settings
from longspan.data.filters.base import Tools
from longspan.data.settings import DataSettings
from longspan.data.sources import Quarantine, read_documents

COUNTED = {"kind": "length", "least_characters": 1}  # drops nothing


def words(count: int, *, seed: int) -> str:
    """Sentences of made-up words, of which hardly any run of two comes twice."""
    rng = random.Random(seed)
    made = [
        "".join(rng.choice("bdfgklmnprstv") + rng.choice("aeiou") for _ in range(rng.choice([2, 3, 4])))
        for _ in range(count)
    ]
    return " ".join(word + ("." if rng.random() < 0.1 else "") for word in made)


def pages(text: str, words_a_page: int) -> list[str]:
    """A text in pages of so many words."""
    found = text.split()
    return [" ".join(found[at : at + words_a_page]) for at in range(0, len(found), words_a_page)]


def settings_for(folder: Path, filters: list[dict[str, Any]], *, held_out: list[str], part_bytes: int) -> DataSettings:
    value = {
        "sources": [{"path": str(folder / "texts")}],
        "held_out": held_out,
        "curate": {"filters": filters, "part_bytes": part_bytes},
    }
    return DataSettings.model_validate_json(json.dumps(value))


def write_texts(folder: Path, documents: dict[str, str]) -> None:
    for name, text in documents.items():
        path = folder / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def texts_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "texts").rglob("*") if path.is_file()]


def finished(curation: Curation, tools: Tools) -> dict[str, Any]:
    """All that is left of a curation."""
    curation.protect(lambda done, total: None)
    for number in range(len(curation.rounds)):
        for part in curation.missing(number):
            curation.work(number, part, tools)
        curation.compare(number)
    return curation.finish()


def curated(
    folder: Path,
    documents: dict[str, str],
    filters: list[dict[str, Any]],
    *,
    tools: Tools | None = None,
    held_out: list[str] | None = None,
    by: int = 1,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The documents that a curation keeps, with its counts; `by` spreads them over more parts."""
    held = ["held/*", "*held-exam*"] if held_out is None else held_out
    write_texts(folder, documents)
    settings = settings_for(folder, filters, held_out=held, part_bytes=2_000_000 // by**8)
    counts = finished(Curation.opened(folder / "curated", settings, seen=[]), tools or Tools())
    after = curated_settings(folder / "curated", settings)
    found = read_documents(after.sources, max_document_bytes=after.max_document_bytes, quarantine=Quarantine())
    kept = {document.id: document.text for document in found}
    assert kept == {
        d.id: d.text for p in sorted((folder / "curated" / "documents").iterdir()) for d in curated_documents(p)
    }
    return kept, counts
