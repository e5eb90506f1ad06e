"""Buckets against concatenate-and-chunk: the same small model, tokens, rate and seeds; time to the same held-out loss.

    python benchmarks/buckets_data.py --source FOLDER … --to runs/buckets.tar.xz
    python benchmarks/buckets_gpu.py compare --data runs/buckets.tar.xz --results RESULTS.jsonl --commit abc
    python benchmarks/buckets_gpu.py summary --results RESULTS.jsonl

`compare` trains one model for every arm and seed: rows of 8,192 tokens that are cut out of all documents in line
(`concat`), the same with borders between documents (`masked`), and Grow-P2 (`buckets`); and, where there is time,
buckets with fewer and with more tokens, each with a schedule of its own. Held-out documents, each alone and up to 8,192
tokens of it, are scored as training goes on; the clock stands meanwhile. Every run ends in one JSON line; one whose
line is there is not done again, and none is begun that does not fit into what is left of --seconds. `summary` prints
the table of all lines.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longspan.batch import Batch
from longspan.data.build import Stores
from longspan.data.collate import collate
from longspan.data.curricula.base import Curriculum, Slots, StageText
from longspan.data.curricula.buckets import Buckets
from longspan.data.curricula.stages import Stages
from longspan.data.settings import MixPart
from longspan.data.store import TokenStore
from longspan.engine.prefill import Prefill
from longspan.engine.run import Engine
from longspan.engine.settings import EngineSettings
from longspan.model.decoder import Decoder
from longspan.pipeline.benchline import today
from longspan.pipeline.benchparts import all_versions, hardware, peak_bytes
from longspan.pipeline.machine import probe
from longspan.plan.choose import choose
from longspan.plan.workload import States, Workload
from longspan.records import StepMetrics
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape
from longspan.train.loop import train
from longspan.train.passes import Pass, plain_engine
from longspan.train.plan import StagePlan
from longspan.train.settings import TrainSettings
from longspan.utils.lines import Lines

K, VOCABULARY, THETA = 1_024, 8_192, 10_000.0
BINS = (256, 1_024, 4_096)  # borders of positions that losses are told by, beside the whole
SIZES = {  # layers, width, heads of 64 or 128, MLP
    "42m": {"layers": 12, "width": 512, "heads": 4, "head_dim": 128, "mlp_width": 1_408},
    "20m": {"layers": 8, "width": 384, "heads": 3, "head_dim": 128, "mlp_width": 1_024},
    "tiny": {"layers": 2, "width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64},
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to order the text, with its share of the tokens of a whole run."""

    name: str
    curriculum: Curriculum
    borders: bool = True
    tokens: float = 1.0


def arms(shortest: int) -> tuple[Arm, ...]:
    """Those that are compared first, then buckets with other tokens: which of them come as far in less time?"""
    buckets = Buckets(shortest=shortest)
    return (
        Arm("concat", Stages(), borders=False),
        Arm("masked", Stages()),
        Arm("buckets", buckets),
        Arm("buckets 5/4", buckets, tokens=1.25),
        Arm("buckets 3/4", buckets, tokens=0.75),
        Arm("buckets 3/2", buckets, tokens=1.5),
    )


class Unsaved:
    """In place of checkpoints: a run of a minute is begun anew."""

    def prepare(self, *_: Any) -> None:
        """Nothing to prepare."""

    def latest(self) -> None:
        """Nothing was saved."""

    def save(self, *_: Any, **__: Any) -> None:
        """Nothing is."""


# -- one run -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share."""

    shape: ModelShape
    length: int
    shortest: int
    tokens: int
    step_tokens: int
    learning_rate: float
    evaluations: int
    eval_tokens: int
    device: torch.device

    def facts(self) -> dict[str, Any]:
        """As JSON; lines of other settings are not compared."""
        value = {key: found for key, found in dataclasses.asdict(self).items() if key not in ("shape", "device")}
        return value | {"parameters": self.shape.parameters, "layers": self.shape.layers, "width": self.shape.width}


def held_out_parts(store: TokenStore, setting: Setting) -> list[torch.Tensor]:
    """Documents evenly spread over those held out, the first tokens of each, up to so many tokens in all."""
    wanted = [n for n in range(len(store)) if store.lengths[n] > min(64, setting.shortest)]
    count = min(len(wanted), max(1, setting.eval_tokens // int(np.minimum(store.lengths, setting.length).mean())))
    picked = [wanted[int((at + 0.5) * len(wanted) / count)] for at in range(count)]
    return [torch.from_numpy(store.read(n, 0, min(int(store.lengths[n]), setting.length))) for n in picked]


def held_out_loss(decoder: Decoder, parts: Sequence[torch.Tensor]) -> dict[str, float]:
    """Mean loss of all targets, in nats, and of those in each stretch of positions."""
    prefill = Prefill(decoder)
    losses = [prefill.token_nll(part).double().cpu() for part in parts]
    borders = (0, *BINS, max(len(loss) for loss in losses))
    found = {"all": float(torch.cat(losses).mean())}
    for low, high in itertools.pairwise(borders):
        here = [loss[low:high] for loss in losses if len(loss) > low]
        if here and high > low:
            found[f"{low}-{high}"] = float(torch.cat(here).mean())
    return found


class Run:
    """One arm under one seed."""

    def __init__(self, setting: Setting, arm: Arm, seed: int, stores: Stores) -> None:
        self._setting, self._arm, self._seed, self._stores = setting, arm, seed, stores
        steps = int(arm.tokens * setting.tokens) // setting.step_tokens
        base = RopeBase(rotary_dim=setting.shape.head_dim, theta=THETA, trained_length=setting.length)
        self._settings = TrainSettings(micro_batch_tokens=setting.step_tokens, save_every_steps=10**9, save="blocking")
        self._plan = self._settings.plan(
            index=0,
            length=setting.length,
            steps=steps,
            rows_per_step=setting.step_tokens // setting.length,
            learning_rate=setting.learning_rate,
            frequencies=Default().frequencies(base, setting.length),
        )
        self._slots: Slots = arm.curriculum.slots(
            StageText(
                store=stores.train,
                length=setting.length,
                mix=(MixPart(share=1.0, borders=arm.borders),),
                steps=steps,
                slots_per_step=self._plan.rows_per_step,
                seed=seed,
                stage=0,
                encode=lambda _: [],
            )
        )
        decoder = Decoder(setting.shape, self._plan.frequencies)
        decoder.initialise(seed)
        self._decoder = decoder.to(setting.device)
        self._curve: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._parts = held_out_parts(stores.held_out, setting)

    def _engine(self, plan: StagePlan) -> Pass:
        work = Workload(
            shape=self._setting.shape,
            tokens=plan.micro_rows * plan.length,
            lengths=(plan.length,) * plan.micro_rows,
            element_bytes=2 if self._setting.device.type == "cuda" else 4,
            states=States(
                weight_bytes=4,
                gradient_bytes=4,
                state_bytes=self._settings.optimizer.state_bytes,
                states_on=self._settings.optimizer.states,
            ),
        )
        choice = choose(work, EngineSettings(), probe(self._setting.device, folder=Path.cwd())).choice
        if choice.keep == "everything":
            return plain_engine(self._decoder)(plan)
        return Engine(self._decoder, choice, tokens=work.tokens).forward_backward

    def _batch(self, _stage: int, first: int, count: int) -> Batch:
        return collate([row for number in range(first, first + count) for row in self._slots.slot(number)])

    def _warm(self, run: Pass) -> None:
        """A pass over rows of every length: kernels are chosen and planned before the clock runs."""
        for first in self._slots.first_slots().values():
            run(self._batch(0, first, self._plan.micro_rows).to(self._setting.device), divisor=1.0)
        for weight in self._decoder.parameters():
            weight.grad = None

    def _observe(self, step: StepMetrics) -> None:
        self._seconds += step.seconds
        every = max(1, self._plan.steps // self._setting.evaluations)
        if step.step % every == 0 or step.step == self._plan.steps:
            self._score(step.step)

    def _score(self, step: int) -> None:
        loss = held_out_loss(self._decoder, self._parts)
        self._curve.append(
            {"step": step, "tokens": step * self._plan.tokens_per_step, "seconds": round(self._seconds, 3), **loss}
        )

    def line(self) -> dict[str, Any]:
        """Train, and tell what came of it."""
        began, plan = time.monotonic(), self._plan
        run = self._engine(plan)
        self._warm(run)
        self._score(0)
        lengths: list[tuple[int, float, float]] = []

        def observe(step: StepMetrics) -> None:
            lengths.append((step.length, step.loss, step.seconds))
            self._observe(step)

        train(
            self._decoder,
            [plan],
            settings=self._settings,
            batches=self._batch,
            checkpoints=Unsaved(),  # type: ignore[arg-type]
            observe=observe,
            engine=lambda _: run,
        )
        return {
            "arm": self._arm.name,
            "seed": self._seed,
            **self._setting.facts(),
            "run_tokens": plan.steps * plan.tokens_per_step,
            "steps": plan.steps,
            "seconds": round(self._seconds, 3),
            "wall_seconds": round(time.monotonic() - began, 1),
            "tokens_per_second": round(plan.steps * plan.tokens_per_step / self._seconds, 1),
            "held_out": self._curve[-1]["all"],
            "curve": self._curve,
            "by_length": by_length(lengths),
            "text": self._slots.lengths().facts(plan.length) | {"repeats": self._slots.repeats()},
            "train_sha256": self._stores.train.manifest.sha256,
            "held_out_documents": len(self._parts),
            "held_out_targets": sum(len(part) - 1 for part in self._parts),
            "peak_bytes": peak_bytes(self._setting.device),
        }


def by_length(steps: Sequence[tuple[int, float, float]]) -> dict[str, dict[str, float]]:
    """Of the steps with rows of each length: how many, seconds of the middle one, the last loss."""
    found: dict[str, dict[str, float]] = {}
    for length in sorted({length for length, _, _ in steps}):
        here = [(loss, seconds) for own, loss, seconds in steps if own == length]
        median = float(np.median([seconds for _, seconds in here]))
        found[str(length)] = {"steps": len(here), "step_seconds": round(median, 4), "last_loss": here[-1][0]}
    return found


# -- all runs ----------------------------------------------------------------------------------------------------------


def compare(given: argparse.Namespace) -> int:
    """Every run that has no line yet, as far as the time goes; 1 if some are missing then."""
    began, device = time.monotonic(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SIZES[given.size]
    shape = ModelShape(
        family="llama",
        vocabulary=given.vocabulary,
        kv_heads=size["heads"],
        norm_epsilon=1e-5,
        tied=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None,) * size["layers"],
        trained_length=given.length,
        **size,
    )
    names = ("length", "shortest", "tokens", "step_tokens", "learning_rate", "evaluations", "eval_tokens")
    setting = Setting(shape=shape, device=device, **{name: getattr(given, name) for name in names})
    wanted = [arm for arm in arms(given.shortest) if given.arms is None or arm.name in given.arms]
    runs = [(seed, arm) for seed in given.seeds for arm in wanted if arm.tokens == 1.0]
    runs += [(seed, arm) for arm in wanted for seed in given.seeds if arm.tokens != 1.0]
    here = setting.facts() | {"commit": given.commit, "hardware": hardware(device)}
    missing, dearest, results = 0, 0.0, Lines(given.results)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(given.data) as archive:
            archive.extractall(folder, filter="data")
        stores = Stores.open(Path(folder) / "tokens")
        for seed, arm in runs:
            done = [line for line in results.rows if here.items() <= line.items()]
            if any((line["arm"], line["seed"]) == (arm.name, seed) for line in done):
                print(f"# there already: {arm.name}, seed {seed}", flush=True)
                continue
            expected = max([dearest, *(line["wall_seconds"] for line in done)]) * arm.tokens
            if expected > given.seconds - (time.monotonic() - began):
                print(f"# no time left for: {arm.name}, seed {seed} (about {expected:.0f} s)", flush=True)
                missing += 1
                continue
            line = Run(setting, arm, seed, stores).line()
            dearest = max(dearest, line["wall_seconds"])
            line |= {"commit": given.commit, "hardware": here["hardware"], "versions": all_versions(), "date": today()}
            line["command"] = " ".join(["python", *sys.argv])
            results.append(line)
            shown = ("arm", "seed", "run_tokens", "seconds", "wall_seconds", "tokens_per_second", "held_out")
            print(json.dumps({key: line[key] for key in shown}), flush=True)
    summary(given)
    return 1 if missing else 0


def seconds_to(line: dict[str, Any], loss: float) -> float | None:
    """When a curve first comes down to a loss, on a straight line between two evaluations; None if never."""
    before: dict[str, Any] | None = None
    for point in line["curve"]:
        if point["all"] <= loss:
            if before is None:
                return float(point["seconds"])
            share = (before["all"] - loss) / (before["all"] - point["all"])
            return float(before["seconds"] + share * (point["seconds"] - before["seconds"]))
        before = point
    return None


def summary(given: argparse.Namespace) -> int:
    """A table of all lines, beside `concat` and `masked` of the same seed, settings and machine."""
    lines = Lines(given.results).rows
    same = ("seed", "tokens", "length", "parameters", "learning_rate", "commit", "hardware", "train_sha256")
    print("| arm | seed | tokens | seconds | held-out loss | time to concat's loss | time to masked's loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for line in lines:
        cells = []
        for name in ("concat", "masked"):
            peers = [peer for peer in lines if peer["arm"] == name and all(peer[key] == line[key] for key in same)]
            found = seconds_to(line, peers[-1]["held_out"]) if peers else None
            cells.append("never" if found is None else f"{found:.1f} s, {peers[-1]['seconds'] / found:.2f}x")
        facts = [
            line["arm"],
            line["seed"],
            f"{line['run_tokens']:,}",
            f"{line['seconds']:.1f}",
            f"{line['held_out']:.4f}",
        ]
        print("| " + " | ".join(map(str, [*facts, *cells])) + " |")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compare", "summary"))
    parser.add_argument("--data", type=Path, default=Path("runs/buckets.tar.xz"), help="what buckets_data.py packed")
    parser.add_argument("--results", type=Path, default=Path("docs/results/buckets/runs.jsonl"))
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--seconds", type=float, default=560.0, help="in which all has to end")
    parser.add_argument("--size", choices=SIZES, default="42m")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for name, default in (("vocabulary", VOCABULARY), ("length", 8_192), ("shortest", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    steps = 192  # six runs of them are meant to fit ten minutes on one H200
    for name, default in (
        ("tokens", steps * K * 64),
        ("step-tokens", 64 * K),
        ("evaluations", 12),
        ("eval-tokens", 64 * K),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    given = parser.parse_args()
    return compare(given) if given.what == "compare" else summary(given)


if __name__ == "__main__":
    sys.exit(main())
