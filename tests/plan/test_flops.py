"""The convention of operations, against the table of Llama-3-8B and against sums written out by hand."""

from dataclasses import replace

import pytest
from plan_shapes import LLAMA3_8B, cut

from longspan.engine.settings import EngineChoice
from longspan.plan import flops

K = 1024
# length, attention's forward FLOP a token, its share of the forward pass, FLOPs of a step, hardware over model FLOPs
# when o is kept and when attention runs again, both with every linear rebuilt (Llama-3-8B, full fine-tuning, one row)
TABLE = [
    (32 * K, 8.59e9, 0.36, 2.32e15, 1.27, 1.39),
    (64 * K, 1.72e10, 0.53, 6.33e15, 1.24, 1.42),
    (128 * K, 3.44e10, 0.70, 1.94e16, 1.22, 1.45),
    (256 * K, 6.87e10, 0.82, 6.58e16, 1.20, 1.47),
    (512 * K, 1.37e11, 0.90, 2.40e17, 1.18, 1.48),
    (1024 * K, 2.75e11, 0.95, 9.12e17, 1.17, 1.49),
    (4096 * K, 1.10e12, 0.99, 1.40e19, 1.17, 1.50),
]


@pytest.mark.parametrize(("length", "attention", "share", "step", "keep", "repeat"), TABLE)
def test_table_of_llama3_8b(
    length: int, attention: float, share: float, step: float, keep: float, repeat: float
) -> None:
    found = flops.attention_forward_flops(LLAMA3_8B, (length,))
    linear = flops.linear_forward_flops(LLAMA3_8B, length)
    model = flops.model_flops(LLAMA3_8B, (length,))
    assert found / length == pytest.approx(attention, rel=4e-3)
    assert linear / length == pytest.approx(1.50e10, rel=2e-3)
    assert found / (found + linear) == pytest.approx(share, abs=0.006)
    assert model == pytest.approx(step, rel=3e-3)
    assert (4 * linear + 3.5 * found) / model == pytest.approx(keep, abs=0.006)
    assert (4 * linear + 4.5 * found) / model == pytest.approx(repeat, abs=0.006)


def test_parameters_of_llama3_8b() -> None:
    layer = flops.attention_parameters(LLAMA3_8B) + flops.mlp_parameters(LLAMA3_8B)
    assert layer == 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336 == 218_103_808
    assert flops.matmul_parameters(LLAMA3_8B) == 32 * layer + 128256 * 4096 == 7_504_658_432


def test_packed_rows_add_their_squares() -> None:
    lengths = (100, 300, 400)
    squares = 100**2 + 300**2 + 400**2
    assert flops.attention_forward_flops(LLAMA3_8B, lengths) == 2 * squares * 32 * 128 * 32
    assert flops.model_flops(LLAMA3_8B, lengths) == 3 * (2 * 7_504_658_432 * 800 + 2 * squares * 4096 * 32)


def test_adapters_leave_one_of_three_linears_out() -> None:
    whole, adapters = (flops.model_flops(LLAMA3_8B, (4096,), adapters=x) for x in (False, True))
    assert whole - adapters == 2 * 7_504_658_432 * 4096


def test_window_bounds_the_keys_of_a_query() -> None:
    windowed = replace(cut(2), windows=(None, 10))
    # Query i sees min(i, 10) keys by the convention of half a square: 10²/2 in the first ten, 10 each in the others.
    pairs = 100 * 100 / 2 + 10 * 10 / 2 + 90 * 10
    assert flops.attention_forward_flops(windowed, (100,)) == 4 * 4096 * pairs


@pytest.mark.parametrize("keep", ["everything", "attention", "inputs"])
@pytest.mark.parametrize("segment", [1, 2, 3])
def test_hardware_flops_count_what_is_run_again(keep: str, segment: int) -> None:
    """A walk over the blocks as the engine runs them, in operations a token and matrix."""
    layers, tokens = 4, 64
    shape = cut(layers)
    qkv, o, gate_up, down = 4096 * 4096 + 2 * 1024 * 4096, 4096 * 4096, 2 * 4096 * 14336, 4096 * 14336
    whole = qkv + o + gate_up + down
    linear, attention = 3.0 * 128256 * 4096, 0.0
    top = (layers - 1) // segment
    for layer in range(layers):
        linear += 3 * whole
        attention += 3.5
        if keep == "everything":
            continue
        linear += qkv + o + gate_up
        if layer // segment < top:
            last = layer % segment == segment - 1
            linear += 0 if last else o + gate_up + down
            if keep == "inputs":
                linear, attention = linear + qkv, attention + 1
    wanted = 2 * tokens * linear + attention * 2 * tokens**2 * 4096
    choice = EngineChoice(keep=keep, segment=segment)
    assert flops.hardware_flops(shape, (tokens,), choice) == pytest.approx(wanted, rel=1e-12)


def test_share_of_peak() -> None:
    assert flops.share_of_peak(989e12, seconds=2.0, peak_flops=989e12) == 0.5
    assert flops.share_of_peak(1e15, seconds=2.0, peak_flops=None) is None


def test_measured_share_reads_as_published() -> None:
    """4,647 tokens/s at 64K on an H200 are 45.4 % causal MFU (the feasibility script's figure)."""
    per_token = flops.model_flops(LLAMA3_8B, (65536,)) / 65536
    assert flops.share_of_peak(per_token * 4647, seconds=1.0, peak_flops=989e12) == pytest.approx(0.454, abs=5e-4)
