"""Bytes of one call of a scheme while it lasts, its results included: written after attention/schemes/, line by line.

Shapes as `longspan.attention.traffic` has them: the heads of one call, `tokens` of this rank, equally many on all.
"""

import math
from dataclasses import dataclass, replace

from longspan.attention.traffic import Call
from longspan.plan.workload import Spread

LONG_TOKENS = 98_304  # of a document whose attention goes backward head by head (attention/schemes/local.py)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most that one call holds at once."""

    forward_bytes: int
    backward_bytes: int


def call_peak(call: Call, spread: Spread, *, longest_tokens: int) -> Peak:
    """What one call of the spread's scheme holds; `longest_tokens` is this rank's share of the longest document."""
    if spread.ulysses > 1:
        return _ulysses(call, spread, longest_tokens=longest_tokens)
    if spread.ring > 1:
        return (_gather if spread.kind == "gather" else _ring)(call, spread.ring, longest_tokens=longest_tokens)
    return _local(call, longest_tokens=longest_tokens)


def _local(call: Call, *, longest_tokens: int) -> Peak:
    """Forward o and its log-sum-exp. Backward dq, dk, dv, the kernel's own float32 dq and row sums, and on a GPU its dk
    and dv of every query head. Long rows take one query head a call, and add dk and dv up in float32.
    """
    d, element, wide = call.head_dim, call.element_bytes, call.sum_bytes
    per_head = (d + 1) * wide + (2 * d * element if element < wide else 0)
    if longest_tokens < LONG_TOKENS:
        backward = (call.heads + 2 * call.kv_heads) * d * element + call.heads * per_head
    else:
        backward = call.heads * d * element + 2 * call.kv_heads * d * wide + per_head + d * element
    return Peak(forward_bytes=_query_bytes(call) + _lse_bytes(call), backward_bytes=call.tokens * backward)


def _ring(call: Call, ranks: int, *, longest_tokens: int) -> Peak:
    """Forward a float32 o, the part to be merged, and keys at work and on their way. Backward a float32 dq beside the
    local call, and three times the gradients of keys: going, coming, and those that the step adds.
    """
    moving = (2 if ranks > 2 else 1) * call.kv_bytes
    local = _local(call, longest_tokens=longest_tokens)
    return Peak(
        forward_bytes=local.forward_bytes + _wide(call, _query_bytes(call)) + _lse_bytes(call) + moving,
        backward_bytes=local.backward_bytes + _wide(call, _query_bytes(call)) + moving + 3 * call.kv_sum_bytes,
    )


def _gather(call: Call, ranks: int, *, longest_tokens: int) -> Peak:
    """Everybody's keys and values, in backward their float32 gradients too; o and dq as in the ring. When the kernels
    are done, one of both gradients is laid out for its ranks twice, and its sum arrives.
    """
    local = _local(call, longest_tokens=longest_tokens)
    wide_q, keys, results = _wide(call, _query_bytes(call)), ranks * call.kv_bytes, _results(call)
    home = (2 * ranks + 1) * call.kv_sum_bytes // 2
    return Peak(
        forward_bytes=local.forward_bytes + wide_q + _lse_bytes(call) + keys,
        backward_bytes=wide_q + keys + ranks * call.kv_sum_bytes + max(local.backward_bytes, results + home),
    )


def _ulysses(call: Call, spread: Spread, *, longest_tokens: int) -> Peak:
    """What the inner scheme takes for a stage's heads on all tokens; their q, k, v, which arrived, and as much in parts
    that are on their way; with several stages also the results of the stage before. What goes back is there twice, in
    parts to send and parts that arrive.
    """
    ranks = spread.ulysses
    copies = math.lcm(call.kv_heads, ranks)
    kv_heads = spread.kv_width or copies // ranks
    stages = copies // (ranks * kv_heads)
    inner = replace(call, heads=call.heads // (ranks * stages), kv_heads=kv_heads, tokens=call.tokens * ranks)
    across = call_peak(inner, replace(spread, ulysses=1), longest_tokens=longest_tokens * ranks)
    query, lse, keys = _query_bytes(inner), _lse_bytes(inner), inner.kv_bytes
    others = (ranks - 1) / ranks  # the share of a tensor that comes from or goes to others
    back, sums = 2 * others * query, inner.kv_sum_bytes if copies > call.kv_heads or stages > 1 else inner.kv_bytes
    before = back + query if stages > 1 else 0
    forward = _query_bytes(call) + _lse_bytes(call) + (1 + others) * (query + keys)
    backward = _query_bytes(call) + call.kv_sum_bytes + (1 + others) * (3 * query + lse + keys)
    at_work = across.backward_bytes + before + (sums if stages > 1 else 0)
    return Peak(
        forward_bytes=round(forward + max(across.forward_bytes + before, query + back) + (1 + 2 * others) * lse),
        backward_bytes=round(backward + max(at_work, _results(inner) + back + 2 * others * sums)),
    )


def _results(call: Call) -> int:
    """dq, dk and dv as a scheme gives them."""
    return _query_bytes(call) + call.kv_bytes


def _query_bytes(call: Call) -> int:
    """One tensor of the queries' shape."""
    return call.tokens * call.heads * call.head_dim * call.element_bytes


def _lse_bytes(call: Call) -> int:
    return call.tokens * call.heads * call.sum_bytes


def _wide(call: Call, count: int) -> int:
    """The same tensor in float32."""
    return count * call.sum_bytes // call.element_bytes
