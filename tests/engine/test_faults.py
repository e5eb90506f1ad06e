"""What an engine with side streams may get wrong and a plain test would not see: a tile left out, a copy too late.

`Lazy` streams make a copy only when somebody waits for it, at the last moment. Whoever reads without waiting finds old
bytes; whoever overwrites a source without waiting sends the new ones. Copies at once, the other extreme, are what a CPU
does anyway.
"""

import contextlib
import threading

import pytest
import torch
from engine_toys import choice_of, compare, toy_batch, toy_decoder

from longspan.engine import run, store
from longspan.engine.run import Engine

LONG = ((0, 37), (0, 5, 6, 37))


@pytest.mark.parametrize("place", [0, 15, 16, 31, 32, 36])
@pytest.mark.parametrize("gradient", ["device", "host"])
def test_no_tile_is_left_out(place, gradient):
    # One target, in the first, the middle and the last tile in turn: whatever is left out is all there is.
    decoder, batch = toy_decoder(), toy_batch(((0, 37),))
    batch.weights.zero_()
    batch.weights[0, place] = 2.0
    compare(decoder, batch, choice_of(decoder, tiers=(gradient,), gradient=gradient, tile_tokens=16))


class Event:
    """A place in the queue of a stream. Types are checked in tests: it says that it is what it stands for."""

    __class__ = torch.cuda.Event

    def __init__(self, stream, place):
        self.stream, self.place = stream, place

    def synchronize(self):
        self.stream.run(self.place)


class LazyStream:
    """Work that is done in order, and not before somebody waits for it."""

    lock = threading.RLock()  # files are written by threads of their own

    def __init__(self):
        self.queue, self.done = [], 0

    def run(self, place):
        with self.lock:
            while self.done < place:
                self.done += 1
                self.queue[self.done - 1]()

    def record_event(self):
        return Event(self, len(self.queue))

    def wait_event(self, event):
        self.queue.append(event.synchronize)


class Compute:
    """The stream of the caller: work is done at once."""

    def wait_event(self, event):
        event.synchronize()

    def wait_stream(self, stream):
        stream.run(len(stream.queue))


class LazyStore(store.Store):
    """A store on a CPU with streams like those of a GPU."""

    current = None
    _compute = Compute()

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._to_host, self._to_device = LazyStream(), LazyStream()

    @contextlib.contextmanager
    def _behind_compute(self, stream):
        LazyStore.current = stream
        yield stream.record_event
        LazyStore.current = None


@pytest.fixture
def lazy(monkeypatch):
    monkeypatch.setattr(run, "Store", LazyStore)
    monkeypatch.setattr(store, "_copy", lambda into, value: LazyStore.current.queue.append(lambda: into.copy_(value)))


@pytest.mark.parametrize(("keep", "segment"), [("attention", 1), ("attention", 2), ("inputs", 1), ("inputs", 3)])
@pytest.mark.parametrize(
    ("tiers", "gradient"),
    [(("host",), "host"), (("host",), "device"), (("disk",), "disk"), (("device", "host", "disk"), "host")],
    ids=str,
)
def test_every_copy_is_waited_for(lazy, keep, segment, tiers, gradient, tmp_path):
    decoder = toy_decoder(layers=4)
    options = {"keep": keep, "segment": segment, "gradient": gradient, "tile_tokens": 16, "loss_tile_tokens": 7}
    choice = choice_of(decoder, tiers=tiers, **options)
    engine = Engine(decoder, choice, tokens=74, folder=tmp_path)
    for spans in (LONG, ((0, 3, 52),), LONG):  # buffers of one batch are used again by the next
        compare(decoder, toy_batch(spans), choice, engine=engine)


def test_lossy_anchors_are_waited_for_too(lazy, tmp_path, monkeypatch):
    decoder, batch = toy_decoder(layers=4), toy_batch(LONG)
    options = {"segment": 2, "gradient": "host", "tile_tokens": 16, "lossy_anchors": True, "tiers": ("host", "disk")}
    found = []
    for kind in (LazyStore, store.Store):
        monkeypatch.setattr(run, "Store", kind)
        if kind is store.Store:
            monkeypatch.undo()
        engine = Engine(decoder, choice_of(decoder, **options), tokens=74, folder=tmp_path)
        decoder.zero_grad()
        engine.forward_backward(batch, divisor=17.5)
        found.append([parameter.grad.clone() for parameter in decoder.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
