"""How a recipe may steer the engine, and the choice that the planner makes of it. No torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from longspan.config import Settings

Gib = Annotated[float, Field(gt=0.0)]
Policy = Literal["attention", "inputs", "everything"]
Tier = Literal["device", "host", "disk"]
TIERS: tuple[Tier, ...] = ("device", "host", "disk")  # nearest first


class EngineSettings(Settings):
    """What the engine keeps for the backward pass and where; whatever is left out is chosen from length and memory.

    `keep` is the policy: `attention` keeps attention outputs of every block, `inputs` only the input of every
    segment, `everything` is plain autograd. A segment is `segment` consecutive blocks. `farthest` is the last tier that
    anchors may go to. `tile_tokens` bounds token-wise work, `group` is the number of key/value heads (with their query
    heads) of one kernel call. `lossy_anchors` keeps anchors in block-scaled fp8: half the bytes, and not exact.
    `device_gib` and `host_gib` stand for the memory that the machine shows, to leave some of it free, or where a
    virtual machine grows as it is used.
    """

    keep: Literal["auto", "attention", "inputs", "everything"] = "auto"
    segment: Annotated[int, Field(ge=1, le=64)] | None = None
    tile_tokens: Annotated[int, Field(ge=16)] | None = None
    group: Annotated[int, Field(ge=1)] | None = None
    farthest: Tier = "host"
    lossy_anchors: bool = False
    device_gib: Gib | None = None
    host_gib: Gib | None = None


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """Everything that the engine needs to know before it runs: no "auto" is left.

    `anchors` names the tier of every anchor slot in the order of `anchor_slots`; `gradient` is the tier of the residual
    gradient. `group` counts key/value heads of one kernel call; over ranks of Ulysses, of one exchange, which goes in
    stages of `kv_width` and `query_width` heads a rank (`attention.schemes.ulysses`).
    """

    keep: Policy = "attention"
    segment: int = 1
    tile_tokens: int = 8192
    loss_tile_tokens: int = 2048
    group: int = 1
    anchors: tuple[Tier, ...] = ()
    gradient: Tier = "device"
    lossy_anchors: bool = False
    kv_width: int | None = None
    query_width: int | None = None
