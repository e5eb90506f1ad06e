"""A tiny training run that the tests of this folder share; it also runs in processes that are killed."""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from longspan.batch import Batch
from longspan.model.decoder import Decoder
from longspan.records import StepMetrics
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape
from longspan.train.checkpoint import CheckpointStore
from longspan.train.loop import train
from longspan.train.metrics import MetricsFile
from longspan.train.plan import StagePlan
from longspan.train.settings import TrainSettings
from longspan.train.signals import stop_on_signals
from longspan.train.team import Team
from longspan.utils.errors import Interrupted

VOCABULARY = 29
VERSIONS = {"longspan": "test", "torch": torch.__version__}


def frequencies(*, theta: float = 100.0, length: int = 8) -> Frequencies:
    return Frequencies(theta=theta, factors=(1.0,) * 4, attention_factor=1.0, length=length, trained_length=8)


def shape(*, width: int = 16, mlp_width: int = 24) -> ModelShape:
    return ModelShape(
        family="llama",
        layers=2,
        width=width,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_width=mlp_width,
        vocabulary=VOCABULARY,
        norm_epsilon=1e-5,
        tied=True,
        qkv_bias=True,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None, None),
        trained_length=8,
    )


def decoder(seed: int = 1, *, width: int = 16) -> Decoder:
    made = Decoder(shape(width=width), frequencies())
    made.initialise(seed)
    return made


def plan(index: int = 0, **changes) -> StagePlan:
    values = {
        "index": index,
        "length": 8,
        "steps": 4,
        "rows_per_step": 4,
        "micro_rows": 2,
        "learning_rate": 1e-2,
        "final_share": 0.1,
        "warmup_steps": 1,
        "frequencies": frequencies(),
    }
    return StagePlan(**values | changes)


def two_stages() -> list[StagePlan]:
    longer = frequencies(theta=1000.0, length=16)
    return [plan(), plan(1, length=16, steps=3, rows_per_step=3, micro_rows=2, frequencies=longer)]


LENGTHS = {0: 8, 1: 16}


def batches(stage: int, first_row: int, rows: int) -> Batch:
    """Rows that depend on stage and row number alone; their weights are ragged."""
    made = [_row(stage, row) for row in range(first_row, first_row + rows)]
    tokens, weights = torch.stack([row[0] for row in made]), torch.stack([row[1] for row in made])
    length = tokens.shape[1] - 1
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=weights,
        positions=torch.arange(length).expand(rows, -1),
        spans=((0, length),) * rows,
    )


def _row(stage: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * stage + row)
    start = torch.randint(VOCABULARY, (), generator=generator)
    length = LENGTHS[stage]
    tokens = (start + 3 * torch.arange(length + 1)) % VOCABULARY  # a fixed pattern: every token is the last plus 3
    weights = torch.ones(length)
    weights[: int(torch.randint(length - 1, (), generator=generator))] = 0.0
    weights[-1] = 2.5
    return tokens, weights


def store(folder: Path, **changes) -> CheckpointStore:
    values = {"keep": 2, "identity": {"recipe": {"seed": 1}}, "versions": VERSIONS, "warn": lambda text: None}
    return CheckpointStore(folder / "checkpoints", **values | changes)


def train_in(
    folder: Path,
    stages,
    *,
    batches=None,
    hook=lambda: None,
    model=None,
    engine=None,
    stop=lambda: False,
    **settings,
) -> tuple[Decoder, list[StepMetrics]]:
    """Train a model in `folder` under the settings given; it and the metrics of every step come back."""
    model = model or decoder()
    seen: list[StepMetrics] = []

    def observe(metrics):
        seen.append(metrics)
        hook()

    train(
        model,
        stages,
        settings=TrainSettings(**settings),
        batches=batches or globals()["batches"],
        checkpoints=store(folder, keep=settings.get("keep_checkpoints", 2)),
        observe=observe,
        engine=engine,
        team=Team(stop=stop),
    )
    return model, seen


def run(
    folder: Path,
    *,
    hook: Callable[[StepMetrics], None] = lambda metrics: None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda text: None,
    save_every_steps: int = 2,
    saving: str = "blocking",
) -> Decoder:
    """The whole run of two stages, 7 steps, in `folder`; `hook` sees every step after it is written down."""
    folder.mkdir(exist_ok=True)
    trained = decoder()
    metrics = MetricsFile(folder / "metrics.jsonl")

    def observe(seen: StepMetrics) -> None:
        metrics.write(seen)
        hook(seen)

    with store(folder, warn=warn, saving=saving) as checkpoints:
        train(
            trained,
            two_stages(),
            settings=TrainSettings(save_every_steps=save_every_steps),
            batches=batches,
            checkpoints=checkpoints,
            observe=observe,
            team=Team(stop=stop),
        )
    return trained


def kill_at_operation(number: int, folder: Path) -> None:
    """Kill this process just before its `number`-th change of the file system inside `folder`, an fsync included."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
        # rmtree names the files below it relative to a descriptor, so names without a folder count as well
        if (writes or changes) and (str(folder) in str(arguments[0]) or os.sep not in str(arguments[0])):
            tick()

    plain_fsync = os.fsync

    def fsync(handle: int) -> None:
        tick()
        plain_fsync(handle)
        tick()

    os.fsync = fsync
    sys.addaudithook(watch)


def child(folder: Path, fault: str, value: float) -> None:
    """Run under one fault: `none`, `step` n, `operation` n, `time` seconds, or `signals` (SIGTERM at step n).

    With `-async` behind it training does not wait for its saves.
    """
    fault, _, saving = fault.partition("-")

    def hook(metrics: StepMetrics) -> None:
        if fault == "step" and metrics.step == value:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "signals" and metrics.step == value:
            os.kill(os.getpid(), signal.SIGTERM)

    if fault == "operation":
        kill_at_operation(int(value), folder)
    if fault == "time":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process, Python does not notice
        signal.setitimer(signal.ITIMER_REAL, value)
    with stop_on_signals() as stop:
        run(folder, hook=hook, stop=stop, saving=saving or "blocking")


def serve() -> None:
    """Answer lines `folder fault value` by a forked child each, and write how it ended.

    Importing torch and its first step take seconds, forking a process that has done both a hundredth of one.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
    for line in sys.stdin:
        folder, fault, value = line.rsplit(maxsplit=2)
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                child(Path(folder), fault, float(value))
                status = 0
            except Interrupted:
                status = 75
            finally:
                if status == 70:
                    traceback.print_exc()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
