"""Which tensors a policy keeps, in the order in which the planner gives them their places. No torch."""

from dataclasses import dataclass
from typing import Literal

from longspan.engine.settings import Policy

LARGEST_BLOCK = 128  # numbers that share a scale when anchors are lossy


@dataclass(frozen=True)
class AnchorKey:
    """One anchor: the input `x` of a layer, or its attention output `o` with the log-sum-exp.

    A `working` anchor belongs to whichever segment is at work; `layer` then counts from the start of the segment.
    """

    layer: int
    kind: Literal["x", "o"]
    working: bool = False


def segments_of(layers: int, segment: int) -> tuple[range, ...]:
    """Consecutive layers that are arranged together, from the bottom up; the last may be shorter."""
    return tuple(range(start, min(start + segment, layers)) for start in range(0, layers, segment))


def anchor_keys(layers: int, *, keep: Policy, segment: int) -> tuple[AnchorKey, ...]:
    """Every anchor that a policy needs, working ones last.

    `attention` keeps o of every layer and x of every segment's first; the x's inside a segment are rebuilt, one segment
    at a time. `inputs` keeps x of every segment's first layer only, and runs the segment again.
    """
    if keep == "everything":
        return ()
    kept: list[AnchorKey] = []
    for layer in range(layers):
        if layer % segment == 0:
            kept.append(AnchorKey(layer, "x"))
        if keep == "attention":
            kept.append(AnchorKey(layer, "o"))
    longest = min(segment, layers)
    kept += [AnchorKey(place, "x", working=True) for place in range(1, longest)]
    if keep == "inputs":
        kept += [AnchorKey(place, "o", working=True) for place in range(longest)]
    return tuple(kept)


def scale_block(width: int) -> int:
    """Numbers of the last dim that share one scale in lossy anchors: as many as divide it evenly, 128 at most."""
    return next(block for block in range(min(LARGEST_BLOCK, width), 0, -1) if width % block == 0)
