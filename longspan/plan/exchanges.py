"""Seconds of exchanges between ranks that no work hides: bytes over the rate of a link, less the work under them.

What attention sends is told by attention/traffic.py; what goes under what, by attention/schemes/*.py and
parallel/weights.py. Exchanges of attention and of weights are taken as if each had the link for itself.
"""

import math
from dataclasses import dataclass, replace

from longspan.attention import traffic
from longspan.engine.anchors import segments_of
from longspan.engine.settings import EngineChoice
from longspan.plan.memory import Parts
from longspan.plan.schemes import WIDE
from longspan.plan.weights import block_parameters
from longspan.plan.workload import Workload

STAGE_SECONDS = 1e-3  # that a stage costs beside its bytes: starting it, and a kernel that has to make room for it


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """One pass on one rank, whose work takes `forward` and `backward` seconds, attention's share of them apart."""

    work: Workload
    choice: EngineChoice
    link_bytes_per_second: float
    forward: float
    backward: float
    forward_attention: float  # of one forward pass; what runs again takes as long
    backward_attention: float

    @property
    def seconds(self) -> float:
        """All of them."""
        return self._attention + self._weights

    def _link(self, count: float) -> float:
        return count / self.link_bytes_per_second

    @property
    def _again(self) -> int:
        """Layers whose attention runs a second time in the backward pass."""
        if self.choice.keep != "inputs":
            return 0
        return segments_of(self.work.shape.layers, self.choice.segment)[-1].start

    # -- attention ------------------------------------------------------------------------------------------------

    @property
    def _attention(self) -> float:
        if self.work.mesh.context == 1:
            return 0.0
        layers, kv_heads = self.work.shape.layers, self.work.shape.kv_heads
        call = Parts(self.work, self.choice).group
        calls = kv_heads / call.kv_heads
        work = [seconds / layers / calls for seconds in (self.forward_attention, self.backward_attention)]
        there, back = self._ulysses(call, *work) if self.work.mesh.ulysses > 1 else self._across(call, *work)
        return calls * ((layers + self._again) * there + layers * back)

    def _ulysses(self, call: traffic.Call, forward: float, backward: float) -> tuple[float, float]:
        """The first stage's way there, the last one's back, gradients of keys, and what work is too short for."""
        ranks, geometry = self.work.mesh.ulysses, Parts(self.work, self.choice).call.stages(call)
        stages, staged = geometry.stages, geometry.stages_of_kv > 1
        sent = traffic.ulysses(call, ranks=ranks, stages=stages, kv_stages=stages // geometry.stages_of_kv)
        width = call.sum_bytes if staged or geometry.copies > 1 else call.element_bytes
        keys = 2 * (ranks - 1) * call.tokens * math.lcm(call.kv_heads, ranks) // ranks * call.head_dim * width
        inner = replace(
            call,
            heads=geometry.kv_width * geometry.width,
            kv_heads=geometry.kv_width,
            tokens=call.tokens * ranks,
        )
        there, back = self._across(inner, forward / stages, backward / stages)
        for_queries = self._staged(sent.backward_bytes - keys, stages, backward) + self._link(keys)
        return self._staged(sent.forward_bytes, stages, forward) + stages * there, for_queries + stages * back

    def _staged(self, count: float, stages: int, work: float) -> float:
        one = self._link(count / stages)
        return one + (stages - 1) * max(0.0, one - work / stages) + stages * STAGE_SECONDS

    def _across(self, call: traffic.Call, forward: float, backward: float) -> tuple[float, float]:
        """A ring hides all but the last hop if its steps are long enough; a gather hides nothing."""
        ranks = self.work.mesh.ring
        if ranks == 1:
            return 0.0, 0.0
        if self.work.mesh.across == "gather":
            sent = traffic.gather(call, ranks=ranks)
            return self._link(sent.forward_bytes), self._link(sent.backward_bytes)
        sent, home = traffic.ring(call, ranks=ranks), call.kv_sum_bytes
        steps = ranks - 1
        there = self._link(sent.forward_bytes) - steps * forward / ranks
        back = self._link(sent.backward_bytes - home) - steps * backward / ranks
        return max(0.0, there), max(0.0, back) + self._link(home)

    # -- weights --------------------------------------------------------------------------------------------------

    @property
    def _weights(self) -> float:
        """Blocks come and their gradients go under the work on other blocks; embedding and head wait for theirs."""
        work, mesh, shape = self.work, self.work.mesh, self.work.shape
        rows, copies = mesh.shard * mesh.context, mesh.replicate
        blocks, ends = block_parameters(shape), 2 * shape.vocabulary * shape.width
        gathered = self._link((rows - 1) / rows * work.element_bytes)  # of one weight
        reduced = self._link(WIDE * ((rows - 1) / rows + 2 * (copies - 1) / copies / rows))
        trained = (work.states.trainable or 0) / shape.layers if work.adapters else blocks
        forward = max(0.0, gathered * blocks - self.forward / shape.layers)
        backward = max(0.0, gathered * blocks + reduced * trained - self.backward / shape.layers)
        around = gathered * ends + reduced * (trained + (0 if work.adapters else ends))
        return shape.layers * (forward + backward) + around
