"""Plans of one rank of a mesh: what shrinks with ranks, how heads are staged, what exchanges cost, what is told."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_shapes import LLAMA3_8B

from longspan.attention.heads import HeadGeometry
from longspan.attention.traffic import Call
from longspan.engine.anchors import anchor_keys
from longspan.engine.settings import EngineChoice, EngineSettings
from longspan.parallel.mesh import Mesh
from longspan.plan.account import Plan
from longspan.plan.choose import choose
from longspan.plan.machine import Machine
from longspan.plan.memory import Prediction, predict
from longspan.plan.schemes import CallBytes
from longspan.plan.seconds import predict_seconds
from longspan.plan.workload import States, Workload
from longspan.utils.errors import LongspanError

GIB = 2**30
H100 = Machine(device="NVIDIA H100", device_bytes=78 * GIB, host_bytes=64 * GIB, disk_bytes=GIB, peak_flops=989e12)
TRAINED = States(gradient_bytes=4, state_bytes=2)
MESHES = st.builds(
    Mesh,
    replicate=st.sampled_from([1, 2]),
    shard=st.sampled_from([1, 2, 3]),
    ring=st.sampled_from([1, 2, 4]),
    ulysses=st.sampled_from([1, 2, 4, 8]),
    across=st.sampled_from(["ring", "gather"]),
)
BLOCK = 218_103_808  # weights of one block of Llama-3-8B


def choice_of(**changes: object) -> EngineChoice:
    keys = anchor_keys(32, keep="attention", segment=1)
    return EngineChoice(anchors=("device",) * len(keys), group=8, **changes)


def work_of(mesh: Mesh, total: int, **changes: object) -> Workload:
    """A rank's part of one row."""
    return Workload(shape=LLAMA3_8B, tokens=-(-total // mesh.context), mesh=mesh, states=TRAINED, **changes)


def predicted(mesh: Mesh, total: int = 2**17, **changes: object) -> Prediction:
    return predict(work_of(mesh, total), choice_of(**changes))


def plan(mesh: Mesh, total: int, machine: Machine = H100, **steering: object) -> Plan:
    return choose(work_of(mesh, total), EngineSettings(**steering), machine)


# -- memory ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(mesh=MESHES, axis=st.sampled_from(["shard", "ring", "ulysses"]), thousands=st.integers(8, 1024))
def test_memory_falls_with_ranks(mesh: Mesh, axis: str, thousands: int) -> None:
    """Of a rank with the same rows. A second rank alone may cost more than it saves: parts are then gathered."""
    more = replace(mesh, **{axis: 2 * getattr(mesh, axis)})
    if mesh.shard * mesh.context == 1 or more.ulysses > 8:
        return
    assert predicted(more, thousands * 1024).device_bytes <= predicted(mesh, thousands * 1024).device_bytes


@settings(max_examples=50, deadline=None)
@given(mesh=MESHES, fewer=st.integers(1, 1024), more=st.integers(1, 1024))
def test_memory_grows_with_tokens(mesh: Mesh, fewer: int, more: int) -> None:
    small, large = (predicted(mesh, count * 1024).device_bytes for count in sorted((fewer, more)))
    assert small <= large


def test_weights_and_states_are_cut_over_all_but_copies() -> None:
    found = predicted(Mesh(replicate=2, shard=2, ulysses=4)).resident
    share = 8_030_261_248 / 8
    assert found["weights"] == pytest.approx(2 * share)
    assert found["gradients"] == pytest.approx(4 * share)
    assert found["optimizer"] == pytest.approx(2 * share)
    host = predict(replace(work_of(Mesh(shard=8), 1024), states=replace(TRAINED, states_on="host")), choice_of())
    assert host.host["optimizer"] == pytest.approx(2 * share)
    adapters = States(gradient_bytes=4, state_bytes=8, trainable=8_000_000)
    found = predict(replace(work_of(Mesh(shard=8), 1024), states=adapters), choice_of()).resident
    assert found["adapters"] == found["gradients"] == 4_000_000
    copied = predicted(Mesh(replicate=8)).resident
    assert copied["weights"] == 2 * 8_030_261_248


def test_a_block_is_whole_at_work_and_sums_are_there_twice() -> None:
    cut, copied, alone = (
        predicted(mesh).phases["backward tile"] for mesh in (Mesh(shard=8), Mesh(replicate=8), Mesh())
    )
    assert cut["block at work"] == cut["next block on its way"] == 2 * BLOCK
    assert cut["block's sums"] == copied["block's sums"] == copied["sums on their way"] == 4 * BLOCK
    assert cut["sums on their way"] == 4 * BLOCK + 4 * BLOCK // 8  # beside them this rank's rows
    assert "sums on their way" not in alone
    assert alone["block's sums"] == 0  # float32 gradients are their own sums
    even, odd = (predicted(Mesh(shard=ranks)).phases["sums of the head"] for ranks in (8, 5))
    assert even["head's sum"] == 4 * 128256 * 4096
    assert odd["head's sum"] == 2 * even["head's sum"]  # a copy with rows of nobody


def test_a_call_of_ulysses_part_by_part() -> None:
    """Eight ranks, 32 query heads and 8 key/value heads of 128 numbers: a rank gets four and one, of all tokens."""
    tokens = 1000
    call = Call(heads=32, kv_heads=8, head_dim=128, tokens=tokens)
    head = 8 * tokens * 128 * 2  # one head of all tokens
    sums = 8 * tokens * 4
    kernel = 4 * head + 2 * head + 4 * (8 * tokens * 129 * 4 + 2 * head)
    found = CallBytes(mesh=Mesh(ulysses=8)).backward(call)
    assert found == tokens * 32 * 256 + 2 * tokens * 8 * 512 + (3 * 4 * head + 4 * sums) + 2 * head + kernel
    staged = CallBytes(mesh=Mesh(ulysses=8), query_width=1).backward(call)
    one = head + 2 * head + (8 * tokens * 129 * 4 + 2 * head)  # the kernel with one query head
    given_, coming = 3 * head + sums + 2 * head, (3 * head + sums) * 7 // 8
    home, totals = head + head * 7 // 8, 2 * 8 * tokens * 128 * 4
    assert staged == tokens * 32 * 256 + 2 * tokens * 8 * 512 + given_ + coming + one + home + totals


def test_a_call_of_a_ring_part_by_part() -> None:
    tokens = 1000
    call = Call(heads=4, kv_heads=1, head_dim=128, tokens=tokens)
    keys, wide_keys = 2 * tokens * 256, 2 * tokens * 512
    half = 4 * tokens * 256 + 2 * 500 * 256 + 4 * (tokens * 129 * 4 + 500 * 2 * 256)  # all queries, half of the keys
    other = 4 * 500 * 256 + 2 * tokens * 256 + 4 * (500 * 129 * 4 + tokens * 2 * 256)
    found = CallBytes(mesh=Mesh(ring=4)).backward(call)
    assert found == 4 * tokens * 512 + 2 * keys + 3 * wide_keys + max(half, other)


def test_windows_make_the_pieces_of_a_gather_longer() -> None:
    call = Call(heads=4, kv_heads=1, head_dim=128, tokens=4096)
    mesh = Mesh(ring=4, across="gather")
    plain, windowed = CallBytes(mesh=mesh), CallBytes(mesh=mesh, window=1024)
    assert windowed.forward(call) > plain.forward(call)
    assert windowed.backward(call) > plain.backward(call)
    shape = replace(LLAMA3_8B, windows=(1024,) * 32)
    work = replace(work_of(mesh, 2**14), shape=shape)
    parts, others = (
        found.phases["backward attention"] for found in (predict(work, choice_of()), predicted(mesh, 2**14))
    )
    assert parts["attention of a group"] > others["attention of a group"]


# -- choice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [Mesh(shard=2), Mesh(ring=2), Mesh(ulysses=2), Mesh(replicate=2)])
def test_autograd_is_no_candidate_over_ranks(mesh: Mesh) -> None:
    assert plan(mesh, 512, H100.part(1)).choice.keep != "everything"
    with pytest.raises(LongspanError) as error:
        plan(mesh, 512, keep="everything")
    assert error.value.code == "engine.keep"


@settings(max_examples=20, deadline=None)
@given(ulysses=st.sampled_from([2, 4, 8, 16]), ring=st.sampled_from([1, 2]), power=st.integers(10, 18))
def test_planned_stages_can_be_run(ulysses: int, ring: int, power: int) -> None:
    choice = plan(Mesh(ulysses=ulysses, ring=ring), 2**power, segment=1).choice
    width = choice.kv_width or math.lcm(ulysses, choice.group) // ulysses
    heads = 4 * choice.group
    assert HeadGeometry(
        heads=heads, kv_heads=choice.group, degree=ulysses, kv_width=width, query_width=choice.query_width
    ).stages


def test_long_rows_go_through_ulysses_in_stages_and_short_ones_at_once() -> None:
    long, short = plan(Mesh(ulysses=4), 2**18).choice, plan(Mesh(ulysses=4), 2**13).choice
    assert (long.group, long.kv_width, long.query_width) == (8, 1, None)
    assert (short.group, short.kv_width, short.query_width) == (8, None, None)
    assert plan(Mesh(ring=4), 2**18).choice.group == plan(Mesh(), 2**16).choice.group == 1


def test_calls_have_fewer_heads_when_memory_is_short() -> None:
    """With the anchors away, outputs of all heads are what is left to save."""
    host = replace(H100, host_bytes=4096 * GIB)
    steering = {"keep": "attention", "segment": 1, "tile_tokens": 2048}
    roomy, tight = (
        plan(Mesh(ulysses=4), 2**20, replace(host, device_bytes=n * GIB), **steering).choice for n in (78, 32)
    )
    assert roomy.group == 8
    assert tight.group < 8


def test_settings_of_groups_are_obeyed_or_refused() -> None:
    assert plan(Mesh(ulysses=4), 2**16, group=2).choice.group == 2
    with pytest.raises(LongspanError, match="8 ranks of Ulysses cannot share calls of 1 key/value heads") as error:
        plan(Mesh(ulysses=8), 2**16, group=1)
    assert (error.value.code, error.value.fix) == ("engine.group", "numbers that work: 2, 4, 8")
    with pytest.raises(LongspanError) as error:
        plan(Mesh(ulysses=3), 2**16)
    assert error.value.code == "attention.heads"


def test_a_refusal_tells_tokens_of_all_ranks_that_share_a_row() -> None:
    steering = {"farthest": "device", "segment": 4, "tile_tokens": 2048}
    with pytest.raises(LongspanError) as error:
        plan(Mesh(shard=2, ulysses=4), 2**24, **steering)
    assert "16,777,216 tokens over 4 ranks do not fit" in error.value.what
    assert "more ranks to share each row" in error.value.fix
    longest = int(error.value.fix.split()[2].replace(",", ""))
    assert plan(Mesh(shard=2, ulysses=4), longest, **steering)
    with pytest.raises(LongspanError):
        plan(Mesh(shard=2, ulysses=4), longest + 4096, **steering)


# -- time and account --------------------------------------------------------------------------------------------------


def test_ranks_that_share_a_row_share_its_work() -> None:
    alone, shared = plan(Mesh(), 2**16, keep="attention"), plan(Mesh(ulysses=4), 2**16, keep="attention")
    for name in ("linear", "attention"):
        assert getattr(shared.seconds, name) == pytest.approx(getattr(alone.seconds, name) / 4)
    assert alone.seconds.exchanges == 0
    assert 0 < shared.seconds.exchanges < shared.seconds.attention
    assert alone.causal_mfu is not None
    assert shared.causal_mfu == pytest.approx(alone.causal_mfu, rel=0.2)
    assert shared.tokens_per_second == pytest.approx(alone.tokens_per_second, rel=0.2)


def seconds_of(mesh: Mesh, total: int, **machine: float) -> float:
    return plan(mesh, total, replace(H100, **machine), keep="attention", segment=1).seconds.exchanges


def test_a_slow_link_cannot_be_hidden() -> None:
    for mesh in (Mesh(ulysses=8), Mesh(ring=8), Mesh(ring=8, across="gather"), Mesh(shard=8), Mesh(replicate=8)):
        assert seconds_of(mesh, 2**14, link_bytes_per_second=1e9) > 5 * seconds_of(mesh, 2**14)


def test_a_ring_hides_what_a_gather_shows_and_stages_hide_more_than_one_call() -> None:
    ring, gather = (seconds_of(Mesh(ring=8, across=across), 2**20) for across in ("ring", "gather"))
    assert ring < gather / 3

    def exposed(**widths: int) -> float:
        work, machine = work_of(Mesh(ulysses=4), 2**18), replace(H100, device_bytes=1024 * GIB)
        return predict_seconds(work, choice_of(**widths), machine).exchanges

    assert exposed(kv_width=1) < exposed()


def test_a_gather_of_keys_by_hand() -> None:
    """Two ranks of Llama-3-8B with 32,768 tokens each: keys and values there twice, float32 gradients back once."""
    work, machine = work_of(Mesh(ring=2, across="gather"), 2**16), replace(H100, link_bytes_per_second=1e9)
    keys = 32_768 * 8 * 128 * 2 * 2
    attention = 32 * (2 * keys + 2 * keys) / 1e9
    found, infinite = (
        predict_seconds(work, choice_of(), each).exchanges
        for each in (machine, replace(machine, link_bytes_per_second=math.inf))
    )
    assert infinite == 0
    weights = 0.5 * (2 * 2 * 128256 * 4096 + 4 * (2 * 128256 * 4096 + BLOCK)) / 1e9  # ends and the last block
    assert found >= attention + weights
    blocks = 32 * 0.5 * (2 * 2 * BLOCK + 4 * BLOCK) / 1e9  # hidden in part
    assert found <= attention + weights + blocks


def test_the_account_names_the_mesh_and_tells_what_one_device_does() -> None:
    found = plan(Mesh(shard=2, ulysses=4), 2**18, segment=1)
    told = "\n".join(found.account())
    for words in (
        "mesh: 2 shard x 4 ulysses; this is each rank's share",
        "tokens/s per device",
        "exchanges that nothing hides",
        "in stages of kv_width 1",
        "65,536 tokens",
    ):
        assert words in told, told
    assert "mesh: 2 gather x 2 ulysses" in "\n".join(plan(Mesh(ring=2, ulysses=2, across="gather"), 2**16).account())
    alone = "\n".join(plan(Mesh(), 2**14).account())
    assert "mesh" not in alone
    assert "exchanges" not in alone


def test_processes_of_one_machine_share_it() -> None:
    part = replace(H100, locked_bytes=64 * GIB).part(8)
    assert (part.device_bytes, part.host_bytes, part.locked_bytes) == (78 * GIB, 8 * GIB, 8 * GIB)
    assert (part.disk_bytes, part.disk_bytes_per_second) == (GIB // 8, H100.disk_bytes_per_second / 8)
    cpu = Machine(device="cpu", device_bytes=16 * GIB, host_bytes=16 * GIB, disk_bytes=GIB, shared=True)
    assert cpu.part(4).device_bytes == 4 * GIB
    assert cpu.part(1) == cpu
