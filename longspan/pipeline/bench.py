"""Measuring the engine: random weights, random tokens, one line of numbers."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longspan.attention.schemes.local import Local
from longspan.batch import Batch
from longspan.engine import pointwise
from longspan.engine.run import Engine
from longspan.engine.step import forward_backward
from longspan.model.decoder import Decoder
from longspan.model.lora import add_lora
from longspan.model.settings import LoraSettings
from longspan.parallel.weights import Weights
from longspan.pipeline.benchline import BenchLine, today
from longspan.pipeline.benchparts import (
    Skipped,
    all_versions,
    hardware,
    model_of,
    peak_bytes,
    random_batch,
    random_decoder,
    resident_bytes,
    warm_attention,
)
from longspan.pipeline.benchsettings import BenchSettings
from longspan.pipeline.machine import probe
from longspan.pipeline.memory import memory_errors
from longspan.pipeline.memorytrace import MemoryWatch
from longspan.plan.account import Plan
from longspan.plan.choose import choose
from longspan.plan.flops import hardware_flops, model_flops, share_of_peak
from longspan.plan.workload import States, Workload
from longspan.report.timeline import memory_svg
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape
from longspan.train.optimizer import Updater, build_updater
from longspan.train.settings import TrainSettings
from longspan.utils.errors import ConfigError
from longspan.utils.files import storage_errors, write_atomic

RATE = 1e-5  # of the updates; nobody looks at what they learn
Tell = Callable[[str], None]


def bench_engine(settings: BenchSettings, *, command: str, tell: Tell = lambda _: None) -> dict[str, Any]:
    """Run one measurement and return its line, appended to `results` and drawn as `timeline` where asked.

    `tell` gets the plan in words before anything is loaded. Raises `LongspanError` for what cannot be run, with the
    code `plan.memory` for what does not fit.
    """
    device = _device(settings)
    shape, frequencies = model_of(settings.shape, layers=settings.layers, tokens=settings.tokens)
    dtype = weight_dtype(settings, device)
    machine = probe(device, folder=settings.anchors)
    plan = choose(workload_of(settings, shape, device, dtype), settings.engine, machine)
    for words in plan.account():
        tell(words)
    with memory_errors(lambda: command, fix="fewer --tokens or --layers, or a smaller --device-gib to plan for"):
        line = _Bench(settings, plan, device).run(frequencies, dtype, command=command)
    value = line.to_json()
    if settings.results is not None:
        with storage_errors(settings.results), settings.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, allow_nan=False) + "\n")
    return value


class _Bench:
    """One measurement under one plan."""

    def __init__(self, settings: BenchSettings, plan: Plan, device: torch.device) -> None:
        self._settings, self._plan, self._device = settings, plan, device
        self._engine: Engine | None = None
        self._updater: Updater | None = None
        self._trace: MemoryWatch | None = None
        self._phases: list[tuple[str, torch.cuda.Event]] = []

    def run(self, frequencies: Frequencies, dtype: torch.dtype, *, command: str) -> BenchLine:
        """Build, warm up, measure."""
        settings, work = self._settings, self._plan.work
        before = resident_bytes()
        decoder = random_decoder(work.shape, frequencies, device=self._device, dtype=dtype, seed=settings.seed)
        if settings.lora is not None:
            add_lora(decoder, LoraSettings(rank=settings.lora), settings.seed)
        self._updater = updater_of(decoder, settings)
        if self._updater is None:
            for weight in decoder.parameters():
                if weight.requires_grad:
                    weight.grad = torch.zeros_like(weight)
        step = self._step(decoder)
        if settings.warmup_tokens:
            length = min(settings.warmup_tokens, work.tokens)
            step(random_batch(1, length, vocabulary=work.shape.vocabulary, device=self._device, seed=settings.seed))
            self._warm_attention()
        self._waited()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        batch = random_batch(
            settings.rows,
            work.tokens // settings.rows,
            vocabulary=work.shape.vocabulary,
            device=self._device,
            seed=settings.seed + 1,
        )
        seconds, losses = self._timed(step, batch)
        peak = peak_bytes(self._device) - (0 if self._device.type == "cuda" else before)
        return self._line(decoder, seconds, losses, peak_bytes=peak, command=command)

    def _warm_attention(self) -> None:
        """Without this the first long pass would build the kernels' plans, for some seconds."""
        work, choice, settings = self._plan.work, self._plan.choice, self._settings
        if self._device.type == "cuda" and choice.keep != "everything" and not settings.skip_attention_compute:
            warm_attention(
                Local(merge=pointwise.merge_),
                work.shape,
                rows=settings.rows,
                length=work.tokens // settings.rows,
                group=choice.group,
                device=self._device,
                dtype=torch.bfloat16,
            )

    def _step(self, decoder: Decoder) -> Callable[[Batch], Tensor]:
        """One forward and backward pass, with its update if there is an optimizer; the loss sum comes back."""
        choice, updater = self._plan.choice, self._updater
        if choice.keep == "everything":

            def run(batch: Batch) -> Tensor:
                total = forward_backward(decoder, batch, divisor=float(batch.weights.sum()))
                if updater is not None:
                    updater.step(RATE)
                    updater.zero()
                return total

            return run
        scheme = Local(kernel=Skipped()) if self._settings.skip_attention_compute else None
        engine = Engine(decoder, choice, tokens=self._plan.work.tokens, folder=self._settings.anchors, scheme=scheme)
        engine.store.measure = self._device.type == "cuda"
        engine.mark = self._mark
        self._engine = engine
        return step_of(engine, updater)

    def _mark(self, phase: str) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._phases.append((phase, torch.cuda.current_stream().record_event(event)))

    def _phase_seconds(self) -> dict[str, float]:
        """How long each phase of the last pass took on the device."""
        last = max((at for at, (name, _) in enumerate(self._phases) if name == "forward"), default=0)
        pairs = itertools.pairwise(self._phases[last:])
        return {name: event.elapsed_time(following) / 1e3 for (name, event), (_, following) in pairs}

    def _timed(self, step: Callable[[Batch], Tensor], batch: Batch) -> tuple[list[float], list[float]]:
        seconds, losses = [], []
        for number in range(self._settings.steps):
            last = number + 1 == self._settings.steps
            with self._watched(last and self._settings.timeline is not None):
                start = time.perf_counter()
                loss = step(batch)
                self._synchronize()
                seconds.append(time.perf_counter() - start)
            losses.append(float(loss) / batch.tokens.numel())
        return seconds, losses

    @contextmanager
    def _watched(self, wanted: bool) -> Iterator[None]:
        if not wanted:
            yield
            return
        with MemoryWatch(self._device) as watch:
            if self._engine is not None:
                self._engine.mark = watch.mark  # phases have no times then: the watch looks at the device itself
            yield
        self._trace = watch
        self._draw(watch)

    def _draw(self, watch: MemoryWatch) -> None:
        work, path = self._plan.work, self._settings.timeline
        assert path is not None
        title = f"{self._name}: {self._settings.shape}, {work.shape.layers} layers, {work.tokens:,} tokens"
        predicted = self._plan.memory.device_bytes if self._device.type == "cuda" else None
        write_atomic(path, memory_svg(title, watch.trace, predicted_bytes=predicted).encode())

    @property
    def _name(self) -> str:
        return "longspan, attention skipped" if self._settings.skip_attention_compute else "longspan"

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _waited(self) -> float | None:
        """Seconds that the compute stream waited for copies since it was last asked."""
        if self._engine is None or self._device.type != "cuda":
            return None
        return self._engine.store.stall_seconds()

    def _line(
        self, decoder: Decoder, seconds: list[float], losses: list[float], *, peak_bytes: int, command: str
    ) -> BenchLine:
        settings, plan = self._settings, self._plan
        work, choice = plan.work, plan.choice
        last, waited = seconds[-1], self._waited()
        flops = model_flops(work.shape, work.document_lengths, adapters=work.adapters)
        run = hardware_flops(work.shape, work.document_lengths, choice, adapters=work.adapters)
        peak = None if settings.skip_attention_compute else plan.machine.peak_flops
        tensors = [t for p in decoder.parameters() for t in (p, p.grad) if t is not None]
        planned = choice.keep != "everything"
        return BenchLine(
            name=self._name,
            shape=settings.shape,
            tokens=work.tokens,
            layers=work.shape.layers,
            keep=choice.keep,
            segment=choice.segment if planned else None,
            tile_tokens=choice.tile_tokens if planned else None,
            group=choice.group if planned else None,
            tokens_per_second=work.tokens / last,
            causal_mfu=share_of_peak(flops, seconds=last, peak_flops=peak),
            hfu=share_of_peak(run, seconds=last, peak_flops=peak),
            peak_bytes=peak_bytes,
            predicted_peak_bytes=plan.memory.device_bytes,
            weight_and_gradient_bytes=sum(t.numel() * t.element_size() for t in tensors),
            host_peak_bytes=self._engine.host.taken_bytes if self._engine is not None else 0,
            stall_share=None if waited is None else waited / sum(seconds),
            step_seconds=last,
            skipped_attention=settings.skip_attention_compute,
            command=command,
            hardware=hardware(self._device),
            versions=all_versions(),
            date=today(),
            commit=settings.commit,
            more=self._more(seconds, losses),
        )

    def _more(self, seconds: list[float], losses: list[float]) -> dict[str, Any]:
        settings, choice = self._settings, self._plan.choice
        return {
            "rows": settings.rows,
            "gradient": choice.gradient,
            "anchors": {tier: choice.anchors.count(tier) for tier in ("device", "host", "disk")},
            "optimizer": settings.optimizer,
            "update": settings.update,
            "states": settings.states,
            "lora": settings.lora,
            "losses": losses,
            "all_step_seconds": seconds,
            "phase_seconds": self._phase_seconds(),
            "predicted_seconds": self._plan.seconds.total,
            "predicted_parts": self._plan.memory.parts,
            "predicted_phase": self._plan.memory.peak_phase,
            "predicted_host_bytes": self._plan.memory.host_bytes,
        }


def step_of(engine: Engine, updater: Updater | None) -> Callable[[Batch], Tensor]:
    """One forward and backward pass of an engine, with its update if there is an optimizer; the loss sum comes back."""

    def step(batch: Batch) -> Tensor:
        inside = updater.inside(RATE) if updater is not None and updater.inside_pass else None
        total = engine.forward_backward(batch, divisor=float(batch.weights.sum()), on_gradients=inside)
        if updater is not None and inside is None:
            updater.step(RATE)
            updater.zero()
        return total

    return step


def workload_of(settings: BenchSettings, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> Workload:
    """What a measurement asks of one device."""
    trained = TrainSettings() if settings.optimizer == "none" else _train_settings(settings)
    weight_bytes = dtype.itemsize
    states = States(
        weight_bytes=weight_bytes,
        gradient_bytes=weight_bytes if settings.optimizer == "none" else 4,
        state_bytes=0.0 if settings.optimizer == "none" else trained.optimizer.state_bytes,
        states_on=settings.states,
        update_inside=settings.update == "inside",
        trainable=None if settings.lora is None else LoraSettings(rank=settings.lora).trained_parameters(shape),
    )
    length = settings.tokens // settings.rows
    return Workload(
        shape=shape,
        tokens=settings.tokens,
        lengths=(length,) * settings.rows,
        element_bytes=2 if device.type == "cuda" else weight_bytes,
        states=states,
    )


def _train_settings(settings: BenchSettings) -> TrainSettings:
    """The optimizer as a recipe would name it."""
    optimizer = {"kind": settings.optimizer, "update": settings.update, "states": settings.states}
    clip: dict[str, Any] = {"clip_norm": "none"} if settings.update == "inside" else {}
    return TrainSettings.model_validate({"optimizer": optimizer, **clip})


def updater_of(decoder: Decoder, settings: BenchSettings, weights: Weights | None = None) -> Updater | None:
    """The optimizer that a measurement asks for, if it does."""
    return None if settings.optimizer == "none" else build_updater(decoder, _train_settings(settings), weights)


def weight_dtype(settings: BenchSettings, device: torch.device) -> torch.dtype:
    """The weights' type: what the optimizer needs, else bfloat16 on a GPU and float32 on a CPU."""
    own = "bfloat16" if device.type == "cuda" else "float32"
    if settings.optimizer != "none" and settings.lora is None:
        own = _train_settings(settings).optimizer.weight_dtype
        if settings.weights not in ("auto", own):
            raise ConfigError(
                "bench.weights", f"{settings.optimizer} needs {own} weights", where="--weights", fix="leave it out"
            )
    found: torch.dtype = getattr(torch, own if settings.weights == "auto" else settings.weights)
    return found


def _device(settings: BenchSettings) -> torch.device:
    gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not gpu:
        raise ConfigError("run.no-gpu", "there is no usable GPU", where="--device", fix="--device cpu")
    return torch.device("cuda", 0) if gpu and settings.device != "cpu" else torch.device("cpu")
