"""Rows of evaluations: the exact context of one, those of several machines together, two models compared."""

from pathlib import Path
from typing import Any

from longspan.data.store import TokenStore
from longspan.data.tokenize import load_tokenizer, plain_encode
from longspan.eval.desk import Material
from longspan.eval.evaluate import evaluation_of, task_of
from longspan.eval.rows import Row, Rows, counts_as_score, ids_sha256
from longspan.pipeline.rundir import versions
from longspan.probes import Branch, Context
from longspan.report.page import ReportData, write_report
from longspan.utils.errors import ConfigError, DataError
from longspan.utils.stats import Group, holm, paired, paired_p
from longspan.utils.values import canonical_sha256

# What a key is made from but for the model and its number formats.
QUESTION = ("task", "length", "context", "depth", "offset_tokens", "question", "gold_tokens", "seed")


def rebuild(path: Path, key: str) -> dict[str, Any]:
    """The context and the question of one row of a run folder's `eval/*.rows.jsonl`, as text and as ids.

    `key` may be the beginning of a key. Raises `DataError` when there is no such row, or when the texts, the tokenizer
    or the rule that made the context are no longer those of the row.
    """
    row = _row(path, key)
    material = _material(path, seed=row["spec"]["seed"])
    if material.text_id != row["spec"]["text"]:
        raise _changed("the held-out texts or their tokenizer are not those that the row was made from", path)
    task = task_of(row, where=str(path))
    context = task.rebuild(material, row["spec"]["place"])
    if ids_sha256(context.tokens) != row["context"]:
        raise _changed(
            "the context that comes out is another one: this version of longspan builds it differently", path
        )
    branch = _branch(context, row)
    asked: dict[str, Any] = {}
    if branch is not None:
        asked = {"question_tokens": list(branch.question), "gold_tokens": list(branch.answer)}
        asked["question"] = material.decode(list(branch.question))
    return {
        "row": row,
        "tokens": context.tokens.tolist(),
        "text": material.decode(context.tokens.tolist()),
        **asked,
    }


def merge(into: Path, others: list[Path]) -> dict[str, Any]:
    """Append the rows of other files that `into` lacks. Raises `DataError` for a file that holds no rows."""
    for other in others:
        if not other.is_file():
            raise DataError("eval.rows", "there is no such file of rows", where=str(other), fix="check the path")
    rows = Rows(into)
    return {"rows": str(into), "added": rows.merge([Rows(other) for other in others]), "total": sum(1 for _ in rows)}


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Second minus first on the contexts that both answered, by task and length, with p-values raised after Holm.

    Raises `DataError` when they share no two contexts.
    """
    sides = [_clusters(Rows(path)) for path in (first, second)]
    both = [key for key in sides[0] if key in sides[1] and len(sides[0][key].keys() & sides[1][key].keys()) > 1]
    if not both:
        raise DataError(
            "eval.nothing-shared",
            "the two have no two contexts of a task in common",
            where=f"{first}, {second}",
            fix="evaluate both with the same recipe, texts and seed",
        )
    values = {key: paired_p(sides[0][key], sides[1][key]) for key in both}
    raised = holm({f"{task}/{length}": p for (task, length), p in values.items()})
    found = []
    for task, length in both:
        difference, low, high = paired(sides[0][task, length], sides[1][task, length])
        contexts = len(sides[0][task, length].keys() & sides[1][task, length].keys())
        entry = {"task": task, "length": length, "difference": difference, "low": low, "high": high}
        found.append({**entry, "contexts": contexts, "p_holm": raised[f"{task}/{length}"]})
    return {"differences": found}


def compare_page(first: Path, second: Path, *, page: Path) -> dict[str, Any]:
    """What `compare` finds, and a page of it: both sides' grids, scores, losses and recall beside the differences.

    Raises as `compare` does, `DataError` for rows of several models, `StorageError` when the disk refuses.
    """
    found, names = compare(first, second), names_of(first, second)
    before, after = (
        evaluation_of(list(Rows(path)), name=name) for path, name in zip((first, second), names, strict=True)
    )
    data = ReportData(
        title=f"{names[0]} and {names[1]}",
        trained_length=None,
        length=None,
        recipe=None,
        before=before,
        after=after,
        model={names[0]: before.model, names[1]: after.model},
        differences=tuple(found["differences"]),
        versions=versions(),
    )
    write_report(page, data)
    return {**found, "page": str(page)}


def names_of(first: Path, second: Path) -> tuple[str, str]:
    """What two files of rows are called: by their names, with those of the folders around them where these agree."""
    paths = [path.resolve() for path in (first, second)]
    stems = [path.name.removesuffix(".jsonl").removesuffix(".rows") for path in paths]
    if stems[0] != stems[1]:
        return stems[0], stems[1]
    runs = [path.parent.parent.name if path.parent.name == "eval" else path.parent.name for path in paths]
    if runs[0] != runs[1]:
        return f"{runs[0]} {stems[0]}", f"{runs[1]} {stems[1]}"
    return f"{stems[0]} (first)", f"{stems[1]} (second)"


def short_differences(first: Path, second: Path) -> dict[str, tuple[float, float, float]]:
    """Second minus first on the questions of short benchmarks that both answered, and its 95 % interval: of every
    benchmark, and under the name `all` of all questions.

    Raises `ValueError` when they share fewer than two questions of one.
    """
    sides: list[dict[str, dict[str, Group]]] = []
    for path in (first, second):
        found = _clusters(Rows(path))
        sides.append({task: groups for (task, _), groups in found.items() if task.startswith("short/")})
    every = [{key: group for groups in side.values() for key, group in groups.items()} for side in sides]
    return {
        **{task: paired(sides[0][task], sides[1][task]) for task in sides[0] if task in sides[1]},
        "all": paired(*every),
    }


def changes(before: Path, after: Path) -> tuple[dict[str, Any], ...]:
    """What `compare` finds between the rows beside two evaluations; nothing where they share no two contexts."""
    rows = [path.with_suffix(".rows.jsonl") for path in (before, after)]
    if not all(path.exists() for path in rows):
        return ()
    try:
        return tuple(compare(*rows)["differences"])
    except DataError:
        return ()


def _clusters(rows: Rows) -> dict[tuple[str, int], dict[str, Group]]:
    """By task and length the sum of scores and the number of questions of every context.

    A context is known by its tokens, so that only the very same one is compared. Of several answers to one question, as
    of models or number formats that came one after the other, the last one counts.
    """
    last: dict[str, Row] = {}
    for row in rows:
        last[canonical_sha256([row.get(name) for name in QUESTION])] = row
    found: dict[tuple[str, int], dict[str, Group]] = {}
    for row in last.values():
        if counts_as_score(row):
            mine = found.setdefault((row["task"].removeprefix("grid/"), row["length"]), {})
            total, count = mine.get(row["context"], (0.0, 0.0))
            mine[row["context"]] = (total + row["score"], count + 1)
    return found


def _row(path: Path, key: str) -> Row:
    if not path.is_file():
        raise DataError("eval.rows", "there is no such file of rows", where=str(path), fix="check the path")
    found = [row for row in Rows(path) if row["key"].startswith(key)]
    if len(found) != 1:
        what = "no row" if not found else f"{len(found)} rows"
        fix = "give more of the key" if found else "take a key from the file"
        raise DataError("eval.no-row", f"{what} of this file begin with {key}", where=str(path), fix=fix)
    return found[0]


def _material(path: Path, *, seed: int) -> Material:
    """What the run folder that the rows lie in evaluates on."""
    folder = path.resolve().parent.parent
    if not (folder / "tokens" / "held_out").is_dir():
        raise ConfigError(
            "eval.no-run",
            "these rows do not lie in the eval/ of a run folder, whose texts are needed",
            where=str(path),
            fix="name the file inside its run folder",
        )
    store = TokenStore.open(folder / "tokens" / "held_out", verify=False)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return Material(
        documents=store,
        encode=plain_encode(tokenizer),
        decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
        seed=seed,
        text_id=text_sha256(store),
    )


def text_sha256(store: TokenStore) -> str:
    """Hash of the tokens, their documents and the tokenizer; files that were set aside do not change it."""
    files = {name: record.sha256 for name, record in store.manifest.files.items()}
    return canonical_sha256([store.manifest.origin.tokenizer_sha256, files])


def _branch(context: Context, row: Row) -> Branch | None:
    wanted = [
        b for b in context.branches if list(b.answer) == row["gold_tokens"] and b.item.question == row["question"]
    ]
    return wanted[0] if wanted else None


def _changed(what: str, path: Path) -> DataError:
    return DataError("eval.rebuilt-differs", what, where=str(path), fix="evaluate again; the rows then fit the texts")
