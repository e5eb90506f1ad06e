"""A context read on the engine's blocks, and what goes on after it, against one plain forward of the whole text."""

import pytest
import torch
from engine_toys import toy_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from longspan.engine import plain
from longspan.engine import prefill as module
from longspan.engine.kept import Keep, layer_bytes, layers_on_device, work_bytes
from longspan.engine.prefill import AfterContext, Branches, Prefill

CASES = {
    "plain": {},
    "biases and head norms": {"qk_norm": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": True},
    "windows": {"windows": (None, 1, 9)},
    "one key head": {"heads": 6, "kv_heads": 1},
    "no shared heads": {"heads": 2, "kv_heads": 2},
}
KEEPS = {"device": Keep(), "host": Keep(place="host")}


def ids(count, *, seed=0):
    return torch.randint(0, 53, (count,), generator=torch.Generator().manual_seed(seed))


def whole_logits(decoder, *parts):
    with torch.no_grad():
        return decoder(torch.cat([torch.as_tensor(part) for part in parts])[None])[0]


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("tile", [8192, 7])
def test_branches_equal_a_plain_forward(sizes, keep, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE_TOKENS", tile)
    monkeypatch.setattr(module, "KERNEL_BYTES", 1)  # one key/value head a call
    decoder = toy_decoder(**sizes)
    context, texts = ids(41), [ids(n, seed=n).tolist() for n in (5, 11, 1)]
    prefill = Prefill(decoder, keep)
    kept = prefill.read(context)
    branches = Branches(prefill, kept, count=3, room_tokens=13)
    first = branches.extend(texts)
    more = branches.extend([[3, 9], [4, 2], [5]])
    for text, tail, rows, others in zip(texts, ([3, 9], [4, 2], [5]), first, more, strict=True):
        want = whole_logits(decoder, context, text, tail)[41:]
        torch.testing.assert_close(prefill.logits(torch.cat([rows, others])), want, rtol=1e-4, atol=1e-5)


@settings(max_examples=15)
@given(length=st.integers(1, 60), counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), room=st.integers(0, 3))
def test_any_length_and_any_questions(length, counts, room):
    decoder = toy_decoder(windows=(None, 6, None))
    prefill, context = Prefill(decoder), ids(length)
    texts = [ids(n, seed=i).tolist() for i, n in enumerate(counts)]
    branches = Branches(prefill, prefill.read(context), count=len(texts), room_tokens=max(counts) + room)
    found = branches.extend(texts)
    for _ in range(room):
        found = [torch.cat(pair) for pair in zip(found, branches.extend([[7]] * len(texts)), strict=True)]
    for text, rows in zip(texts, found, strict=True):
        want = whole_logits(decoder, context, text, torch.full((room,), 7))[length:]
        torch.testing.assert_close(prefill.logits(rows), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_loss_of_every_token_equals_whole_logits_and_the_plain_path(sizes, monkeypatch):
    monkeypatch.setattr(module, "LOGIT_ROWS", 9)
    decoder, text = toy_decoder(**sizes), ids(50)
    found = Prefill(decoder).token_nll(text)
    want = functional.cross_entropy(whole_logits(decoder, text)[:-1], text[1:], reduction="none")
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, plain.token_nll(decoder, text), rtol=1e-4, atol=1e-5)


def test_float64_stays_float64():
    decoder = toy_decoder(dtype=torch.float64)
    prefill, context = Prefill(decoder), ids(30)
    (rows,) = Branches(prefill, prefill.read(context), count=1, room_tokens=4).extend([[1, 2, 3, 4]])
    want = whole_logits(decoder, context, torch.tensor([1, 2, 3, 4]))[30:]
    assert prefill.logits(rows).dtype == torch.float64
    torch.testing.assert_close(prefill.logits(rows), want, rtol=1e-10, atol=1e-12)


def test_keys_as_fp8_numbers_are_near_and_take_half_of_bfloat16():
    decoder = toy_decoder()
    wanted = Prefill(decoder).read(ids(40)).layers()
    for (k, v), (want_k, want_v) in zip(Prefill(decoder, Keep(codes=True)).read(ids(40)).layers(), wanted, strict=True):
        for mine, want in ((k, want_k), (v, want_v)):
            assert 0 < float((mine - want).norm() / want.norm()) < 0.05
    shape = toy_decoder(head_dim=128).shape
    exact, codes = (layer_bytes(shape, 100, torch.bfloat16, codes=codes) for codes in (False, True))
    assert exact == 2 * 2 * 100 * 128 * 2
    assert codes == exact // 2 + 2 * 2 * 100 * 4


@pytest.mark.parametrize("codes", [False, True])
def test_some_layers_near_and_some_far(codes, monkeypatch):
    decoder, context = toy_decoder(), ids(40)
    keep = Keep(codes=codes)
    wanted = [(k.clone(), v.clone()) for k, v in Prefill(decoder, keep).read(context).layers()]
    for near in range(4):
        monkeypatch.setattr(module, "layers_on_device", lambda *_, near=near, **__: near)
        kept = Prefill(decoder, keep).read(context)
        assert kept.on_device == near
        for mine, want in zip(kept.layers(), wanted, strict=True):
            assert torch.equal(mine[0], want[0])
            assert torch.equal(mine[1], want[1])


def test_where_keys_go():
    shape, cpu = toy_decoder().shape, torch.device("cpu")
    for keep, count in ((Keep(), 3), (Keep(place="host"), 0), (Keep(place="device"), 3)):
        assert layers_on_device(keep, shape, 10**6, dtype=torch.float32, device=cpu) == count
    assert work_bytes(shape, 2000, torch.bfloat16) > work_bytes(shape, 1000, torch.bfloat16)


def test_nothing_is_trained_after_a_context():
    nothing = torch.empty(1, 0, 0, 0)
    places = {"places": torch.arange(1), "near": None, "at": torch.zeros(1, 1, dtype=torch.int64)}
    own = {"context": (nothing, nothing), "own_k": nothing, "own_v": nothing}
    scheme = AfterContext(**places, **own, length=1, axes=(), reach=1)
    with pytest.raises(AssertionError, match="no gradients"):
        scheme.backward()


def test_what_a_window_leaves_is_found_once_a_context(monkeypatch):
    asked = []
    real = module.near_end
    monkeypatch.setattr(module, "near_end", lambda *given: asked.append(given[2]) or real(*given))
    prefill = Prefill(toy_decoder(windows=(6, 9, 6)))
    branches = Branches(prefill, prefill.read(ids(20)), count=1, room_tokens=5)
    for _ in range(5):
        branches.extend([[7]])
    assert sorted(asked) == [6, 9]


@given(length=st.integers(1, 40), window=st.integers(1, 50), ranks=st.integers(1, 3))
def test_a_window_leaves_the_keys_that_the_first_token_after_the_context_sees(length, window, ranks):
    for rank in range(ranks):
        places = torch.arange(rank, max(length, rank + 1), ranks)
        want = [at for at, place in enumerate(places.tolist()) if length - place < window] or [0]
        assert module.near_end(places, length, window).tolist() == want
