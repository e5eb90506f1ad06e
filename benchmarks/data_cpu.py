"""Measures the preparation of data on a CPU, each measurement in a process of its own, beside the usual ways.

    python benchmarks/data_cpu.py documents --tokenizer MODEL --text FILE [--peer-python PYTHON]
    python benchmarks/data_cpu.py corpus --tokenizer MODEL --source NAME=FOLDER … [--files NAME=FOLDER …] [--workers N]
    python benchmarks/data_cpu.py naive --tokenizer MODEL --source NAME=FOLDER … --way WAY [--limit-gib 12]

`documents` encodes the first 1, 10 and 100 MB of a text as one document: piece by piece, with one call of `tokenizers`,
and with `datasets.map` (by a Python that has it). `corpus` filters and tokenizes the folders below each source, every
one joined into one document, and the files of others as they are; `--filters` with nothing behind it only tokenizes.
`naive` gives the same documents to the usual ways: all of them in one call, or `datasets.map`, within a limit of
memory; a way that the limit ends has a line that says so. One JSON line a measurement goes to --results.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("longspan", "tokenizers", "pyarrow", "numpy", "datasets", "datatrove")
WAYS = ("pieces", "one-call", "datasets-map")
NAIVE_WAYS = ("all-at-once", "datasets-map-all")


def read_text(path: Path, size_bytes: int) -> str:
    with path.open("rb") as file:
        return file.read(size_bytes).decode("utf-8", "ignore")


def pieces(tokenizer_path: Path, text: str) -> int:
    from longspan.data.tokenize import check_tokenizer, encode_pieces, load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    check_tokenizer(tokenizer, text[:20_000])
    with tempfile.TemporaryFile() as file:  # where a store has its ids, too: on disk
        return sum(file.write(part.data) // 4 for part in encode_pieces(text, tokenizer))


def one_call(tokenizer_path: Path, text: str) -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # names of special tokens inside a text are text, as they are for us
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def datasets_map(tokenizer_path: Path, text: str) -> int:
    from datasets import Dataset, disable_caching
    from tokenizers import Tokenizer

    disable_caching()
    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # names of special tokens inside a text are text, as they are for us

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids for e in tokenizer.encode_batch(batch["text"], add_special_tokens=False)]}

    found = Dataset.from_dict({"text": [text]}).map(encode, batched=True, remove_columns=["text"])
    return len(found[0]["ids"])


def joined_texts(given: argparse.Namespace) -> list[str]:
    """The documents of `corpus` without its reader: the UTF-8 files of each folder below a source, or single files."""
    found = []
    for pair in given.source:
        for folder in sorted(Path(pair.split("=", 1)[1]).iterdir()):
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
            found.append("\n\n".join(f"// FILE {path.name}\n{text}" for path in files if (text := plain_text(path))))
    for pair in given.files:
        files = [p for p in sorted(Path(pair.split("=", 1)[1]).rglob("*")) if p.is_file() and not p.is_symlink()]
        found += [text for path in files if (text := plain_text(path))]
    return [text for text in found if text]


def plain_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text else text


def all_at_once(tokenizer_path: Path, texts: list[str]) -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return sum(len(found.ids) for found in tokenizer.encode_batch(texts, add_special_tokens=False))


def datasets_map_all(tokenizer_path: Path, texts: list[str]) -> int:
    from datasets import Dataset
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [e.ids for e in tokenizer.encode_batch(batch["text"], add_special_tokens=False)]}

    with tempfile.TemporaryDirectory() as folder:
        rows = Dataset.from_generator(lambda: ({"text": text} for text in texts), cache_dir=folder)
        found = rows.map(encode, batched=True, batch_size=64, remove_columns=["text"])
        return sum(len(row) for batch in found.iter(64) for row in batch["ids"])


def naive(given: argparse.Namespace) -> dict[str, Any]:
    """One usual way on all documents, in a child under a limit of memory, so that its end has a line, too."""
    words = [sys.executable, __file__, "naive-child", *sys.argv[2:]]
    start, used = time.perf_counter(), cpu_seconds()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    if not found:
        cause = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
        found = {"tokens": None, "ended": f"{cause} at the limit of {given.limit_gib} GiB"}
        found["text_bytes"] = sum(len(text.encode()) for text in joined_texts(given))
    return {
        "way": f"corpus, {given.way}",
        **found,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu_seconds() - used, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def naive_child(given: argparse.Namespace) -> dict[str, Any]:
    limit_bytes = round(given.limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    texts = joined_texts(given)
    work = {"all-at-once": all_at_once, "datasets-map-all": datasets_map_all}[given.way]
    return {
        "text_bytes": sum(len(text.encode()) for text in texts),
        "documents": len(texts),
        "tokens": work(given.tokenizer, texts),
    }


def document(given: argparse.Namespace) -> dict[str, Any]:
    """One way on one document, in this process."""
    text = read_text(given.text, given.size_bytes)
    work = {"pieces": pieces, "one-call": one_call, "datasets-map": datasets_map}[given.way]
    before_bytes = peak_bytes()
    start, used = time.perf_counter(), cpu_seconds()
    tokens = work(given.tokenizer, text)
    return {
        "way": given.way,
        "text": given.text.name,
        "text_bytes": len(text.encode()),
        "tokens": tokens,
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(cpu_seconds() - used, 3),
        "peak_bytes": peak_bytes(),
        "before_bytes": before_bytes,
    }


def corpus(given: argparse.Namespace) -> dict[str, Any]:
    """Filters and stores of a corpus, in this process and, with more workers, in theirs."""
    from longspan.pipeline import stages
    from longspan.pipeline.recipe import Recipe

    sources = [("repositories", *source.split("=", 1)) for source in given.source]
    sources += [("files", *source.split("=", 1)) for source in given.files]
    curate = {
        "filters": [{"kind": kind} for kind in given.filters],
        "executor": {"kind": "local", "workers": given.workers},
    }
    value = {
        "name": "corpus",
        "output": str(given.output),
        "model": {"folder": str(given.tokenizer)},
        "data": {
            "sources": [{"name": name, "path": path, "documents": kind} for kind, name, path in sources],
            "held_out": list(given.held_out),
            "curate": curate if given.filters else None,
        },
        "stages": [
            {"length": 8192, "tokens": 8192, "batch_tokens": 8192, "learning_rate": 1e-5, "rope": {"kind": "yarn"}}
        ],
        "device": "cpu",
    }
    start, used = time.perf_counter(), cpu_seconds()
    facts = stages.data(Recipe.from_plain(value, folder=Path.cwd(), where="benchmark"))
    seconds, used_seconds, own_peak_bytes = time.perf_counter() - start, cpu_seconds() - used, peak_bytes()
    marks = {path.stem: json.loads(path.read_text())["seconds"] for path in (given.output / "done").glob("*.json")}
    aside = {reason: {"count": count} for reason, count in facts["set_aside"].items()}
    curation = facts.get("curation", {"dropped": {}, "set_aside": aside})
    return {
        "way": f"corpus, workers {given.workers}",
        "filters": list(given.filters),
        "text_bytes": text_bytes(given),
        "tokens": facts["tokens"] + facts["held_out_tokens"],
        "documents": facts["documents"] + facts["held_out_documents"],
        "longest_document_tokens": facts["longest_document_tokens"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used_seconds, 1)
        if given.workers == 1
        else None,  # executors do not wait for all of theirs
        "curate_seconds": round(marks.get("curate", 0.0), 1),
        "prepare_seconds": round(marks["prepare"], 1),
        "peak_bytes": own_peak_bytes,
        "children_peak_bytes": 0 if given.workers == 1 else None,
        "dropped": {kind: sum(f["documents"] for f in fates.values()) for kind, fates in curation["dropped"].items()},
        "set_aside": {reason: entry["count"] for reason, entry in curation["set_aside"].items()},
    }


def text_bytes(given: argparse.Namespace) -> int:
    """Bytes of UTF-8 in the documents that were tokenized, counted on its own after the measurement."""
    from longspan.data.curate import curated_settings
    from longspan.data.settings import DataSettings
    from longspan.data.sources import Quarantine, read_documents
    from longspan.pipeline.recipe import Recipe

    recipe = Recipe.read(given.output / "recipe.json")
    settings: DataSettings = recipe.data
    if settings.curate is not None:
        settings = curated_settings(given.output / "curated", settings)
    found = read_documents(settings.sources, max_document_bytes=settings.max_document_bytes, quarantine=Quarantine())
    return sum(document.size_bytes for document in found)


def cpu_seconds() -> float:
    """Processor time of this process and of those that it waited for: what a busy machine does not change."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(entry.ru_utime + entry.ru_stime for entry in used)


def peak_bytes() -> int:
    """The most memory that this process had, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def line(found: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        **found,
        "mb_per_second": None if "ended" in found else round(found["text_bytes"] / 1e6 / found["seconds"], 3),
        "tokenizer": given.tokenizer.name,
        "hardware": f"{os.cpu_count()} CPU cores, shared",
        "load_1_minute": round(os.getloadavg()[0], 2),
        "versions": versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
    }


def in_children(given: argparse.Namespace) -> None:
    """Every way at every size, one process after the other, so that peaks are their own."""
    for size_bytes in given.sizes:
        for way in WAYS:
            python = given.peer_python if way == "datasets-map" else sys.executable
            if python is None:
                continue
            words = ["one", "--way", way, "--size-bytes", str(size_bytes), "--text", str(given.text)]
            words += ["--tokenizer", str(given.tokenizer), "--results", str(given.results)]
            subprocess.run(
                [python, __file__, *words], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("documents", "corpus", "naive", "naive-child", "one"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with a tokenizer.json")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "data.jsonl")
    parser.add_argument("--text", type=Path, help="the document of `documents`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--peer-python", help="a Python that has `datasets`")
    parser.add_argument(
        "--way", choices=(*WAYS, *NAIVE_WAYS), help="of `naive`, and of `one`, which `documents` starts"
    )
    parser.add_argument("--size-bytes", type=int, help="of `one`")
    parser.add_argument("--source", action="append", default=[], help="NAME=FOLDER, each folder below it one document")
    parser.add_argument("--files", action="append", default=[], help="NAME=FOLDER, each file below it one document")
    parser.add_argument("--limit-gib", type=float, default=12.0, help="of `naive`: address space that it may have")
    parser.add_argument("--held-out", nargs="*", default=[], help="of `corpus`: globs over ids")
    parser.add_argument("--filters", nargs="*", default=["length", "minhash"], help="of `corpus`")
    parser.add_argument("--workers", type=int, default=1, help="of `corpus`")
    parser.add_argument("--output", type=Path, help="of `corpus`: its run folder")
    given = parser.parse_args()
    if given.what == "documents":
        in_children(given)
        return
    if given.what == "naive-child":
        print(json.dumps(naive_child(given)))
        return
    found = line({"corpus": corpus, "naive": naive, "one": document}[given.what](given), given)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
