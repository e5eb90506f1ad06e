"""One line of a benchmark: the same keys for this engine and for the peers measured beside it. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from longspan.plan.flops import model_flops, share_of_peak
from longspan.plan.machine import peak_flops
from longspan.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class BenchLine:
    """What was run, where, and what came of it; None where a runner cannot know.

    `peak_bytes` is the most that live device tensors took at once (on a CPU, how far the process grew),
    `host_peak_bytes` what lay in host memory for the engine. `causal_mfu` and `hfu` follow `longspan.plan.flops`.
    """

    name: str
    shape: str
    tokens: int
    layers: int
    keep: str
    segment: int | None
    tile_tokens: int | None
    group: int | None
    tokens_per_second: float | None
    causal_mfu: float | None
    hfu: float | None
    peak_bytes: int | None
    predicted_peak_bytes: int | None
    weight_and_gradient_bytes: int | None
    host_peak_bytes: int | None
    stall_share: float | None
    step_seconds: float | None
    skipped_attention: bool
    command: str
    hardware: str
    versions: dict[str, str]
    date: str
    commit: str
    more: dict[str, Any]  # what only one runner has to say: the loss, the optimizer, an error

    def to_json(self) -> dict[str, Any]:
        """A flat JSON value: `more` stands beside the other keys."""
        value = asdict(self)
        more: dict[str, Any] = value.pop("more")
        return value | more


KEYS = tuple(key for key in BenchLine.__dataclass_fields__ if key != "more")


def today() -> str:
    """The date as it stands in a line."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def speed(shape: ModelShape, lengths: Sequence[int], *, seconds: float, hardware: str) -> dict[str, float | None]:
    """Tokens a second and causal MFU of one pass over documents of these lengths."""
    flops = model_flops(shape, lengths)
    return {
        "tokens_per_second": sum(lengths) / seconds,
        "causal_mfu": share_of_peak(flops, seconds=seconds, peak_flops=peak_flops(hardware)),
    }
