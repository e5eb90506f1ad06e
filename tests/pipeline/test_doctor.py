"""The doctor finds a healthy machine healthy, and a broken kernel broken."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.attention import selection
from longspan.attention.functional import Cpu, Reference
from longspan.pipeline import doctor


def test_this_machine_is_well(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(tmp_path / "not" / "there")}
    assert checks["python"].ok
    assert checks["torch"].ok
    assert checks["attention on cpu"].ok
    assert checks["transformers"].ok is None
    assert str(tmp_path) in checks["disk"].detail


def test_wrong_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.attend
    monkeypatch.setattr(doctor, "attend", lambda q, k, v, **options: right(q, k, v, **options) * 1.001)
    assert doctor.attention_error(torch.device("cpu"), torch.float32) == pytest.approx(1e-3, rel=1.5)
    checks = [check for check in doctor.examine(Path()) if check.name == "attention on cpu"]
    assert [check.ok for check in checks] == [False]


@pytest.mark.parametrize("broken", ["window", "spans", "merged"])
def test_a_form_that_gives_no_number_is_found(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    right = doctor.attend

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        out = right(q, k, v, **options)
        return out * torch.nan if broken in options or (broken == "merged" and q.shape[2] < k.shape[2]) else out

    monkeypatch.setattr(doctor, "attend", attend)
    assert math.isnan(doctor.attention_error(torch.device("cpu"), torch.float32))
    checks = [check for check in doctor.examine(Path()) if check.name == "attention on cpu"]
    assert [check.ok for check in checks] == [False]


def test_a_missing_kernel_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(doctor, "attend", missing)
    checks = [check for check in doctor.examine(Path()) if check.name == "attention on cpu"]
    assert (checks[0].ok, checks[0].detail) == (False, "no kernel for this device")


def engine_check() -> doctor.Check:
    return next(check for check in doctor.examine(Path()) if check.name == "engine on cpu")


def test_the_kernels_of_the_engine_are_named() -> None:
    found = engine_check()
    assert (found.ok, found.detail) == (True, "long rows: cpu, documents: cpu, windows: cpu")


class Wrong(Cpu):
    """A kernel that pairs no head rightly."""

    name = "wrong"

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
        return super().forward(q, k.flip(1), v.flip(1), **options)


def test_a_kernel_that_fails_is_named_with_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KERNELS", (Wrong(), Reference()))
    found = engine_check()
    assert found.ok
    assert found.detail.startswith(
        "long rows: reference, documents: reference, windows: reference; wrong fails on long"
    )


def test_an_engine_without_kernels_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "KERNELS", (Wrong(),))
    assert engine_check().ok is False
