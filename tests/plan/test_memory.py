"""Predicted bytes, against the tables of Llama-3-8B and against sums written out by hand."""

from dataclasses import replace

import pytest
import torch
from plan_shapes import LLAMA3_8B, cut

from longspan.attention.schemes import local
from longspan.engine import diskfile, store
from longspan.engine.anchors import AnchorKey, anchor_keys
from longspan.engine.hostmemory import HostMemory
from longspan.engine.settings import EngineChoice, Tier
from longspan.engine.store import SlotShape, Store
from longspan.plan import memory, schemes, weights
from longspan.plan.account import describe
from longspan.plan.memory import Prediction, anchor_bytes, predict
from longspan.plan.workload import States, Workload
from longspan.shape import ModelShape, OwnPositions
from longspan.train import optimizer

TOKENS = 65_536


def choice_of(keep: str = "attention", segment: int = 1, tier: Tier = "device", **changes: object) -> EngineChoice:
    keys = anchor_keys(32, keep=keep, segment=segment)
    return EngineChoice(keep=keep, segment=segment, anchors=(tier,) * len(keys), **changes)


def predicted(choice: EngineChoice, **changes: object) -> Prediction:
    return predict(replace(Workload(shape=LLAMA3_8B, tokens=TOKENS), **changes), choice)


@pytest.mark.parametrize(
    ("keep", "segment", "bytes_per_token"),
    [
        ("attention", 1, 528_384),
        ("attention", 2, 397_312),
        ("attention", 4, 331_776),
        ("attention", 8, 299_008),
        ("inputs", 1, 262_144),
        ("inputs", 2, 131_072),
        ("inputs", 4, 65_536),
        ("inputs", 8, 32_768),
    ],
)
def test_anchors_of_llama3_8b(keep: str, segment: int, bytes_per_token: int) -> None:
    kept = [key for key in anchor_keys(32, keep=keep, segment=segment) if not key.working]
    assert sum(anchor_bytes(LLAMA3_8B, key, tokens=1, element_bytes=2) for key in kept) == bytes_per_token
    working = (segment - 1) * 8192 + (segment * 8320 if keep == "inputs" else 0)
    assert predicted(choice_of(keep, segment)).resident["anchors"] == TOKENS * (bytes_per_token + working)


def test_anchors_lie_where_the_choice_says() -> None:
    keys = anchor_keys(32, keep="attention", segment=1)
    anchors = tuple("device" if key.layer >= 30 else "disk" if key.layer < 3 else "host" for key in keys)
    found = predicted(EngineChoice(anchors=anchors))
    layer = TOKENS * (8192 + 8320)
    assert found.resident["anchors"] == 2 * layer
    assert found.host["anchors"] == 27 * layer
    assert found.disk_bytes == 3 * layer
    assert found.host["buffers of files"] == 6 * 3 * 8192 * 8192  # six tensors, three tiles of 8,192 tokens each


def test_a_save_that_nobody_waits_for_takes_a_copy_on_the_host() -> None:
    """Weights in bfloat16 and two states of 8 bits: 4 bytes of each of 8.03 billion numbers; or of adapters only."""
    whole = predicted(choice_of(), states=States(copied_bytes=4.0))
    assert whole.host["copy for checkpoints"] == 4 * 8_030_261_248
    assert whole.device_bytes == predicted(choice_of()).device_bytes
    adapters = predicted(choice_of(), states=States(copied_bytes=12.0, trainable=1_000_000))
    assert adapters.host["copy for checkpoints"] == 12_000_000


def test_lossy_anchors_have_half_the_bytes() -> None:
    """A byte a number and four for each 128; the log-sum-exp stays float32."""
    exact, lossy = predicted(choice_of()), predicted(choice_of(lossy_anchors=True))
    assert exact.resident["anchors"] == 32 * TOKENS * (8192 + 8192 + 128)
    assert lossy.resident["anchors"] == 32 * TOKENS * (4096 + 128 + 4096 + 128 + 128)
    assert lossy.host["anchors"] == 0
    away = predicted(choice_of(tier="host", lossy_anchors=True))
    assert away.host["anchors"] == lossy.resident["anchors"]
    # Two tiles of codes and scales at a time leave the device, two of x and o come, and one of each is decoded.
    assert away.resident["staging"] == 2 * 8192 * (4224 + 4224)
    assert away.phases["backward tile"]["tiles read"] == 2 * 8192 * (4224 + 4224) + 8192 * (8192 + 8192)
    assert away.phases["backward tile"]["heads read"] == TOKENS * 4 * (2 * (128 + 4 + 4) + 256)


@pytest.mark.parametrize(("width", "heads", "head_dim"), [(4096, 32, 128), (896, 14, 64), (960, 15, 64), (200, 2, 80)])
@pytest.mark.parametrize("lossy", [False, True])
def test_the_store_takes_what_is_predicted(width: int, heads: int, head_dim: int, lossy: bool) -> None:
    shape = replace(LLAMA3_8B, width=width, heads=heads, kv_heads=1, head_dim=head_dim)
    places = Store(torch.device("cpu"), tokens=8192, tile_tokens=4096, host=HostMemory(torch.device("cpu")))
    x = SlotShape(None, (width,), torch.bfloat16, lossy=lossy)
    o = SlotShape(heads, (head_dim,), torch.bfloat16, lossy=lossy)
    lse = SlotShape(heads, (), torch.float32)
    for key, group in ((AnchorKey(0, "x"), (x,)), (AnchorKey(0, "o"), (o, lse))):
        predicted_bytes = anchor_bytes(shape, key, tokens=8192, element_bytes=2, lossy=lossy)
        assert sum(places.host_bytes(part, "host") for part in group) == predicted_bytes


def test_the_plan_says_that_anchors_are_lossy() -> None:
    assert "anchors: 64 on device" in describe(choice_of())
    assert "lossy fp8 anchors: 64 on device" in describe(choice_of(lossy_anchors=True))
    assert "lossy" not in describe(choice_of())


@pytest.mark.parametrize(
    ("states", "weights", "gradients", "optimizer"),
    [
        (States(), 2, 2, 0),
        (States(gradient_bytes=4, state_bytes=8), 2, 4, 8),
        (States(weight_bytes=4, gradient_bytes=4, state_bytes=8), 4, 4, 8),
        (States(state_bytes=2 + 8 / 256, update_inside=True), 2, 0, 2 + 8 / 256),
    ],
)
def test_states_of_a_parameter(states: States, weights: int, gradients: int, optimizer: float) -> None:
    found = predicted(choice_of(), states=states).resident
    parameters = 8_030_261_248
    assert LLAMA3_8B.parameters == parameters
    assert found["weights"] == weights * parameters
    assert found["gradients"] == gradients * parameters
    assert found["optimizer"] == pytest.approx(optimizer * parameters, abs=1)


def test_autograd_has_all_gradients_at_once_also_where_weights_change_inside() -> None:
    inside = States(gradient_bytes=4, state_bytes=2, update_inside=True)
    found = predict(Workload(shape=LLAMA3_8B, tokens=1000, states=inside), EngineChoice(keep="everything"))
    assert found.resident["gradients"] == 4 * LLAMA3_8B.parameters
    assert predicted(choice_of(), states=inside).resident["gradients"] == 0


def test_float32_gradients_of_bfloat16_weights_are_their_own_sums() -> None:
    found = predicted(choice_of(), states=States(weight_bytes=2, gradient_bytes=4))
    assert found.phases["backward tile"]["block's sums"] == found.phases["loss"]["head's sum"] == 0


def test_numbers_that_stand_in_two_places_are_equal() -> None:
    """The planner imports no torch, and so not the modules whose buffers it counts."""
    assert memory.RING == store.DEPTH
    assert memory.FILE_BUFFERS == diskfile.BUFFERS
    assert weights.UPDATE_TILE == optimizer.TILE
    assert schemes.LONG_TOKENS == local.LONG_TOKENS


def test_optimizer_on_the_host_leaves_the_device() -> None:
    found = predicted(choice_of(), states=States(state_bytes=8, states_on="host"))
    assert found.resident["optimizer"] == 0
    assert found.host["optimizer"] == 8 * LLAMA3_8B.parameters


def test_adapters_need_gradients_for_themselves_only() -> None:
    found = predicted(choice_of(), states=States(trainable=1_000_000, state_bytes=8))
    assert found.resident["weights"] == 2 * LLAMA3_8B.parameters
    assert found.resident["adapters"] == found.resident["gradients"] == 4_000_000
    assert found.resident["optimizer"] == 8_000_000
    assert found.phases["loss"]["head's sum"] == found.phases["backward tile"]["block's sums"] == 0


def test_peak_is_the_largest_phase() -> None:
    found = predicted(choice_of())
    sizes = {name: sum(parts.values()) for name, parts in found.phases.items()}
    assert found.device_bytes == sum(found.resident.values()) + max(sizes.values())
    assert sizes[found.peak_phase] == max(sizes.values())
    assert sum(found.parts.values()) == found.device_bytes
    assert list(found.parts.values()) == sorted(found.parts.values(), reverse=True)


def test_backward_attention_part_by_part() -> None:
    """One key/value head with its four queries: dq, dk, dv in bf16, and inside the kernel a float32 dq and row sums."""
    found = predicted(choice_of(tier="host"))
    u = TOKENS * 8192
    parts = found.phases["backward attention"]
    assert parts["residual gradient"] == parts["dO"] == u
    assert parts["block's sums"] == 4 * 218_103_808
    assert parts["attention of a group"] == TOKENS * 5648  # as measured on an H200: docs/LOG.md, 2026-11-24
    long = predicted(choice_of(), tokens=131_072).phases["backward attention"]
    assert long["attention of a group"] == 131_072 * (1284 + 2 * 128 * 4 + 4 * 128 * 2)  # one head a call
    assert parts["heads read"] == 2 * TOKENS * 4 * (256 + 4)
    # Rings of two: tiles of x and o for the first pass, tiles of x for the second.
    assert parts["tiles read"] == 2 * (2 + 1) * 8192 * 8192
    assert found.resident["q, k, v"] == TOKENS * 48 * 128 * 2


def test_gradient_on_the_host_is_streamed() -> None:
    near, far = predicted(choice_of()), predicted(choice_of(gradient="host"))
    assert near.phases["backward tile"]["residual gradient"] == far.host["residual gradient"] == TOKENS * 8192
    assert far.phases["backward tile"]["residual gradient"] == near.host["residual gradient"] == 0
    assert far.resident["staging"] == 2 * 8192 * 8192


def test_memory_is_linear_in_tokens() -> None:
    """The slope without anchors in residual streams: q, k, v 1.5, dO 1, gradient 1, a head group, its o read ahead."""
    sizes = [predicted(choice_of(tier="host"), tokens=n).device_bytes for n in (2**20, 2**21, 3 * 2**20)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]
    group = (1284 + 2 * 128 * 4 + 4 * 128 * 2) / 8192
    ahead, cos_and_sin, lse, batch = 2 * 4 * 260 / 8192, 512 / 8192, 128 / 8192, 28 / 8192
    slope = (sizes[1] - sizes[0]) / (2**20 * 8192)
    assert slope == pytest.approx(1.5 + 1 + 1 + group + ahead + cos_and_sin + lse + batch)
    assert slope < 4.4


def test_float32_weights_are_cast_a_block_at_a_time_and_keep_their_own_sums() -> None:
    found = predicted(choice_of(), states=States(weight_bytes=4, gradient_bytes=4))
    assert found.phases["backward tile"]["block's sums"] == 0
    assert found.phases["forward tile"]["block in the type of tiles"] == 2 * 218_103_808


def test_tied_head_is_summed_until_the_embedding_is_reached() -> None:
    tied = predict(Workload(shape=replace(LLAMA3_8B, tied=True), tokens=TOKENS), choice_of())
    assert tied.phases["backward tile"]["head's sum"] == 4 * 128256 * 4096
    assert predicted(choice_of()).phases["backward tile"]["head's sum"] == 0


def test_everything_grows_with_layers() -> None:
    kept = [
        predict(Workload(shape=cut(layers), tokens=1000), EngineChoice(keep="everything")).phases["loss"]
        for layers in (1, 2)
    ]
    per_layer = kept[1]["kept by autograd"] - kept[0]["kept by autograd"]
    # Norms: a float32 copy, its bf16 result, and that times the weight; q, k, v, o; four tensors of the MLP.
    assert per_layer == 1000 * (2 * 8 * 4096 + 2 * (2 * 4096 + 2 * 1024) + 4 * 32 + 4 * 2 * 14336)


@pytest.mark.parametrize("keep", ["attention", "everything"])
def test_every_set_of_positions_has_its_cosines(keep: str) -> None:
    """A pair of float32 tables of half a head for the stretched set, and for each different set that layers keep."""
    none, local = OwnPositions(theta=None), OwnPositions(theta=1e4)
    shape = replace(LLAMA3_8B, own_positions=(None, none, local, none) * 8)
    choice = EngineChoice(keep="everything") if keep == "everything" else choice_of(keep)

    def tables(of: ModelShape) -> int:
        found = memory.Parts(Workload(shape=of, tokens=TOKENS), choice)
        parts = found.plain_phases["loss"] if keep == "everything" else found.engine
        return parts["cos and sin"]

    assert tables(LLAMA3_8B) == TOKENS * 2 * 64 * 4
    assert tables(shape) == 3 * TOKENS * 2 * 64 * 4
