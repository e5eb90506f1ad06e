"""A plan in words: what is kept where, what it costs, what bound it, what would be cheaper; and the refusal."""

from dataclasses import dataclass

from longspan.engine.settings import EngineChoice, EngineSettings, Tier
from longspan.plan.flops import model_flops, share_of_peak
from longspan.plan.machine import Machine
from longspan.plan.memory import Prediction
from longspan.plan.seconds import Seconds
from longspan.plan.workload import Workload
from longspan.utils.errors import LongspanError

GIB = 2**30
SMALLEST_TOLD = 200  # parts below a two-hundredth are not told
PLACES = {"device": "device memory", "host": "host memory", "disk": "disk space"}


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """Why one candidate does not fit: what its binding tier would have to hold, and what it may be asked for."""

    tier: Tier
    needed_bytes: int
    there_bytes: int
    choice: EngineChoice


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A choice with its account. `passed_over` is the fastest candidate that did not fit, `cheaper` the next plan that
    needs at least a tenth less memory.
    """

    work: Workload
    choice: EngineChoice
    machine: Machine
    memory: Prediction
    seconds: Seconds
    passed_over: Shortfall | None = None
    cheaper: "Plan | None" = None

    @property
    def tokens_per_second(self) -> float:
        """Predicted speed."""
        return self.work.tokens / self.seconds.total

    @property
    def causal_mfu(self) -> float | None:
        """Predicted share of the device's peak; None when that is not known."""
        flops = model_flops(self.work.shape, self.work.document_lengths, adapters=self.work.adapters)
        flops /= self.work.spread.ranks
        return share_of_peak(flops, seconds=self.seconds.total, peak_flops=self.machine.peak_flops)

    def account(self) -> tuple[str, ...]:
        """The plan as lines for people."""
        memory, machine, choice = self.memory, self.machine, self.choice
        lines = [
            f"plan: {describe(choice)}; {self.work.tokens:,} tokens",
            _held("device", memory.device_bytes, machine.device_bytes, memory.parts)
            + f"; the peak is in: {memory.peak_phase}",
        ]
        if memory.host_bytes:
            lines.append(_held("host", memory.host_bytes, machine.host_bytes, memory.host))
        if memory.disk_bytes:
            lines.append(_held("disk", memory.disk_bytes, machine.disk_bytes, memory.disk))
        if machine.locked_bytes is not None and memory.host_bytes > machine.locked_bytes:
            lines.append(
                f"note: the limit of locked memory is {gib(machine.locked_bytes)}; if locking fails: ulimit -l"
            )
        lines.append(self._time())
        if self.passed_over is not None:
            short = self.passed_over
            lines.append(
                f"bound by {PLACES[short.tier]}: {describe(short.choice)} would be faster and needs "
                f"{gib(short.needed_bytes)} of {gib(short.there_bytes)}"
            )
        if self.cheaper is not None:
            less = sum(_tiers(self)) - sum(_tiers(self.cheaper))
            slower = self.cheaper.seconds.total / self.seconds.total - 1
            lines.append(f"cheaper: {describe(self.cheaper.choice)}: {gib(less)} less, {slower:.0%} slower")
        return tuple(lines)

    def _time(self) -> str:
        parts = self.seconds
        mfu = "" if self.causal_mfu is None else f", causal MFU {self.causal_mfu:.1%}"
        return (
            f"time: {parts.total:.1f} s a pass, {self.tokens_per_second:,.0f} tokens/s{mfu} "
            f"(attention {parts.attention:.1f}, linear {parts.linear:.1f}, sums {parts.sums:.1f}, "
            f"copies that nothing hides {parts.copies:.1f})"
        )


def refusal(
    work: Workload, settings: EngineSettings, short: Shortfall, *, longest_tokens: int, shared: bool = False
) -> LongspanError:
    """The error when nothing fits. It names the limit that the nearest candidate meets, and what would help.

    `shared`: device and host are one memory, so what moves between them does not help.
    """
    what = (
        f"{work.tokens:,} tokens do not fit: the nearest way ({describe(short.choice)}) needs "
        f"{gib(short.needed_bytes)} of {PLACES[short.tier]}, and {gib(short.there_bytes)} may be used"
    )
    fixes = [f"at most {longest_tokens:,} tokens at once"] if longest_tokens else []
    fixes += _remedies(work, settings, short, shared=shared)
    return LongspanError("plan.memory", what, where="recipe: engine", fix="; or ".join(fixes))


def _remedies(work: Workload, settings: EngineSettings, short: Shortfall, *, shared: bool) -> list[str]:
    states = work.states
    whole = not work.adapters
    found = {
        'engine.keep = "inputs"': settings.keep not in ("auto", "inputs"),
        "leave engine.segment out": settings.segment is not None and settings.segment < work.shape.layers,
    }
    if short.tier == "device":
        found |= {
            'engine.farthest = "host"': settings.farthest == "device" and not shared,
            "leave engine.tile_tokens out": settings.tile_tokens is not None,
            'train.optimizer.kind = "adamw8"': whole and states.state_bytes >= 8,
            'train.optimizer.states = "host"': states.state_bytes > 0 and states.states_on == "device" and not shared,
            'train.optimizer.update = "inside"': whole and states.state_bytes > 0 and not states.update_inside,
            "LoRA": whole,
        }
    elif short.tier == "host":
        found |= {'engine.farthest = "disk"': settings.farthest == "host", "a machine with more host memory": True}
    else:
        found["free disk space"] = True
    return [remedy for remedy, helps in found.items() if helps]


def describe(choice: EngineChoice) -> str:
    """A choice in a few words."""
    if choice.keep == "everything":
        return "everything kept by autograd"
    kind = "lossy fp8 anchors" if choice.lossy_anchors else "anchors"
    tiers = [f"{choice.anchors.count(tier)} on {tier}" for tier in PLACES if tier in choice.anchors]
    return (
        f"{choice.keep}, segments of {choice.segment}, tiles of {choice.tile_tokens:,}, {choice.group} key/value heads "
        f"a call, gradient on {choice.gradient}, {kind}: {', '.join(tiers) or 'none'}"
    )


def gib(count: float) -> str:
    """Bytes as people read them here."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.1f} MiB"


def _held(tier: str, needed: int, there: int, parts: dict[str, int]) -> str:
    large = [(name, count) for name, count in parts.items() if count > needed / SMALLEST_TOLD]
    told = ", ".join(f"{name} {gib(count)}" for name, count in sorted(large, key=lambda part: -part[1]))
    return f"{tier}: {gib(needed)} of {gib(there)} ({told})"


def _tiers(plan: Plan) -> tuple[int, int, int]:
    return plan.memory.device_bytes, plan.memory.host_bytes, plan.memory.disk_bytes
