"""Long forward passes by hand, without gradients: a context into kept keys and values, questions that branch from it.

A context goes through the blocks one after another, whole, as in training (`longspan.engine.block`): so it is read at
the engine's speed, and each layer's keys and values are complete before the next begins and may leave the device.
Questions then go through the blocks side by side, each seeing the context and itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from longspan.attention.cached import masked, over_all
from longspan.attention.documents import Runs
from longspan.attention.online import merge
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import Local
from longspan.engine import pointwise
from longspan.engine.block import BlockPass, Work
from longspan.engine.hostmemory import ALIGNMENT, HostMemory
from longspan.engine.kept import Keep, Kept, layer_bytes, layers_on_device
from longspan.engine.linear import Linear
from longspan.engine.precision import compute_dtype
from longspan.engine.shares import from_all, own_pieces, places
from longspan.engine.store import Store
from longspan.model.decoder import Block, Decoder
from longspan.parallel.dist import Axis
from longspan.parallel.exchange import all_gather
from longspan.parallel.weights import Weights, Whole
from longspan.rope.rotate import Angles

TILE_TOKENS = 8192
LOGIT_ROWS = 2048  # 2,048 x 128,256 float32 logits are 1.05 GB
KERNEL_BYTES = 2**30  # what one kernel call may give back: more heads a call keep a GPU busy on short rows


@dataclass(frozen=True)
class Order:
    """Something that a prefill, or a branch of its context, is asked for."""

    what: Literal["read", "nll", "branch", "extend"]
    tokens: Int[Tensor, " S"] | None = None
    texts: Sequence[Sequence[int]] = ()
    count: int = 0
    room: int = 0


class Prefill:
    """One decoder, forward only. Host memory for kept keys and values is taken once and used again.

    One context is kept at a time: reading the next puts the one before away. Under a `scheme` over the ranks of `axes`,
    the innermost last, each keeps the keys of its own tokens; all read the same contexts, ask the same questions, and
    get the same answers. `tell` hears what is asked for, before it is done, so that other ranks can do it too
    (`longspan.engine.following`). `weights` says where parameters lie, whole on this rank unless told.
    """

    def __init__(
        self,
        decoder: Decoder,
        keep: Keep | None = None,
        *,
        scheme: Scheme | None = None,
        axes: Sequence[Axis] = (),
        weights: Weights | None = None,
    ) -> None:
        self.decoder, self.keep = decoder, keep or Keep()
        self.dtype = compute_dtype(decoder)
        self.axes = tuple(axis for axis in axes if axis.size > 1)
        self.tell: Callable[[Order], None] = lambda _: None
        self._host = HostMemory(decoder.device)
        self._kept: Kept | None = None
        self._scheme, self._weights = scheme or Local(merge=pointwise.merge_), weights or Whole(decoder)

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, " S"]) -> Kept:
        """The keys and values of a context. Raises `LongspanError` when they fit neither the device nor the host."""
        self.tell(Order("read", tokens=tokens))
        shape, at = self.decoder.shape, self._places(len(tokens))
        store = self._store(len(at))
        if self._kept is not None:
            self._kept.close()
        self._host.reset()
        near = layers_on_device(self.keep, shape, len(at), dtype=self.dtype, device=self.decoder.device)
        if near < shape.layers:
            each = layer_bytes(shape, len(at), self.dtype, codes=self.keep.codes)
            each += 4 * len(store.tiles) * ALIGNMENT  # every piece begins on a page
            self._host.reserve((shape.layers - near) * each)
        self._kept = Kept(shape, store, at, length=len(tokens), dtype=self.dtype, on_device=near, codes=self.keep.codes)
        self._through(tokens.to(self.decoder.device), at, store, self._kept)
        self._kept.finish()
        return self._kept

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)

    @torch.no_grad()
    def token_nll(self, tokens: Int[Tensor, " S"]) -> Float[Tensor, " targets"]:
        """Loss in nats of tokens[1:], each given all tokens before it; float32 `[S − 1]`, logits never whole."""
        self.tell(Order("nll", tokens=tokens))
        tokens, total = tokens.to(self.decoder.device), len(tokens) - 1
        at = self._places(total)
        x = self._through(tokens[:-1], at, self._store(len(at)), None)
        return from_all(self.losses(x, tokens[at + 1]), self._scheme, self.axes, total=total)

    @torch.no_grad()
    def hidden(self, tokens: Int[Tensor, " T"], angles: tuple[Angles, ...], *, runs: Runs) -> Float[Tensor, "T m"]:
        """The residual stream before the last norm, of texts laid one after another, under given angles `[T, pairs]`.

        Each text lies in a run of its own and sees itself alone. For one device.
        """
        store = self._store(len(tokens))
        x = self.embedded(tokens, store)
        work = self.work(angles, store, runs=runs)
        for block in self.blocks():
            self.block(BlockPass(block, work, dtype=self.dtype), x, work)
        return x

    @torch.no_grad()
    def losses(self, hidden: Float[Tensor, "n m"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss in nats of each target after its row of the residual stream, float32; logits never whole."""
        found = []
        for rows, wanted in zip(torch.split(hidden, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True):
            logits = self._head(rows)
            scale = torch.zeros(len(rows), dtype=torch.promote_types(logits.dtype, torch.float32), device=rows.device)
            found.append(pointwise.cross_entropy_(logits, wanted, scale))  # no gradient is asked for: scale zero
        return torch.cat(found).float()

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """Logits, in float32 or wider, of rows of the residual stream before the last norm."""
        found = self._head(hidden)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def _head(self, hidden: Tensor) -> Tensor:
        norm, end = self.decoder.norm, self.decoder.embed if self.decoder.shape.tied else self.decoder.head
        with self._weights.at_hand(norm, following=end), self._weights.at_hand(end):
            return Linear(end, self.dtype)(pointwise.norm(hidden, norm.weight.detach(), norm.epsilon))

    def _places(self, total: int) -> Int[Tensor, " S"]:
        """Which tokens of a context are this rank's, in its order."""
        return places(own_pieces(self._scheme, total), device=self.decoder.device)

    def _store(self, tokens: int) -> Store:
        tile = min(TILE_TOKENS, tokens)
        return Store(self.decoder.device, tokens=tokens, tile_tokens=tile, host=self._host)

    def _through(
        self, tokens: Int[Tensor, " total"], at: Int[Tensor, " S"], store: Store, kept: Kept | None
    ) -> Float[Tensor, "S m"]:
        """The residual stream behind the last block, of the tokens at some places."""
        x = self.embedded(tokens[at], store)
        # Kept keys have places of their own, so their buffers here hold nothing.
        work = self.work(self.angles(at), store, runs=((0, len(tokens)),), kv_tokens=0 if kept else None)
        for layer, block in enumerate(self.blocks()):
            k, v = (work.k, work.v) if kept is None else kept.target(layer)
            run = BlockPass(block, replace(work, k=k, v=v), dtype=self.dtype)
            self.block(run, x, work)
            if kept is not None:
                kept.commit(layer)
        return x

    def blocks(self) -> Iterator[Block]:
        """The decoder's blocks from the bottom up, each with its weights at hand."""
        blocks = [block for block in self.decoder.blocks if isinstance(block, Block)]
        for block, following in zip(blocks, [*blocks[1:], self.decoder.norm], strict=True):
            with self._weights.at_hand(block, following=following):
                yield block

    def embedded(self, tokens: Int[Tensor, " T"], store: Store) -> Float[Tensor, "T m"]:
        """The residual stream before the first block."""
        x = torch.empty((len(tokens), self.decoder.shape.width), dtype=self.dtype, device=tokens.device)
        with self._weights.at_hand(self.decoder.embed, following=self.decoder.blocks[0]):
            for tile in store.tiles:
                x[tile].copy_(functional.embedding(tokens[tile], self.decoder.embed.weight))
        return x

    def angles(self, positions: Int[Tensor, " T"]) -> tuple[Angles, ...]:
        """The decoder's own angles at some positions, `[T, pairs]` each."""
        return tuple((cos[0], sin[0]) for cos, sin in self.decoder.angles(positions[None]))

    def work(self, angles: tuple[Angles, ...], store: Store, *, runs: Runs, kv_tokens: int | None = None) -> Work:
        """Buffers of one pass over some tokens; those of keys and values for `kv_tokens`, if these are fewer."""
        cos = angles[0][0]
        shape, device, total = self.decoder.shape, cos.device, len(cos)
        wide = torch.promote_types(self.dtype, torch.float32)
        heads_bytes = shape.heads // shape.kv_heads * total * shape.head_dim * self.dtype.itemsize
        step = shape.kv_heads  # over ranks the scheme goes through the heads as it likes
        if self._scheme.ranks == 1:
            step = max(1, min(step, KERNEL_BYTES // heads_bytes))
        starts = range(0, shape.kv_heads, step)
        kv = (shape.kv_heads, total if kv_tokens is None else kv_tokens, shape.head_dim)
        return Work(
            store=store,
            scheme=self._scheme,
            runs=runs,
            groups=tuple(slice(start, min(start + step, shape.kv_heads)) for start in starts),
            angles=angles,
            q=torch.empty((shape.heads, total, shape.head_dim), dtype=self.dtype, device=device),
            k=torch.empty(kv, dtype=self.dtype, device=device),
            v=torch.empty(kv, dtype=self.dtype, device=device),
            lse=torch.empty((shape.heads, total), dtype=wide, device=device),
        )

    @staticmethod
    def block(run: BlockPass, x: Float[Tensor, "T m"], work: Work) -> None:
        """One block, its output in the place of x."""
        tiles = work.store.tiles
        run.attention([x[tile]] for tile in tiles)
        for tile in tiles:
            run.rest(x[tile], work.q[:, tile], out=x[tile])


@dataclass(frozen=True)
class AfterContext(Scheme):
    """Attention of questions laid side by side: each sees the kept context and itself, none sees another.

    `at [B, n]` says where in its own question each token stands, always before `reach`. `own_k` and `own_v
    [B, g, room, d]` keep the questions' own keys and values in this layer, and are written here. `context` are the
    keys and values that this rank keeps, of tokens at `places` of `length`; over the ranks of `axes` it is whole. A
    window leaves some of them to see: those at `near`, as `near_end` gives it.
    """

    context: tuple[Tensor, Tensor]
    places: Int[Tensor, " S"]
    near: Int[Tensor, " R"] | None
    length: int
    axes: tuple[Axis, ...]
    own_k: Float[Tensor, "B g room d"]
    own_v: Float[Tensor, "B g room d"]
    at: Int[Tensor, "B n"]
    reach: int

    def forward(
        self,
        q: Float[Tensor, "h T d"],
        k: Float[Tensor, "g T d"],
        v: Float[Tensor, "g T d"],
        *,
        runs: Runs,  # noqa: ARG002 - the questions are not documents of one row: each has its place in `at`
        window: int | None,
    ) -> tuple[Float[Tensor, "h T d"], Float[Tensor, "h T"]]:
        """Attention over the question's own keys, merged with that over the context."""
        count, width = self.at.shape
        rows = torch.arange(count, device=q.device)[:, None]
        for own, new in ((self.own_k, k), (self.own_v, v)):
            own.transpose(1, 2)[rows, self.at] = new.view(len(new), count, width, -1).permute(1, 2, 0, 3)
        reach = self.reach
        away = self.at[..., None] - torch.arange(reach, device=q.device)
        seen = (away >= 0) & (away < (reach if window is None else window))
        queries = q.view(len(q), count, width, -1).transpose(0, 1)
        found = masked(queries, self.own_k[:, :, :reach], self.own_v[:, :, :reach], seen)
        o, lse = (x.transpose(0, 1).flatten(1, 2) for x in found)
        other = self._over_context(q, window)
        merged, lse = merge(o[None], lse[None], other[0][None], other[1][None].to(lse.dtype))
        return merged[0].to(q.dtype), lse[0]

    def _over_context(self, q: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Attention over the whole context: that over this rank's keys, merged with the others' in one order."""
        keys, values = self.context
        if window is None or self.near is None:
            o, lse = over_all(q, keys, values)
        else:
            away = self.length + self.at.flatten()[:, None] - self.places[self.near]
            found = masked(q[None], keys[None, :, self.near], values[None, :, self.near], (away < window)[None])
            o, lse = (x[0] for x in found)
        for axis in self.axes:
            sizes = [q.shape[1]] * axis.size
            every = [
                all_gather(x, axis, sizes=sizes, dim=1, operation="gather of answers") for x in (o.to(lse.dtype), lse)
            ]
            (o, *others), (lse, *other_lses) = (pending.wait() for pending in every)
            for other, other_lse in zip(others, other_lses, strict=True):
                merged = merge(o[None], lse[None], other[None], other_lse[None])
                o, lse = merged[0][0], merged[1][0]
        return o, lse

    def backward(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Never asked for: nothing is trained after a kept context."""
        raise AssertionError("questions after a kept context have no gradients")


def near_end(places: Int[Tensor, " S"], length: int, window: int) -> Int[Tensor, " R"]:
    """Which keys any question after a context of `length` may see under a window: the first if there are none."""
    found = torch.nonzero(places > length - window)[:, 0]
    return found if len(found) else found.new_zeros(1)  # a key that the mask hides


class Branches:
    """`count` texts that go on after one kept context, side by side, each of up to `room_tokens` tokens."""

    def __init__(self, prefill: Prefill, kept: Kept, *, count: int, room_tokens: int) -> None:
        prefill.tell(Order("branch", count=count, room=room_tokens))
        self._prefill, self._kept = prefill, kept
        shape, device = prefill.decoder.shape, prefill.decoder.device
        # One place more than there is room: what pads a shorter text may be written there, and nothing sees it.
        size = (shape.layers, count, shape.kv_heads, room_tokens + 1, shape.head_dim)
        self._keys, self._values = (torch.zeros(size, dtype=prefill.dtype, device=device) for _ in range(2))
        self.lengths = [0] * count
        self.room_tokens = room_tokens
        # Found once, not in every layer: the device must tell how many they are.
        windows = {window for window in shape.windows if window is not None}
        self._near = {window: near_end(kept.places, kept.length, window) for window in windows}
        self._reach = 0  # places of `own` that may hold something

    @torch.no_grad()
    def extend(self, texts: Sequence[Sequence[int]]) -> list[Float[Tensor, "n m"]]:
        """Append some tokens to every text; the residual stream before the last norm at each of them."""
        self._prefill.tell(Order("extend", texts=[list(text) for text in texts]))
        device, counts = self._prefill.decoder.device, [len(text) for text in texts]
        width = max(counts)
        assert len(texts) == len(self.lengths)
        assert min(counts) > 0
        # Two numbers a token, counted here and sent at once: every copy to a device waits for it.
        padded, at = torch.tensor(
            [
                [[*text, *[0] * (width - len(text))] for text in texts],
                [[min(length + i, self.room_tokens) for i in range(width)] for length in self.lengths],
            ],
            device=device,
        )
        store = Store(
            device, tokens=padded.numel(), tile_tokens=min(TILE_TOKENS, padded.numel()), host=HostMemory(device)
        )
        self._reach = min(self._reach + width, self.room_tokens + 1)
        tokens, positions = padded.flatten(), (self._kept.length + at).flatten()
        x = self._prefill.embedded(tokens, store)
        work = self._prefill.work(self._prefill.angles(positions), store, runs=((0, len(tokens)),))
        whole = (slice(0, self._prefill.decoder.shape.kv_heads),)
        parts = zip(self._prefill.blocks(), self._kept.layers(), self._keys, self._values, strict=True)
        for block, context, keys, values in parts:
            scheme = AfterContext(
                context=context,
                places=self._kept.places,
                near=None if block.window is None else self._near[block.window],
                length=self._kept.length,
                axes=self._prefill.axes,
                own_k=keys,
                own_v=values,
                at=at,
                reach=self._reach,
            )
            own = replace(work, scheme=scheme, groups=whole)
            self._prefill.block(BlockPass(block, own, dtype=self._prefill.dtype), x, own)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        rows = x.view(*padded.shape, -1)
        return [row[:count] for row, count in zip(rows, counts, strict=True)]
