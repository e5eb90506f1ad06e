"""The doctor finds a healthy machine healthy, and a broken kernel broken."""

from pathlib import Path

import pytest
import torch

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
    monkeypatch.setattr(doctor, "attend", lambda q, k, v: right(q, k, v) * 1.001)
    assert doctor.attention_error(torch.device("cpu"), torch.float32) == pytest.approx(1e-3, rel=1.5)
    checks = [check for check in doctor.examine(Path()) if check.name == "attention on cpu"]
    assert [check.ok for check in checks] == [False]


def test_a_missing_kernel_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(doctor, "attend", missing)
    checks = [check for check in doctor.examine(Path()) if check.name == "attention on cpu"]
    assert (checks[0].ok, checks[0].detail) == (False, "no kernel for this device")
