"""Bytes that one call of attention takes beside what it is given, scheme by scheme, at its peak. No torch.

Written after attention/schemes/*.py, whose buffers they count; sums are float32, exchanges hold what they send and what
arrives. `Call` is that of attention/traffic.py: the heads of one call, the tokens of this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from longspan.attention.heads import HeadGeometry
from longspan.attention.traffic import Call
from longspan.parallel.mesh import Mesh

WIDE = 4  # bytes of float32
LONG_TOKENS = 98_304  # of a document whose attention goes backward head by head


@dataclass(frozen=True, kw_only=True)
class CallBytes:
    """What a call allocates under a mesh. `longest` document of the batch; `window` is the widest that hides anything.

    `kv_width` and `query_width` are those of the stages of Ulysses, as in an `EngineChoice`.
    """

    mesh: Mesh
    longest: int = 0
    window: int | None = None
    kv_width: int | None = None
    query_width: int | None = None

    def forward(self, call: Call) -> int:
        """o and its log-sum-exp, and all that is alive beside them."""
        return self._ulysses_forward(call) if self.mesh.ulysses > 1 else self._inner_forward(call)

    def backward(self, call: Call) -> int:
        """dq, dk, dv, and all that is alive beside them."""
        return self._ulysses_backward(call) if self.mesh.ulysses > 1 else self._inner_backward(call)

    # -- one device -----------------------------------------------------------------------------------------------

    def _local_backward(self, call: Call) -> int:
        return _kernel_backward(call, call.tokens, call.tokens, long=self.longest >= LONG_TOKENS)

    def _inner_forward(self, call: Call) -> int:
        if self.mesh.ring == 1:
            return _outputs(call)
        if self.mesh.across == "ring":
            return self._ring_forward(call)
        return self._gather(call, self._gather_forward, self._stretched_forward)

    def _inner_backward(self, call: Call) -> int:
        if self.mesh.ring == 1:
            return self._local_backward(call)
        if self.mesh.across == "ring":
            return self._ring_backward(call)
        return self._gather(call, self._gather_backward, self._stretched_backward)

    # -- ring -----------------------------------------------------------------------------------------------------

    def _ring_forward(self, call: Call) -> int:
        """Keys here and those that come; own tokens, then a wide o and one part of it after another."""
        kv, merged = call.kv_bytes, _wide_outputs(call) + _outputs(call)
        if self.mesh.ring == 2:
            return max(2 * kv + _outputs(call), kv + merged)
        return max(2 * kv + merged, 3 * kv + _wide_outputs(call))

    def _ring_backward(self, call: Call) -> int:
        """Own tokens; then each step's keys and the next, and their gradients: those that leave, come and are made."""
        kv, sums = call.kv_bytes, call.kv_sum_bytes
        own = 2 * kv + sums + self._local_backward(call)
        step = (1 if self.mesh.ring == 2 else 2) * kv + 3 * sums + _rectangle(call, call.tokens)
        return _wide_queries(call) + max(own, step)

    # -- gather ---------------------------------------------------------------------------------------------------

    def _gather(self, call: Call, plain: Callable[[Call], int], stretched: Callable[[Call], int]) -> int:
        """The dearest kind of layer; pieces grow by the keys that a window reaches."""
        return plain(call) if self.window is None else max(plain(call), stretched(call))

    def _gather_forward(self, call: Call) -> int:
        """All keys and values; while these are put in order, the values twice."""
        whole = self.mesh.ring * call.kv_bytes
        return whole + max(whole // 2, _outputs(call), _wide_outputs(call) + _outputs(call))

    def _gather_backward(self, call: Call) -> int:
        """Wide gradients of all keys beside them; then these twice on their way home."""
        ring = self.mesh.ring
        whole, sums = ring * call.kv_bytes, ring * call.kv_sum_bytes
        most = max(self._local_backward(call), _rectangle(call, (ring - 1) * call.tokens))
        return _wide_queries(call) + sums + max(whole + most, sums + call.kv_sum_bytes)

    def _stretched(self, call: Call) -> Call:
        reach = 0 if self.window is None else 2 * self.window  # before each of two pieces
        return replace(call, tokens=min(call.tokens + reach, self.mesh.ring * call.tokens))

    def _stretched_forward(self, call: Call) -> int:
        longer = self._stretched(call)
        given = _queries(longer) + longer.kv_bytes
        return self.mesh.ring * call.kv_bytes + given + _outputs(longer) + _outputs(call)

    def _stretched_backward(self, call: Call) -> int:
        longer = self._stretched(call)
        given = 2 * _queries(longer) + longer.kv_bytes + _outputs(longer)
        held = self.mesh.ring * (call.kv_bytes + call.kv_sum_bytes) + _wide_queries(call)
        return held + given + _kernel_backward(longer, longer.tokens, longer.tokens, long=False)

    # -- Ulysses --------------------------------------------------------------------------------------------------

    def stages(self, call: Call) -> HeadGeometry:
        """The stages of a call. Raises `attention.heads` for heads that do not divide."""
        full = HeadGeometry(heads=call.heads, kv_heads=call.kv_heads, degree=self.mesh.ulysses)
        width = self.kv_width or full.kv_heads * full.copies // self.mesh.ulysses
        return replace(full, kv_width=width, query_width=self.query_width)

    def _stage(self, call: Call, geometry: HeadGeometry) -> Call:
        """What the inner scheme is given: all tokens of the axis, the heads of one rank and stage."""
        width = geometry.kv_width
        return replace(call, heads=width * geometry.width, kv_heads=width, tokens=call.tokens * self.mesh.ulysses)

    def _ulysses_forward(self, call: Call) -> int:
        """Outputs of all heads; a stage's q, k, v, those that come, and the results of the one before going home."""
        geometry = self.stages(call)
        stage = self._stage(call, geometry)
        coming = self._others(_queries(stage) + (stage.kv_bytes if geometry.stages_of_kv == 1 else 0))
        home = self._home(_outputs(stage), stage.heads)
        work = _queries(stage) + stage.kv_bytes + self._inner_forward(stage)
        work += _beside(geometry.stages, coming, home)
        return _outputs(call) + max(work, stage.kv_bytes + home)

    def _ulysses_backward(self, call: Call) -> int:
        """dq and wide dk, dv of all heads; a stage's do, q, o, log-sum-exp, k, v, and what comes and goes."""
        geometry = self.stages(call)
        stage = self._stage(call, geometry)
        queries = 2 * _queries(stage) + _outputs(stage)
        repeated, summed = geometry.stages_of_kv > 1, geometry.stages_of_kv > 1 or geometry.copies > 1
        totals = stage.kv_sum_bytes if summed else stage.kv_bytes
        home = self._home(_queries(stage), stage.heads)
        coming = self._others(queries + (0 if repeated else stage.kv_bytes)) if geometry.stages > 1 else 0
        work = queries + stage.kv_bytes + self._inner_backward(stage)
        work += _beside(geometry.stages, coming, home) + (totals if repeated else 0)
        adding = 3 * totals if repeated else totals + (stage.kv_bytes if summed else 0)
        after = stage.kv_bytes + coming + home + max(adding, self._home(totals, stage.kv_heads))
        return _queries(call) + call.kv_sum_bytes + max(work, after)

    def _others(self, count: int) -> int:
        """What comes from the others; the part that stays here is a view."""
        return count - count // self.mesh.ulysses

    def _home(self, count: int, heads: int) -> int:
        """Results on their way: as made, the others' tokens copied out unless a view does, and what arrives."""
        return count + self._others(count) * (2 if heads > 1 else 1)


def _beside(stages: int, coming: int, home: int) -> int:
    """What is on its way under the work of a stage: the first has nothing to send home, the last nothing to get."""
    return 0 if stages == 1 else max(coming, home) if stages == 2 else coming + home


def _queries(call: Call) -> int:
    """q, or as much."""
    return call.tokens * call.heads * call.head_dim * call.element_bytes


def _wide_queries(call: Call) -> int:
    return call.tokens * call.heads * call.head_dim * call.sum_bytes


def _outputs(call: Call) -> int:
    """o and its log-sum-exp as a kernel gives them."""
    return call.tokens * call.heads * (call.head_dim * call.element_bytes + WIDE)


def _wide_outputs(call: Call) -> int:
    return call.tokens * call.heads * (call.head_dim + 1) * call.sum_bytes


def _rectangle(call: Call, keys: int) -> int:
    """The backward pass of a meeting in zigzag: all queries with half of the keys, or the other way round."""
    halves = ((call.tokens, -(-keys // 2)), (-(-call.tokens // 2), keys))
    return max(_kernel_backward(call, queries, met, long=max(queries, met) >= LONG_TOKENS) for queries, met in halves)


def _kernel_backward(call: Call, queries: int, keys: int, *, long: bool) -> int:
    """dq, dk, dv, the kernel's own float32 dq and row sums, and on a GPU its dk and dv of every query head. Long
    rows take one query head a call, and add dk and dv up in float32 (attention/schemes/local.py).
    """
    d, element = call.head_dim, call.element_bytes
    dq = queries * call.heads * d * element
    inside = queries * (d + 1) * WIDE + (keys * 2 * d * element if element < WIDE else 0)
    if not long:
        return dq + 2 * keys * call.kv_heads * d * element + call.heads * inside
    return dq + 2 * keys * call.kv_heads * d * WIDE + inside + queries * d * element
