"""What the planner picks, where it puts anchors, and how it refuses."""

from dataclasses import replace

import pytest
from plan_shapes import LLAMA3_8B, cut

from longspan.engine.anchors import anchor_keys
from longspan.engine.settings import EngineSettings
from longspan.plan.account import Plan
from longspan.plan.choose import choose
from longspan.plan.machine import Machine, peak_flops
from longspan.plan.workload import States, Workload
from longspan.utils.errors import LongspanError

GIB = 2**30
H200 = Machine(
    device="NVIDIA H200", device_bytes=139 * GIB, host_bytes=2048 * GIB, disk_bytes=64 * GIB, peak_flops=989e12
)
SMALL = replace(H200, device_bytes=48 * GIB, host_bytes=64 * GIB, disk_bytes=4096 * GIB)


def plan(tokens: int, machine: Machine = H200, *, layers: int = 32, **settings: object) -> Plan:
    return choose(Workload(shape=cut(layers), tokens=tokens), EngineSettings(**settings), machine)


def test_short_rows_are_left_to_autograd() -> None:
    found = plan(1024)
    assert found.choice.keep == "everything"
    assert plan(4096).choice.keep == "attention"
    assert found.choice.anchors == ()


def test_attention_is_kept_when_it_fits() -> None:
    found = plan(65_536)
    assert (found.choice.keep, found.choice.segment, found.choice.gradient) == ("attention", 1, "device")
    assert set(found.choice.anchors) == {"device"}
    assert found.choice.tile_tokens == 8192


def test_top_layers_stay_on_the_device_and_the_rest_goes_to_the_host() -> None:
    found = plan(524_288)
    keys = anchor_keys(32, keep=found.choice.keep, segment=found.choice.segment)
    places = dict(zip(keys, found.choice.anchors, strict=True))
    assert found.choice.keep == "attention"
    assert set(places.values()) == {"device", "host"}
    assert min(key.layer for key in keys if places[key] == "device") >= max(
        key.layer for key in keys if places[key] == "host"
    )


def test_no_prediction_passes_the_machine() -> None:
    for tokens in (2**13, 2**15, 2**17, 2**19, 2**20):
        for machine in (H200, replace(H200, host_bytes=200 * GIB), replace(H200, host_bytes=100 * GIB)):
            memory = plan(tokens, machine).memory
            assert memory.device_bytes <= 0.92 * machine.device_bytes
            assert memory.host_bytes <= 0.9 * machine.host_bytes


def test_little_host_memory_costs_time_not_the_run() -> None:
    rich, poor = plan(2**20), plan(2**20, replace(H200, host_bytes=100 * GIB))
    assert rich.choice.keep == "attention"
    assert poor.choice.keep == "inputs"
    assert poor.seconds.total > rich.seconds.total
    assert poor.passed_over is not None
    assert poor.passed_over.tier == "host"


def test_disk_is_used_only_when_it_is_allowed() -> None:
    with pytest.raises(LongspanError, match="host memory"):
        plan(2**18, replace(H200, host_bytes=8 * GIB, disk_bytes=4096 * GIB), keep="attention")
    found = plan(
        2**18, replace(H200, host_bytes=40 * GIB, disk_bytes=4096 * GIB), keep="attention", segment=1, farthest="disk"
    )
    assert "disk" in found.choice.anchors
    assert found.memory.disk_bytes > 0


@pytest.mark.parametrize("host", [4, 16, 34, 46, 64, 112, 130])
@pytest.mark.parametrize("tokens", [2**18, 2**19])
def test_buffers_of_files_find_room_beside_anchors_on_the_host(tokens: int, host: int) -> None:
    machine = replace(H200, device_bytes=60 * GIB, host_bytes=host * GIB, disk_bytes=4096 * GIB)
    found = plan(tokens, machine, keep="attention", segment=1, farthest="disk")
    assert "disk" in found.choice.anchors
    assert found.memory.host["buffers of files"] > 0
    assert found.memory.host_bytes <= 0.9 * machine.host_bytes


def test_settings_are_obeyed() -> None:
    found = plan(65_536, keep="inputs", segment=2, tile_tokens=1024, group=4, farthest="device")
    choice = found.choice
    assert (choice.keep, choice.segment, choice.tile_tokens, choice.group) == ("inputs", 2, 1024, 4)
    assert choice.loss_tile_tokens == 1024
    assert choice.gradient == "device"
    assert set(choice.anchors) == {"device"}


def test_tiles_grow_when_memory_is_plentiful_and_shrink_for_short_rows() -> None:
    assert plan(131_072, layers=4, keep="attention").choice.tile_tokens == 16_384
    assert plan(1000, keep="attention").choice.tile_tokens == 1000


def test_long_rows_take_one_head_a_call() -> None:
    assert plan(2**17, keep="attention").choice.group == 1
    assert plan(2**12, keep="attention").choice.group == 8


def test_a_cpu_has_one_memory() -> None:
    machine = Machine(device="cpu", device_bytes=16 * GIB, host_bytes=16 * GIB, disk_bytes=64 * GIB, shared=True)
    work = Workload(shape=cut(1), tokens=16_384, element_bytes=4, states=States(weight_bytes=4, gradient_bytes=4))
    found = choose(work, EngineSettings(), machine)
    assert set(found.choice.anchors) <= {"device"}
    assert found.choice.gradient == "device"
    assert found.memory.host_bytes == 0


@pytest.mark.parametrize(
    ("tokens", "machine", "settings", "states", "words", "fix"),
    [
        (2**22, H200, {"farthest": "device"}, States(), "device memory", 'engine.farthest = "host"'),
        (2**23, H200, {}, States(state_bytes=8), "device memory", 'optimizer.kind = "adamw8"'),
        (2**19, replace(H200, host_bytes=0), {"keep": "attention"}, States(), "host memory", 'engine.keep = "inputs"'),
        (2**20, replace(H200, host_bytes=0), {}, States(), "host memory", 'engine.farthest = "disk"'),
        (2**17, SMALL, {"farthest": "disk"}, States(weight_bytes=4, gradient_bytes=4), "device memory", "LoRA"),
    ],
)
def test_refusals_name_the_limit_and_what_helps(
    tokens: int, machine: Machine, settings: dict[str, object], states: States, words: str, fix: str
) -> None:
    work = Workload(shape=LLAMA3_8B, tokens=tokens, states=states)
    with pytest.raises(LongspanError) as error:
        choose(work, EngineSettings(**settings), machine)
    assert error.value.code == "plan.memory"
    assert f"{tokens:,} tokens do not fit" in error.value.what
    assert f"of {words}, and" in error.value.what
    assert "may be used" in error.value.what
    assert fix in error.value.fix


def test_refusals_offer_only_what_can_be_taken() -> None:
    """Adapters are float32, which adamw8 does not train; on a CPU the host is the device."""

    def fix(machine: Machine, trainable: int | None) -> str:
        states = States(gradient_bytes=4, state_bytes=8, trainable=trainable)
        with pytest.raises(LongspanError) as error:
            choose(Workload(shape=LLAMA3_8B, tokens=2**23, states=states), EngineSettings(farthest="device"), machine)
        return error.value.fix

    states, host = 'train.optimizer.states = "host"', 'engine.farthest = "host"'
    assert all(remedy in fix(H200, None) for remedy in (states, host, "adamw8", '"inside"', "LoRA"))
    assert all(remedy in fix(H200, 1_000_000) for remedy in (states, host))
    assert not any(remedy in fix(H200, 1_000_000) for remedy in ("adamw8", '"inside"', "LoRA"))
    shared = Machine(device="cpu", device_bytes=16 * GIB, host_bytes=16 * GIB, disk_bytes=64 * GIB, shared=True)
    assert not any(remedy in fix(shared, None) for remedy in (states, host))


def test_a_save_that_waits_is_offered_where_its_copy_takes_the_room() -> None:
    def fix(machine: Machine, copied_bytes: float) -> str:
        work = Workload(shape=LLAMA3_8B, tokens=2**20, states=States(copied_bytes=copied_bytes))
        with pytest.raises(LongspanError) as error:
            choose(work, EngineSettings(farthest="host"), machine)
        return error.value.fix

    little = replace(H200, host_bytes=8 * GIB)
    shared = Machine(device="cpu", device_bytes=16 * GIB, host_bytes=16 * GIB, disk_bytes=64 * GIB, shared=True)
    assert all('train.save = "blocking"' in fix(machine, 4.0) for machine in (little, shared))
    assert not any("train.save" in fix(machine, 0.0) for machine in (little, shared))


def test_a_refusal_says_where_anchors_would_lie() -> None:
    with pytest.raises(LongspanError, match=r"64 on host\) needs .* of host memory"):
        plan(2**18, replace(H200, host_bytes=8 * GIB), keep="attention", segment=1)


def test_refusal_names_a_length_that_fits() -> None:
    work = Workload(shape=LLAMA3_8B, tokens=2**21)
    with pytest.raises(LongspanError) as error:
        choose(work, EngineSettings(farthest="device"), H200)
    longest = int(error.value.fix.split()[2].replace(",", ""))
    assert choose(replace(work, tokens=longest), EngineSettings(farthest="device"), H200)
    with pytest.raises(LongspanError):
        choose(replace(work, tokens=longest + 1024), EngineSettings(farthest="device"), H200)


def test_account_tells_bytes_time_bound_and_what_is_cheaper() -> None:
    found = plan(2**20, replace(H200, host_bytes=100 * GIB, locked_bytes=GIB))
    told = "\n".join(found.account())
    for words in ("plan: inputs", "device: ", "host: ", "time: ", "causal MFU", "bound by host memory", "ulimit -l"):
        assert words in told, told


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("cpu", None)],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_machine_can_be_limited() -> None:
    assert H200.limited(host_gib=7).host_bytes == 7 * 2**30
    assert H200.limited(device_gib=0.5) == replace(H200, device_bytes=2**29)
    assert H200.limited() == H200
