"""A kernel serves only after it gave right numbers here."""

from dataclasses import dataclass

import pytest
import torch

from longspan.attention import selection
from longspan.attention.cuda import Cudnn, Flash
from longspan.attention.functional import Cpu, Kernel, Need, Reference
from longspan.attention.selection import activate_newest_flash, select, self_test, verdicts
from longspan.utils.errors import LongspanError

CPU = torch.device("cpu")
NEED = Need(device=CPU, dtype=torch.float32, head_dim=16, ratio=2)
FORMS = [{}, {"window": True}, {"short": True}, {"window": True, "short": True}]


@dataclass(frozen=True)
class Broken(Kernel):
    """A sound kernel with one fault."""

    fault: str = ""
    name = "broken"

    def reason_against(self, need):
        return None

    def forward(self, q, k, v, *, causal, window=None):
        if self.fault == "pairing":  # query head i with key head i % g
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1).roll(1, dims=1) for x in (k, v))
        if self.fault == "missing":
            raise NotImplementedError("no such function\nsecond line")
        if self.fault == "arguments":
            raise TypeError
        if self.fault == "mask":
            causal = False
        o, lse = Reference().forward(q, k, v, causal=causal, window=None if self.fault == "window" else window)
        return (o * torch.nan if self.fault == "nan" else o), (lse + 0.1 if self.fault == "lse" else lse)

    def backward(self, do, q, k, v, o, lse, *, causal, window=None):
        if self.fault == "own lse":  # ignores what it is given
            o, lse = Reference().forward(q, k, v, causal=causal, window=window)
        dq, dk, dv = Reference().backward(do, q, k, v, o, lse, causal=causal, window=window)
        return dq, (dk.flip(1) if self.fault == "dk" else dk), dv


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel", [Cpu(), Reference(), Broken()])
@pytest.mark.parametrize("dtype", selection.LIMITS)
def test_sound_kernels_pass(kernel, dtype, form):
    assert self_test(kernel, Need(device=CPU, dtype=dtype, head_dim=16, ratio=3, **form)) == ""


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("pairing", "rows: o is off"),
        ("mask", "rows: o is off"),
        ("nan", "rows: o is off by nan"),
        ("lse", "rows: lse is off"),
        ("dk", "rows: dk is off"),
        ("own lse", "a row in two parts: dq is off"),
        ("missing", "NotImplementedError: no such function"),
        ("arguments", "TypeError: no message"),
    ],
)
def test_faults_are_found(fault, reason):
    assert self_test(Broken(fault), NEED).startswith(reason)


def test_a_window_that_is_not_kept_is_found():
    assert self_test(Broken("window"), NEED) == ""
    need = Need(device=CPU, dtype=torch.float32, head_dim=16, window=True)
    assert self_test(Broken("window"), need).startswith("rows: o is off")


def test_a_broken_kernel_is_passed_over_with_its_reason(monkeypatch):
    monkeypatch.setattr(selection, "KERNELS", (Broken("pairing"), Cpu(), Reference()))
    assert select(CPU, torch.float32, head_dim=16, ratio=2) == Cpu()
    found = verdicts(NEED)
    assert [verdict.kernel.name for verdict in found] == ["broken", "cpu", "reference"]
    assert found[0].reason.startswith("rows: o is off")
    assert [verdict.reason for verdict in found[1:]] == ["", ""]


def test_each_kernel_is_tried_once(monkeypatch):
    calls = []
    monkeypatch.setattr(selection, "self_test", lambda kernel, need: calls.append(kernel) or "")
    for _ in range(3):
        select(CPU, torch.float32, head_dim=24, ratio=2)
    assert calls == [Cpu()]


def test_no_kernel_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(selection, "KERNELS", (Broken("nan"), Flash()))
    with pytest.raises(LongspanError, match=r"\[attention\.no-kernel\]") as caught:
        select(CPU, torch.float32, head_dim=16, ratio=2)
    assert "broken: rows: o is off by nan" in caught.value.where
    assert "flash: runs on a CUDA device only" in caught.value.where


def test_selection_works_without_gradients():
    with torch.inference_mode():
        assert self_test(Cpu(), NEED) == ""
    with torch.no_grad():
        assert self_test(Cpu(), NEED) == ""


@pytest.mark.parametrize(
    ("options", "cudnn", "flash"),
    [
        ({}, None, None),
        ({"window": True}, "takes no window", None),
        ({"short": True}, "builds a plan for every length, too dear for short documents", None),
        ({"head_dim": 192}, "takes heads of at most 128 in steps of 8, not 192", None),
        ({"head_dim": 100}, "takes heads of at most 128 in steps of 8, not 100", "… of at most 256 … not 100"),
        ({"dtype": torch.float32}, "takes bfloat16 or float16, not float32", "takes bfloat16 or float16, not float32"),
        ({"device": CPU}, "runs on a CUDA device only", "runs on a CUDA device only"),
        ({"capability": (8, 0)}, "asks for compute capability 9.0", None),
        ({"capability": (7, 5)}, "asks for compute capability 9.0", "asks for compute capability 8.0"),
    ],
)
def test_what_the_kernels_of_nvidia_ask_for(monkeypatch, options, cudnn, flash):
    capability = options.pop("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    need = Need(**{"device": torch.device("cuda"), "dtype": torch.bfloat16, "head_dim": 128, **options})
    assert Cudnn().reason_against(need) == cudnn
    found = Flash().reason_against(need)
    assert found == flash or all(part in found for part in flash.split("… "))


def test_cudnn_refuses_a_window():
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(AssertionError, match="no window"):
        Cudnn().forward(x, x, x, causal=True, window=2)
    with pytest.raises(AssertionError, match="no window"):
        Cudnn().backward(x, x, x, x, x, x[..., 0], causal=True, window=2)


# -- newer versions of FlashAttention --------------------------------------------------------------------------------


class Versions:
    """torch's registry with some versions installed."""

    def __init__(self, monkeypatch, installed):
        self.active, self.installed = "FA2", installed
        monkeypatch.setattr(selection.torch_attention, "activate_flash_attention_impl", self.activate, raising=False)
        monkeypatch.setattr(selection.torch_attention, "restore_flash_attention_impl", self.restore, raising=False)

    def activate(self, version):
        if version not in self.installed:
            raise ImportError(version)
        self.active = version

    def restore(self):
        self.active = "FA2"


GPU = Need(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=128, ratio=4)


@pytest.mark.parametrize(
    ("installed", "sound", "active"),
    [((), (), "FA2"), (("FA3",), ("FA3",), "FA3"), (("FA3", "FA4"), ("FA3",), "FA3"), (("FA4",), (), "FA2")],
)
def test_the_newest_sound_version_is_taken(monkeypatch, installed, sound, active):
    versions = Versions(monkeypatch, installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(selection, "self_test", lambda kernel, need: "" if versions.active in (*sound, "FA2") else "no")
    activate_newest_flash.cache_clear()
    selection._reason.cache_clear()
    assert select(GPU.device, GPU.dtype, head_dim=128, ratio=4, window=True) == Flash()
    assert versions.active == active
    assert activate_newest_flash(GPU) == active
    activate_newest_flash.cache_clear()
    selection._reason.cache_clear()


def test_without_cuda_nothing_is_activated(monkeypatch):
    versions = Versions(monkeypatch, ("FA4",))
    assert activate_newest_flash(NEED) == "none"
    assert versions.active == "FA2"


# -- calls of the kernels that need a GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [Cudnn(), Flash()])
@pytest.mark.parametrize(("causal", "queries", "keys"), [(True, 131, 131), (False, 131, 197)])
def test_calls_fit_this_version_of_torch(kernel, causal, queries, keys):
    """On the meta device a call is checked against the function's schema and gives shapes, but no numbers."""
    q, k = (torch.empty(2, h, s, 64, device="meta", dtype=torch.bfloat16) for h, s in ((4, queries), (1, keys)))
    o, lse = kernel.forward(q, k, k, causal=causal)
    assert (o.shape, lse.shape, lse.dtype) == (q.shape, (2, 4, queries), torch.float32)
    assert [x.shape for x in kernel.backward(o, q, k, k, o, lse, causal=causal)] == [q.shape, k.shape, k.shape]


@pytest.mark.parametrize("window", [None, 5, 67])
def test_calls_for_documents_fit_this_version_of_torch(window):
    q, k = (torch.empty(h, 67, 64, device="meta", dtype=torch.bfloat16) for h in (4, 1))
    runs = ((0, 1), (1, 67))
    o, lse = Flash().forward_documents(q, k, k, runs=runs, window=window)
    assert (o.shape, lse.shape) == (q.shape, (4, 67))
    found = Flash().backward_documents(o, q, k, k, o, lse, runs=runs, window=window)
    assert [x.shape for x in found] == [q.shape, k.shape, k.shape]
    rows = [x[None] for x in (q, k, k)]
    assert Flash().forward(*rows, causal=True, window=window)[0].shape == (1, 4, 67, 64)
