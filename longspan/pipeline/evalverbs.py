"""What `longspan eval` does besides evaluating a recipe's model: rows that are there, and models behind a server."""

from pathlib import Path
from typing import Any

from longspan.pipeline.evalrows import compare, compare_page, merge, rebuild
from longspan.pipeline.harness import run as run_harness
from longspan.pipeline.observer import SILENT, Observer, Stop, never
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.served import evaluate_server
from longspan.utils.errors import ConfigError

EVAL_VERBS = {
    "rebuild": "longspan eval rebuild ROWS KEY",
    "merge": "longspan eval merge INTO ROWS [ROWS ...]",
    "compare": "longspan eval compare FIRST SECOND [PAGE.html]",
    "server": "longspan eval server RECIPE URL MODEL",
    "harness": "longspan eval harness MODEL [WORDS OF lm_eval]",
}


def eval_verb(
    what: str, words: list[str], *, observer: Observer = SILENT, stop: Stop = never
) -> tuple[str, dict[str, Any]]:
    """Do one of `EVAL_VERBS`; what people read and what scripts read come back.

    Raises `ConfigError` when the words do not fit, and whatever the work itself raises.
    """
    wanted = {"rebuild": (2, 2), "merge": (2, 1000), "compare": (2, 3), "server": (3, 3), "harness": (1, 1000)}[what]
    if not wanted[0] <= len(words) <= wanted[1]:
        raise ConfigError(
            "cli.usage",
            f"eval {what} does not take {len(words)} words",
            where="eval",
            fix=EVAL_VERBS[what],
        )
    if what == "merge":
        found = merge(Path(words[0]), [Path(word) for word in words[1:]])
        return f"{found['added']} rows added, {found['total']} now\n", found
    if what == "rebuild":
        found = rebuild(Path(words[0]), words[1])
        return found["text"] + found.get("question", ""), found
    if what == "server":
        found = evaluate_server(Recipe.read(Path(words[0])), words[1], words[2], observer=observer, stop=stop)
        return "".join(f"{key}: {value}\n" for key, value in found.items()), found
    if what == "harness":
        run_harness(Path(words[0]), words[1:])
        return "", {"model": words[0]}
    first, second, *page = map(Path, words)
    found = compare_page(first, second, page=page[0]) if page else compare(first, second)
    told = "".join(_told(entry) for entry in found["differences"])
    return told + (f"wrote {page[0]}\n" if page else ""), found


def _told(entry: dict[str, Any]) -> str:
    interval = f"[{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]"
    points = f"{entry['task']} {entry['length']:,}: {100 * entry['difference']:+.1f} points {interval}"
    return f"{points}, p {entry['p_holm']:.3g} on {entry['contexts']} contexts\n"
