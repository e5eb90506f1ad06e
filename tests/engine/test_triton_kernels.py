"""The Triton kernels under Triton's interpreter, on the CPU, against float64 and against the plain PyTorch steps.

Triton decides at its import whether it interprets, so the cases run in a process of their own that asks for it. The
interpreter cuts numbers off where it makes them bfloat16, a device rounds to the nearest: both are within `check`.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pointwise_cases as cases
import pytest
import torch

from longspan.engine import pointwise

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LIKES = [torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
like = pytest.mark.parametrize("like", LIKES, ids=lambda x: str(x.dtype).removeprefix("torch."))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_under_the_interpreter():
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 7):
        pytest.skip(f"the interpreter of triton {version} cannot count a loop with NumPy 2.4 and later")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestInterpreted"]
    run = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=250
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


@pytest.fixture(scope="module")
def kernels():
    return importlib.import_module("longspan.engine.triton_kernels")


def both(kernels, case, like, **sizes):
    """The case against float64, and the kernel against the plain step: each may be off in its own way."""
    torch.manual_seed(1)
    found = case(kernels, like, **sizes)
    cases.check(found)
    torch.manual_seed(1)
    plain = case(pointwise, like, **sizes)
    pairs = {name: (found[name][0], mine.double(), *sizes) for name, (mine, _, *sizes) in plain.items()}
    cases.check(pairs, times=2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of exp(1000), which is infinite as it should be
class TestInterpreted:
    __test__ = INTERPRETED

    @like
    @pytest.mark.parametrize(("t", "m"), [(5, 24), (70, 128), (2, 4097)])  # many rows a program, and one
    def test_norm(self, kernels, like, t, m):
        both(kernels, cases.norm_case, like, t=t, m=m)
        both(kernels, cases.norm_case, like, t=t, m=m, weight_dtype=torch.float32)

    @like
    @pytest.mark.parametrize(("t", "m"), [(5, 24), (70, 128), (200, 64), (5, 4097)])  # (5, 4097): two programs, 3 and 2
    def test_norm_backward(self, kernels, like, t, m):
        both(kernels, cases.norm_backward_case, like, t=t, m=m, residual=True, dweight=True)
        both(kernels, cases.norm_backward_case, like, t=t, m=m, residual=False, dweight=False)

    @like
    @pytest.mark.parametrize("alias", ["x", "dn", "residual"])
    def test_norm_backward_in_place(self, kernels, like, alias):
        both(kernels, cases.norm_backward_case, like, t=5, m=24, residual=True, dweight=True, alias=alias)

    @like
    @pytest.mark.parametrize(("n", "d", "pairs"), [(3, 16, 8), (5, 16, 3), (2, 80, 40), (9, 128, 64)])
    def test_rotation(self, kernels, like, n, d, pairs):
        both(kernels, cases.rotate_case, like, t=37, n=n, d=d, pairs=pairs)
        both(kernels, cases.rotate_case, like, t=5, n=n, d=d, pairs=pairs, normed=True)
        both(kernels, cases.rotate_back_case, like, t=37, n=n, d=d, pairs=pairs)

    @like
    @pytest.mark.parametrize("f", [40, 2048, 2500])
    def test_swiglu(self, kernels, like, f):
        both(kernels, cases.swiglu_case, like, t=3, f=f)
        both(kernels, cases.swiglu_backward_case, like, t=3, f=f)

    @like
    @pytest.mark.parametrize("v", [3, 2048, 20000])
    def test_cross_entropy(self, kernels, like, v):
        both(kernels, cases.cross_entropy_case, like, t=4, v=v)

    @like
    def test_cross_entropy_of_huge_logits(self, kernels, like):
        cases.huge_logits_case(kernels, like)

    @like
    @pytest.mark.parametrize(("s", "d"), [(10, 16), (37, 128)])
    def test_merge(self, kernels, like, s, d):
        both(kernels, cases.merge_case, like, n=3, s=s, d=d)
