"""Curation of a recipe's texts: the passes, the executor, and the counts for people."""

import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from longspan.data.curate import Curation
from longspan.data.executors.base import STOP, Tasks
from longspan.data.executors.local import Local
from longspan.data.filters.dependency import Dependency
from longspan.pipeline.job import Job
from longspan.pipeline.parts import filter_tools
from longspan.pipeline.prepared import told
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.texts import curate_inputs
from longspan.utils.errors import ConfigError, DataError, Interrupted
from longspan.utils.files import storage_errors


def curate(job: Job) -> None:
    """Filter the documents of a job's sources, part by part; parts that are done are not done again.

    Raises `DataError` and `ConfigError` for what the user can mend, `Interrupted` when stopped.
    """
    settings, folder = job.recipe.data, job.folder.curated
    _require(job.recipe)
    curation = Curation.opened(folder, settings, seen=curate_inputs(job))
    if curation.done:
        return
    curation.protect(lambda done, total: job.progress(done, total, "bytes read for evaluation texts"))
    for number in range(len(curation.rounds)):
        _pass(job, curation, number)
        curation.compare(number)
    curation.finish()
    for line in told(job):
        job.observer.tell(line)


def _pass(job: Job, curation: Curation, number: int) -> None:
    """All parts of one pass that are not done yet."""
    assert job.recipe.data.curate is not None
    executor, missing = job.recipe.data.curate.executor, curation.missing(number)
    sizes = [curation.part_bytes(part) for part in range(curation.parts)]
    what = f"bytes of files, pass {number + 1} of {len(curation.rounds)}"

    def done_bytes() -> int:
        return sum(sizes) - sum(sizes[part] for part in curation.missing(number))

    if not missing:
        return
    if isinstance(executor, Local) and executor.workers == 1:
        tools = filter_tools(job.recipe)
        for part in missing:
            before = done_bytes()
            curation.work(number, part, tools, progress=functools.partial(_heard, job, before, sum(sizes), what))
        return

    def tell() -> None:
        job.observer.progress(done_bytes(), total=sum(sizes), what=what)

    logs = curation.folder / f"logs-{number}"
    with storage_errors(logs):
        logs.mkdir(exist_ok=True)
        (logs / STOP).unlink(missing_ok=True)
    command = (sys.executable, "-m", "longspan", "part", str(job.folder.recipe), str(number))
    for again in (False, True):  # a worker may be killed for memory; what failed alone may do with all of it
        tasks = Tasks(numbers=curation.missing(number), command=command, folder=logs)
        try:
            _watched(job, functools.partial(executor.run, tasks), stop_file=logs / STOP, tell=tell)
        except DataError as error:
            if again:
                raise
            job.observer.warn(f"{error.what}; the parts that are missing are tried once more")
        left = curation.missing(number)
        if not left:
            return
    raise DataError(
        "curate.part-failed",
        f"{len(left)} parts of the curation came to no end, the first is {left[0]}",
        where=str(logs),
        fix="read the log, mend the cause, and run the same command again: parts that are done stay done",
    )


def _heard(job: Job, before: int, total: int, what: str, done: int, _: int) -> None:
    """Progress within a part; raises `Interrupted` when the run was asked to stop."""
    # Texts out of compressed files have more bytes than the files; nothing is done before its part is.
    job.progress(min(total - 1, before + done), total, what)


def _watched(job: Job, run: Callable[[], None], *, stop_file: Path, tell: Callable[[], None]) -> None:
    """Run an executor in a thread, so that a stop is noticed: parts at work end, no other begins."""
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failure.append(error)

    thread = threading.Thread(target=guarded, name="executor", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=1.0)
        tell()
        if job.stop():
            stop_file.touch()
    if failure:
        raise failure[0]
    if job.stop():
        raise Interrupted("the parts that are done are saved")


def _require(recipe: Recipe) -> None:
    assert recipe.data.curate is not None
    recipe.data.curate.executor.require()
    for index, entry in enumerate(recipe.data.curate.filters):
        entry.require()
        if isinstance(entry, Dependency) and entry.model is None and recipe.model.folder is None:
            raise ConfigError(
                "curate.no-model",
                "the filter dependency needs a trained model, and the recipe starts from a new one",
                where=f"recipe: data.curate.filters.{index}",
                fix="name the folder of a small model as its model",
            )
