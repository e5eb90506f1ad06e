"""Bytes that a step needs at its peak on every tier, as named parts, phase by phase.

Each part is one line of `Parts`, written after the code that allocates it; the peak is the largest phase. Letters are
those of docs/guide/words.md, with T tokens of this rank, t of a tile and E bytes of an activation. What one call of
attention takes is in `schemes.py`, what weights and their gradients take in `weights.py`.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from longspan.attention.traffic import Call
from longspan.engine.anchors import AnchorKey, anchor_keys, scale_block
from longspan.engine.settings import EngineChoice, Tier
from longspan.plan.schemes import WIDE, CallBytes
from longspan.plan.weights import Bytes, WeightBytes
from longspan.plan.workload import Workload
from longspan.shape import ModelShape

RING = 2  # buffers of a reader, and of what is written to another tier (engine/store.py)
FILE_BUFFERS = 3  # host buffers of an anchor that lies in a file (engine/diskfile.py)
BATCH_BYTES = 28  # of a token: id, target and position in int64, weight in float32


@dataclass(frozen=True)
class Prediction:
    """What a choice needs. `resident` lives through all phases; `host` and `disk` are taken once.

    `device_bytes` is the peak of live device tensors; the device's own context and the allocator's slack come on top.
    """

    resident: Bytes
    phases: dict[str, Bytes]
    host: Bytes
    disk: Bytes

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def device_bytes(self) -> int:
        """The peak on the device."""
        return sum(self.resident.values()) + sum(self.phases[self.peak_phase].values())

    @property
    def host_bytes(self) -> int:
        """Host memory, page-locked on a GPU."""
        return sum(self.host.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes of files."""
        return sum(self.disk.values())

    @property
    def parts(self) -> Bytes:
        """All parts that are alive at the peak, largest first."""
        found = {name: count for name, count in (self.resident | self.phases[self.peak_phase]).items() if count}
        return dict(sorted(found.items(), key=lambda part: -part[1]))


def predict(work: Workload, choice: EngineChoice) -> Prediction:
    """The bytes of one forward and backward pass and of the weights' states under a choice."""
    parts = Parts(work, choice)
    if choice.keep == "everything":
        return Prediction(parts.weights.states(plain=True), parts.plain_phases, parts.host, parts.disk)
    return Prediction(parts.weights.states(plain=False) | parts.engine, parts.phases, parts.host, parts.disk)


def anchor_bytes(shape: ModelShape, key: AnchorKey, *, tokens: int, element_bytes: int, lossy: bool = False) -> int:
    """Bytes of one anchor over so many tokens: 2m, or 2hd + 4h, a token in bf16; half of m and hd when lossy."""
    if key.kind == "x":
        return tokens * _kept_bytes(shape.width, element_bytes, lossy=lossy)
    return tokens * shape.heads * (_kept_bytes(shape.head_dim, element_bytes, lossy=lossy) + WIDE)


def _kept_bytes(width: int, element_bytes: int, *, lossy: bool) -> int:
    """Bytes of a last dim: a code for each number and a float32 scale for each block, or the numbers."""
    return width + width // scale_block(width) * WIDE if lossy else width * element_bytes


@dataclass(frozen=True)
class Parts:
    """Every part of one workload under one choice, in bytes."""

    work: Workload
    choice: EngineChoice

    @property
    def weights(self) -> WeightBytes:
        """Those of weights, gradients and the optimizer."""
        return WeightBytes(self.work)

    # -- letters --------------------------------------------------------------------------------------------------

    @property
    def _tile(self) -> int:
        return min(self.choice.tile_tokens, self.work.tokens)

    @property
    def _loss_tile(self) -> int:
        return min(self.choice.loss_tile_tokens, self._tile)

    @property
    def _element(self) -> int:
        return self.work.element_bytes

    @property
    def _hd(self) -> int:
        return self.work.shape.heads * self.work.shape.head_dim

    @property
    def _group_kv(self) -> int:
        return min(self.choice.group, self.work.shape.kv_heads)

    @property
    def _group_queries(self) -> int:
        return self._group_kv * self.work.shape.heads // self.work.shape.kv_heads

    @property
    def _u(self) -> int:
        """One residual stream."""
        return self.work.tokens * self.work.shape.width * self._element

    def _on(self, tier: Tier) -> int:
        """Anchors of a tier."""
        return sum(count * self._anchor(kind) for (kind, place), count in self._places.items() if place == tier)

    def _anchor(self, kind: Literal["x", "o"]) -> int:
        work, lossy = self.work, self.choice.lossy_anchors
        return anchor_bytes(
            work.shape, AnchorKey(0, kind), tokens=work.tokens, element_bytes=self._element, lossy=lossy
        )

    @cached_property
    def _places(self) -> Counter[tuple[Literal["x", "o"], Tier]]:
        """How many anchors of each kind lie on each tier."""
        keys = anchor_keys(self.work.shape.layers, keep=self.choice.keep, segment=self.choice.segment)
        return Counter((key.kind, tier) for key, tier in zip(keys, self.choice.anchors, strict=True))

    # -- what lives as long as training -----------------------------------------------------------------------------

    @cached_property
    def engine(self) -> Bytes:
        """What the engine takes when it is made, and what a batch brings."""
        shape, tokens, context = self.work.shape, self.work.tokens, self.work.mesh.context
        return {
            "anchors": self._on("device"),
            "q, k, v": tokens * (shape.heads + 2 * shape.kv_heads) * shape.head_dim * self._element,
            "log-sum-exp": tokens * shape.heads * WIDE,
            "cos and sin": (1 + len(shape.position_sets)) * tokens * shape.head_dim * WIDE,
            "batch": tokens * BATCH_BYTES * (1 if context == 1 else 1 + context),  # own tokens beside the whole
            "staging": RING * (self._gradient_tile + self._coded_tiles),
        }

    # -- what lives in one phase ------------------------------------------------------------------------------------

    @cached_property
    def phases(self) -> dict[str, Bytes]:
        """The parts that come and go, by phase."""
        residual, weights = {"residual": self._u}, self.weights
        backward = self._backward
        readers = {"tiles read": self._first_ring}
        found = {
            "positions": {"angles": self.work.tokens * self.work.shape.head_dim // 2 * 3 * 8},
            "forward attention": residual | weights.block | {"attention of a group": self.call.forward(self.group)},
            "forward tile": residual | weights.block | {"tile": self._mlp_tile},
            "loss": residual | {"logits": self._logits, "head's sum": weights.head_sum} | weights.head,
            "backward tile": backward | readers | {"tile": self._mlp_tile, "heads read": self._heads_ring},
            "backward attention": backward
            | {"tiles read": self._first_ring + self._second_ring}
            | {"heads read": self._heads_ring, "attention of a group": self.call.backward(self.group)},
            "backward projections": backward
            | {"tiles read": 2 * self._first_ring + self._second_ring}
            | {"heads read": self._heads_ring, "tile": self._head_tile},
            "embedding": self._gradient | weights.embedding | {"tile": self._wide_tile},
            "update": (backward if self.work.states.update_inside else {}) | {"update's tile": weights.update_tile},
        }
        if self.work.mesh.ranks > 1:
            found["gather of the head"] = residual | {"head": weights.gather_of_head}
            found["sums of the head"] = residual | weights.ends
        return found

    @cached_property
    def plain_phases(self) -> dict[str, Bytes]:
        """`everything`: what autograd keeps of all layers, and the loss as in engine/step.py."""
        shape, tokens, element = self.work.shape, self.work.tokens, self._element
        norms = 2 * shape.width * (WIDE + 2 * element)
        attention = (2 * self._hd + 2 * shape.kv_heads * shape.head_dim) * element + WIDE * shape.heads
        kept = shape.layers * tokens * (norms + attention + 4 * shape.mlp_width * element)
        common = {
            "kept by autograd": kept,
            "batch": tokens * BATCH_BYTES,
            "cos and sin": (1 + len(shape.position_sets)) * tokens * shape.head_dim * WIDE,
            "weights in the type of tiles": self.work.shape.parameters * element if self.weights.casts else 0,
        }
        logits = self.work.shape.vocabulary * min(self.choice.loss_tile_tokens, tokens) * (2 * element + 3 * WIDE)
        return {
            "loss": common | {"last norm": 3 * self._u, "logits": logits},
            "backward": common | {"on the way": tokens * 3 * shape.mlp_width * element + 2 * self._u},
        }

    @property
    def _backward(self) -> Bytes:
        """dO, the residual gradient, the weights of the block at work and the sums of its gradients."""
        tied = {"head's sum": self.weights.head_sum if self.work.shape.tied else 0}
        do = {"dO": self.work.tokens * self._hd * self._element}
        return self._gradient | self.weights.block | do | self.weights.block_sums | tied

    @property
    def _gradient(self) -> Bytes:
        return {"residual gradient": self._u if self.choice.gradient == "device" else 0}

    @property
    def _logits(self) -> int:
        """One tile's logits, which become their own gradient in place; plain PyTorch on a CPU holds four of them."""
        return self._loss_tile * self.work.shape.vocabulary * self._element * (1 if self._element < WIDE else 4)

    @property
    def _mlp_tile(self) -> int:
        """o, h and its norm, gate, up and their product."""
        return self._tile * (self._hd + 2 * self.work.shape.width + 3 * self.work.shape.mlp_width) * self._element

    @property
    def _head_tile(self) -> int:
        """The norm and its gradient, one projection's gradient before and after the rotation."""
        return self._tile * (2 * self.work.shape.width + 2 * self._hd) * self._element

    @property
    def _wide_tile(self) -> int:
        return self._tile * self.work.shape.width * (WIDE + self._element)

    @property
    def call(self) -> CallBytes:
        """How a call of attention is spread."""
        longest = max(self.work.document_lengths)
        windows = [window for window in self.work.shape.windows if window is not None and window < longest]
        return CallBytes(
            mesh=self.work.mesh,
            longest=longest,
            window=max(windows, default=None),
            kv_width=self.choice.kv_width,
            query_width=self.choice.query_width,
        )

    @property
    def group(self) -> Call:
        """The heads and tokens of one call."""
        return Call(
            heads=self._group_queries,
            kv_heads=self._group_kv,
            head_dim=self.work.shape.head_dim,
            tokens=self.work.tokens,
            element_bytes=self._element,
        )

    # -- copies -----------------------------------------------------------------------------------------------------

    @property
    def _gradient_tile(self) -> int:
        return 0 if self.choice.gradient == "device" else self._tile * self.work.shape.width * self._element

    def _leaves(self, kind: str) -> bool:
        """Whether any anchor of a kind is away from the device, so that it is read through buffers."""
        return any(found == kind and tier != "device" for found, tier in self._places)

    def _tile_of(self, kind: Literal["x", "o"]) -> int:
        """One tile of x or o as it is kept."""
        shape, lossy = self.work.shape, self.choice.lossy_anchors
        if kind == "x":
            return self._tile * _kept_bytes(shape.width, self._element, lossy=lossy)
        return self._tile * shape.heads * _kept_bytes(shape.head_dim, self._element, lossy=lossy)

    def _copied(self, kind: Literal["x", "o"]) -> int:
        """One tile of x or o on its way to or from another tier."""
        return self._tile_of(kind) if self._leaves(kind) else 0

    def _decoded(self, width: int) -> int:
        """The buffer that a reader decodes a tile of lossy anchors into."""
        return self._tile * width * self._element if self.choice.lossy_anchors else 0

    @property
    def _coded_tiles(self) -> int:
        """Codes and scales that leave the device, and the x's that a segment rebuilds before they are coded."""
        if not self.choice.lossy_anchors:
            return 0
        rebuilt = self._decoded(self.work.shape.width) if self.choice.segment > 1 else 0
        return self._copied("x") + self._copied("o") + rebuilt

    @property
    def _first_ring(self) -> int:
        """Tiles of x, o and the gradient."""
        ring = RING * (self._copied("x") + self._copied("o") + self._gradient_tile)
        return ring + self._decoded(self.work.shape.width + self._hd)

    @property
    def _second_ring(self) -> int:
        """Tiles of x and the gradient."""
        return RING * (self._copied("x") + self._gradient_tile) + self._decoded(self.work.shape.width)

    @property
    def _heads_ring(self) -> int:
        """o and the log-sum-exp of two head groups, all tokens."""
        d, lossy = self.work.shape.head_dim, self.choice.lossy_anchors
        depth = min(RING, -(-self.work.shape.kv_heads // self._group_kv)) if self._leaves("o") else 0
        decoded = d * self._element if lossy else 0
        per_head = depth * (_kept_bytes(d, self._element, lossy=lossy) + WIDE) + decoded
        return self.work.tokens * self._group_queries * per_head

    # -- other tiers ------------------------------------------------------------------------------------------------

    @cached_property
    def host(self) -> Bytes:
        """Anchors, the residual gradient, the optimizer, the copy that is saved from, and the buffers of files."""
        states = self.work.states
        files = sum(tier == "disk" for tier in self.choice.anchors) * max(self._tile_of("x"), self._tile_of("o"))
        files += self._gradient_tile if self.choice.gradient == "disk" else 0
        return {
            "anchors": self._on("host"),
            "residual gradient": self._u if self.choice.gradient == "host" else 0,
            "optimizer": self.weights.optimizer if states.states_on == "host" else 0,
            "copy for checkpoints": self.weights.copied,
            "buffers of files": FILE_BUFFERS * files,
        }

    @cached_property
    def disk(self) -> Bytes:
        """Anchors and the residual gradient in files."""
        return {
            "anchors": self._on("disk"),
            "residual gradient": self._u if self.choice.gradient == "disk" else 0,
        }
