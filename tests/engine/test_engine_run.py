"""The hand-written engine against autograd on the plain decoder: loss and every gradient, over everything it can do."""

import copy

import pytest
import torch
from engine_toys import DIVISOR, adapt, choice_of, compare, toy_batch, toy_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.engine.anchors import segments_of
from longspan.engine.run import Engine

LONG = ((0, 37), (0, 5, 6, 37))


@pytest.mark.parametrize("keep", ["attention", "inputs"])
@pytest.mark.parametrize("segment", [1, 2, 4])
@pytest.mark.parametrize("gradient", ["device", "host"])
def test_policies(keep, segment, gradient):
    decoder = toy_decoder(layers=5)
    options = {"keep": keep, "segment": segment, "gradient": gradient, "tile_tokens": 16, "loss_tile_tokens": 7}
    compare(decoder, toy_batch(LONG), choice_of(decoder, tiers=("device", "host"), **options))


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": True},
        {"qkv_bias": True},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"qk_norm": True},
        {"windows": (None, 5, 11)},
        {"heads": 4, "kv_heads": 4},
        {"heads": 6, "kv_heads": 2},
        {"heads": 14, "kv_heads": 2},
        {"heads": 4, "kv_heads": 1},
        {"heads": 3, "kv_heads": 1, "head_dim": 6},
    ],
    ids=str,
)
def test_every_kind_of_block(changes):
    decoder = toy_decoder(**changes)
    compare(decoder, toy_batch(LONG), choice_of(decoder, tile_tokens=20))


@pytest.mark.parametrize("keep", ["attention", "inputs"])
@pytest.mark.parametrize("tiers", [("host",), ("disk",), ("device", "host", "disk")], ids="-".join)
def test_tiers(keep, tiers, tmp_path):
    decoder = toy_decoder(layers=4)
    options = {"keep": keep, "segment": 2, "gradient": tiers[-1], "tile_tokens": 9, "group": 2}
    compare(decoder, toy_batch(LONG), choice_of(decoder, tiers=tiers, **options), folder=tmp_path)


@settings(max_examples=40)
@given(data=st.data())
def test_any_combination(data):
    layers = data.draw(st.integers(1, 5))
    kv_heads = data.draw(st.sampled_from([1, 2, 3]))
    decoder = toy_decoder(
        dtype=data.draw(st.sampled_from([torch.float32, torch.float64])),
        layers=layers,
        kv_heads=kv_heads,
        heads=kv_heads * data.draw(st.integers(1, 3)),
        tied=data.draw(st.booleans()),
        qkv_bias=data.draw(st.booleans()),
        qk_norm=data.draw(st.booleans()),
        windows=tuple(data.draw(st.sampled_from([None, 1, 6])) for _ in range(layers)),
    )
    length = data.draw(st.integers(1, 41))
    borders = st.sets(st.integers(1, length - 1), max_size=4) if length > 1 else st.just(set())
    rows = data.draw(st.lists(borders, min_size=1, max_size=3))
    batch = toy_batch(tuple((0, *sorted(row), length) for row in rows))
    batch.weights[0, -1] = 1.0  # some target has a weight
    choice = choice_of(
        decoder,
        keep=data.draw(st.sampled_from(["attention", "inputs"])),
        segment=data.draw(st.integers(1, 4)),
        tile_tokens=data.draw(st.integers(1, 50)),
        loss_tile_tokens=data.draw(st.integers(1, 50)),
        group=data.draw(st.integers(1, 3)),
        gradient=data.draw(st.sampled_from(["device", "host"])),
        tiers=data.draw(st.sampled_from([("device",), ("host",), ("device", "host")])),
    )
    compare(decoder, batch, choice)


def test_float64_agrees_to_rounding():
    # In float64 what is left is rounding alone: a wrong term anywhere would stand out by ten orders.
    decoder = toy_decoder(dtype=torch.float64, qk_norm=True, qkv_bias=True)
    compare(decoder, toy_batch(LONG), choice_of(decoder, tile_tokens=10), rtol=1e-12)


def test_an_engine_runs_again_on_other_lengths():
    decoder = toy_decoder()
    choice = choice_of(decoder, tiers=("host",), gradient="host", tile_tokens=16)
    engine = Engine(decoder, choice, tokens=74)
    for spans in (LONG, ((0, 3, 12),), ((0, 74),), LONG):
        compare(decoder, toy_batch(spans), choice, engine=engine)


def test_gradients_add_up_over_passes():
    decoder, batch = toy_decoder(), toy_batch(LONG)
    engine = Engine(decoder, choice_of(decoder), tokens=74)
    engine.forward_backward(batch, divisor=DIVISOR)
    once = [parameter.grad.clone() for parameter in decoder.parameters()]
    engine.forward_backward(batch, divisor=DIVISOR)
    for parameter, grad in zip(decoder.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * grad)


@pytest.mark.parametrize("tied", [False, True])
def test_a_receiver_gets_every_gradient_once_and_nothing_stays(tied):
    decoder, batch = toy_decoder(tied=tied), toy_batch(LONG)
    engine = Engine(decoder, choice_of(decoder), tokens=74)
    engine.forward_backward(batch, divisor=DIVISOR)
    want = {parameter: parameter.grad for parameter in decoder.parameters()}
    decoder.zero_grad()
    order = []
    engine.forward_backward(batch, divisor=DIVISOR, on_gradients=lambda p, g: order.extend(zip(p, g, strict=True)))
    assert [parameter.grad for parameter in decoder.parameters()] == [None] * len(want)
    assert len(order) == len(want)
    for parameter, gradient in order:
        torch.testing.assert_close(gradient, want[parameter])
    assert order[-1][0] is decoder.embed.weight
    blocks = [
        next(i for i, b in enumerate(decoder.blocks) if p in set(b.parameters())) for p, _ in order[2 - tied : -1]
    ]
    assert blocks == sorted(blocks, reverse=True), "from the top block down"


def test_a_receiver_gets_nothing_when_the_loss_is_not_finite():
    decoder, batch = toy_decoder(), toy_batch(LONG)
    with torch.no_grad():
        decoder.norm.weight[0] = float("nan")
    engine = Engine(decoder, choice_of(decoder), tokens=74)
    loss = engine.forward_backward(batch, divisor=DIVISOR, on_gradients=lambda *_: pytest.fail("called"))
    assert not torch.isfinite(loss)


def test_a_batch_without_targets_gives_zeros():
    decoder, batch = toy_decoder(), toy_batch(LONG)
    batch.weights.zero_()
    loss = Engine(decoder, choice_of(decoder), tokens=74).forward_backward(batch, divisor=1.0)
    assert float(loss) == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in decoder.parameters())


@pytest.mark.parametrize("also", [(), ("norms", "embed", "head")])
def test_adapters(also):
    decoder = adapt(toy_decoder(qk_norm=True), also=also)
    compare(decoder, toy_batch(LONG), choice_of(decoder, tile_tokens=16))


# -- what must be caught ---------------------------------------------------------------------------------------------


def test_a_narrow_weight_is_rounded_once():
    decoder, batch = toy_decoder(), toy_batch(LONG)
    narrow = copy.deepcopy(decoder).to(torch.bfloat16)
    Engine(decoder, choice_of(decoder, tile_tokens=5), tokens=74).forward_backward(batch, divisor=DIVISOR)
    Engine(narrow, choice_of(narrow, tile_tokens=5), tokens=74).forward_backward(batch, divisor=DIVISOR)
    for mine, other in zip(narrow.parameters(), decoder.parameters(), strict=True):
        assert mine.grad.dtype == torch.bfloat16
        assert (mine.grad - other.grad).norm() <= 0.05 * other.grad.norm()


def test_segments_cover_every_layer_once():
    for layers in range(1, 12):
        for segment in range(1, 14):
            assert [layer for part in segments_of(layers, segment) for layer in part] == list(range(layers))


def test_no_attention_is_computed_twice_while_outputs_are_kept():
    from longspan.attention.schemes.local import Local

    calls = []

    class Counting(Local):
        def forward(self, *args, **options):
            calls.append("forward")
            return super().forward(*args, **options)

        def backward(self, *args, **options):
            calls.append("backward")
            return super().backward(*args, **options)

    for keep, again in (("attention", 1), ("inputs", 2)):
        calls.clear()
        decoder = toy_decoder(layers=4)
        choice = choice_of(decoder, keep=keep, segment=2)
        Engine(decoder, choice, tokens=74, scheme=Counting()).forward_backward(toy_batch(LONG), divisor=1.0)
        # The top segment of `inputs` keeps what the forward pass made.
        assert calls.count("forward") == (4 * 2 if again == 1 else 4 * 2 + 2 * 2)
        assert calls.count("backward") == 4 * 2
