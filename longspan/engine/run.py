"""The engine: loss and gradients of a batch, exact, with memory that hardly grows with its length."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from longspan.attention.documents import Runs, runs_of
from longspan.attention.schemes.base import Scheme
from longspan.attention.schemes.local import Local
from longspan.batch import Batch
from longspan.engine import pointwise
from longspan.engine.anchors import AnchorKey, anchor_keys, segments_of
from longspan.engine.block import Anchors, BlockPass, Readers, Work
from longspan.engine.gradients import Gradients, OnGradients
from longspan.engine.hostmemory import HostMemory
from longspan.engine.linear import Linear
from longspan.engine.loss import LossPass
from longspan.engine.precision import compute_dtype
from longspan.engine.settings import EngineChoice
from longspan.engine.shares import own_tokens
from longspan.engine.store import Reader, Slot, SlotShape, Store
from longspan.model.decoder import Block, Decoder
from longspan.parallel.weights import Weights, Whole


class Engine:
    """Runs one decoder forward and backward as `choice` says, on batches of up to `tokens` tokens.

    Memory for anchors and heads is taken when the engine is made and kept. `host` may be shared by engines that do not
    live at the same time. `mark` is called with the name of every phase, which errors of an exchange tell; a timeline
    may want it instead.

    A `scheme` over several ranks spreads the tokens: ranks that share a row are given the same batch, and each works on
    the tokens that the scheme gives it (`tokens` counts these). `weights` says where parameters lie, whole on this rank
    unless told; all ranks end with the loss of the whole, and each with the gradients of what it keeps.
    """

    def __init__(
        self,
        decoder: Decoder,
        choice: EngineChoice,
        *,
        tokens: int,
        host: HostMemory | None = None,
        folder: Path | None = None,
        scheme: Scheme | None = None,
        weights: Weights | None = None,
    ) -> None:
        self._decoder, self._choice = decoder, choice
        self._dtype = compute_dtype(decoder)
        self._scheme, self._weights = scheme or Local(merge=pointwise.merge_), weights or Whole(decoder)
        self.mark: Callable[[str], None] = self._weights.mark
        shape, device = decoder.shape, decoder.device
        self.host = host or HostMemory(device)
        tile = min(choice.tile_tokens, tokens)
        self.store = Store(device, tokens=tokens, tile_tokens=tile, host=self.host, folder=folder)
        wide = torch.promote_types(self._dtype, torch.float32)
        self._x = SlotShape(None, (shape.width,), self._dtype)
        self._o = SlotShape(shape.heads, (shape.head_dim,), self._dtype)
        self._lse = SlotShape(shape.heads, (), wide)
        self._blocks = [block for block in decoder.blocks if isinstance(block, Block)]
        self._segments = segments_of(shape.layers, choice.segment)
        self._slots = self._take_slots()
        kv = (shape.kv_heads, tokens, shape.head_dim)
        self._buffers = {
            "q": torch.empty(self._o.of(tokens), dtype=self._dtype, device=device),
            "k": torch.empty(kv, dtype=self._dtype, device=device),
            "v": torch.empty(kv, dtype=self._dtype, device=device),
            "lse": torch.empty(self._lse.of(tokens), dtype=wide, device=device),
        }

    def _take_slots(self) -> dict[AnchorKey, tuple[Slot, ...]]:
        """The slots of every anchor, in their tiers, and that of the gradient if it does not stay on the device."""
        choice = self._choice
        keys = anchor_keys(self._decoder.shape.layers, keep=choice.keep, segment=choice.segment)
        assert len(keys) == len(choice.anchors), "a choice names the tier of every anchor"
        x, o = (replace(shape, lossy=choice.lossy_anchors) for shape in (self._x, self._o))
        shapes = {"x": (x,), "o": (o, self._lse)}
        placed = {key: (shapes[key.kind], tier) for key, tier in zip(keys, choice.anchors, strict=True)}
        self.host.reserve(
            sum(self.store.host_bytes(shape, tier) for group, tier in placed.values() for shape in group)
            + self.store.host_bytes(self._x, choice.gradient)
        )
        self._gradient = None if choice.gradient == "device" else self.store.slot(self._x, choice.gradient)
        return {key: tuple(self.store.slot(shape, tier) for shape in group) for key, (group, tier) in placed.items()}

    def under(self, scheme: Scheme) -> "Engine":
        """The same engine, and the same memory, from now on under another scheme, which gives no rank more tokens."""
        self._scheme = scheme
        return self

    @torch.no_grad()
    def forward_backward(
        self, batch: Batch, *, divisor: float, on_gradients: OnGradients | None = None
    ) -> Float[Tensor, ""]:
        """Add the gradients of (weighted loss sum / divisor) to the decoder's; the undivided loss sum comes back.

        `divisor` is the sum of target weights of the whole optimizer step, over all micro-batches and ranks. With
        `on_gradients`, gradients go there part by part (head, blocks from the top, embedding) instead of to `.grad`,
        and nowhere when the loss is not finite. Both are of the parameters that this rank keeps. Loss in nats, float64,
        on the device.
        """
        runs = runs_of(batch.spans, batch.tokens.shape[1])
        batch = own_tokens(batch, self._scheme)
        self.store.begin(batch.tokens.numel())
        work, gradients = self._work(batch, runs), Gradients(self._weights, on_gradients)
        self.mark("forward")
        x = self._embed(batch.tokens.flatten())
        for layer in range(len(self._blocks)):
            self._forward(layer, x, work)
        self.mark("loss")
        gradient = self._gradient or x
        total = self._loss(batch, x, gradient, gradients, divisor=divisor)
        self._weights.add_up(total)
        del x
        if on_gradients is not None and not bool(torch.isfinite(total)):
            self.mark("end")
            return total
        gradients.finish(self._ends())
        gradients.hand_on()  # the head's is larger than any block's: it does not wait for the first of them
        self.mark("backward")
        self._backward(work, gradient, gradients)
        self.mark("embedding")
        self._embed_backward(batch.tokens.flatten(), gradient, gradients)
        gradients.hand_on()
        self.mark("end")
        return total

    # -- parts ----------------------------------------------------------------------------------------------------

    def _work(self, batch: Batch, runs: Runs) -> Work:
        total = batch.tokens.numel()
        decoder, shape = self._decoder, self._decoder.shape
        positions = batch.positions.reshape(1, total)
        step = min(self._choice.group, shape.kv_heads)
        starts = range(0, shape.kv_heads, step)
        return Work(
            store=self.store,
            scheme=self._scheme,
            runs=runs,
            groups=tuple(slice(start, min(start + step, shape.kv_heads)) for start in starts),
            angles=tuple((cos[0], sin[0]) for cos, sin in decoder.angles(positions)),
            **{name: buffer[:, :total] for name, buffer in self._buffers.items()},
        )

    def _embed(self, tokens: Tensor) -> Slot:
        """The residual stream, in a device slot of its own that every block overwrites."""
        residual = Slot(self._x, "device", tiles=len(self.store.tiles))
        residual.whole = torch.empty(self._x.of(len(tokens)), dtype=self._dtype, device=tokens.device)
        first, embed = self._slots[AnchorKey(0, "x")][0], self._decoder.embed
        with self._weights.at_hand(embed, following=self._blocks[0]):
            for index, tile in enumerate(self.store.tiles):
                out = residual.device_tile(tile)
                out.copy_(functional.embedding(tokens[tile], embed.weight))
                self.store.save(first, index, out)
        return residual

    def _forward(self, layer: int, x: Slot, work: Work) -> None:
        """One block of the forward pass, its output in the place of x; anchors are kept as the policy wants."""
        store, anchors, below = self.store, self._forward_anchors(layer), self._anchor_x(layer)
        top = layer + 1 == len(self._blocks)
        above = None if top else self._anchor_x(layer + 1)
        following = self._decoder.norm if top else self._blocks[layer + 1]
        with self._pass(layer, work, following=following) as run:
            run.attention(store.read_tiles(x))
            for index, (x_tile,) in enumerate(store.read_tiles(x)):
                if anchors is not None:
                    run.save_attention(anchors, index)
                if below is not None:
                    store.settle(below, index)  # x's tile is about to be overwritten
                out = x.device_tile(store.tiles[index])
                run.rest(x_tile, work.q[:, store.tiles[index]], out=out)
                if above is not None:
                    store.save(above, index, out)
        if anchors is not None:
            self._settle_attention(anchors)

    def _loss(
        self, batch: Batch, x: Slot, gradient: Slot, gradients: Gradients, *, divisor: float
    ) -> Float[Tensor, ""]:
        norm, store, weights = self._decoder.norm, self.store, self._weights
        end = self._decoder.embed if self._decoder.shape.tied else self._decoder.head
        with weights.at_hand(norm, following=end), weights.at_hand(end, following=self._blocks[-1]):
            loss = LossPass(
                Linear(end, self._dtype),
                norm,
                targets=batch.targets.flatten(),
                weights=batch.weights.flatten(),
                divisor=divisor,
            )
            for index, tile in enumerate(store.tiles):
                out = store.target(gradient, index)
                loss.backward(
                    x.device_tile(tile), tile, gradients, loss_tile_tokens=self._choice.loss_tile_tokens, out=out
                )
                store.commit(gradient, index)
        return loss.total

    def _backward(self, work: Work, gradient: Slot, gradients: Gradients) -> None:
        do = torch.empty_like(work.q)
        reader: Reader | None = None
        for number, segment in reversed(list(enumerate(self._segments))):
            if number + 1 < len(self._segments):
                self._restore(segment, work)
            for layer in reversed(segment):
                anchors, store = self._anchors(layer), self.store
                following = None
                if layer > segment.start or (self._choice.keep == "attention" and layer and self._choice.segment == 1):
                    following = self._first_reader(layer - 1, gradient)
                readers = Readers(
                    first=reader or self._first_reader(layer, gradient),
                    heads=store.read_heads(work.query_groups, anchors.o, anchors.lse),
                    second=store.read_tiles(anchors.x, gradient),
                    following=following,
                )
                with self._pass(layer, work, following=self._below(layer, number)) as run:
                    run.backward(gradient, do, gradients, readers)
                gradients.finish(self._blocks[layer].parameters())
                reader = following

    def _below(self, layer: int, segment: int) -> Block | None:
        """The block that works after the backward pass of a layer: in its segment, or where the next one begins."""
        if layer > self._segments[segment].start:
            return self._blocks[layer - 1]
        return self._blocks[self._segments[segment - 1].start] if segment else None

    def _restore(self, segment: range, work: Work) -> None:
        """Make what the blocks of a segment need for their backward pass out of what was kept."""
        again = self._choice.keep == "inputs"
        for layer in segment:
            last = layer == segment[-1]
            if again or not last:
                with self._pass(layer, work, following=self._blocks[layer if last else layer + 1]) as run:
                    self._restore_block(run, work, layer, last=last)
            self._settle_attention(self._anchors(layer))

    def _restore_block(self, run: BlockPass, work: Work, layer: int, *, last: bool) -> None:
        """A block's attention if it was not kept, and the input of the one above it."""
        store, anchors, again = self.store, self._anchors(layer), self._choice.keep == "inputs"
        if again:
            run.attention(store.read_tiles(anchors.x))
            for index in range(len(store.tiles)):
                run.save_attention(anchors, index)
        if last:
            return
        above = self._anchors(layer + 1).x
        slots = (anchors.x,) if again else (anchors.x, anchors.o)
        for index, (x, *kept) in enumerate(store.read_tiles(*slots)):
            o = kept[0] if kept else work.q[:, store.tiles[index]]
            run.rest(x, o, out=store.target(above, index))
            store.commit(above, index)

    def _embed_backward(self, tokens: Tensor, gradient: Slot, gradients: Gradients) -> None:
        weight = self._decoder.embed.weight
        if (total := gradients.of(weight)) is None:
            return
        for tile, (dx,) in zip(self.store.tiles, self.store.read_tiles(gradient), strict=True):
            # Sorted, so that equal tokens are added in one order every time.
            total.index_put_((tokens[tile],), dx.to(total.dtype), accumulate=True)
        gradients.finish([weight])

    def _ends(self) -> list[Tensor]:
        """The parameters that are complete once the loss is; a tied head waits for the embedding."""
        norm = self._decoder.norm.weight
        return [norm] if self._decoder.shape.tied else [norm, self._decoder.head.weight]

    # -- anchors --------------------------------------------------------------------------------------------------

    @contextmanager
    def _pass(self, layer: int, work: Work, *, following: nn.Module | None) -> Iterator[BlockPass]:
        """A block at work, its weights at hand, and those of `following` on their way."""
        block = self._blocks[layer]
        with self._weights.at_hand(block, following=following):
            yield BlockPass(block, work, dtype=self._dtype)

    def _settle_attention(self, anchors: Anchors) -> None:
        """Let the next work on q wait for what `BlockPass.save_attention` still copies."""
        for index in range(len(self.store.tiles)):
            self.store.settle(anchors.o, index)
            self.store.settle(anchors.lse, index)

    def _first_reader(self, layer: int, gradient: Slot) -> Reader:
        anchors = self._anchors(layer)
        return self.store.read_tiles(anchors.x, anchors.o, gradient)

    def _anchor_x(self, layer: int) -> Slot | None:
        """Where the forward pass puts a layer's input: its own anchor, or a working one in the top segment."""
        kept = AnchorKey(layer, "x") in self._slots or layer in self._segments[-1]
        return self._anchors(layer).x if kept else None

    def _forward_anchors(self, layer: int) -> Anchors | None:
        """The slots that the forward pass fills with a layer's attention, if it keeps it."""
        if self._choice.keep == "attention" or layer in self._segments[-1]:
            return self._anchors(layer)
        return None

    def _anchors(self, layer: int) -> Anchors:
        """The slots of a layer for its backward pass, working ones where it has none of its own."""
        place = layer % self._choice.segment
        own, working = AnchorKey(layer, "x"), AnchorKey(place, "x", working=True)
        x = self._slots[own if own in self._slots else working][0]
        kept, working = AnchorKey(layer, "o"), AnchorKey(place, "o", working=True)
        o, lse = self._slots[kept if kept in self._slots else working]
        return Anchors(x=x, o=o, lse=lse)
