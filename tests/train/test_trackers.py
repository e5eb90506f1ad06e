"""Every file of the folder is one tracker; their packages are stood in for, because none is installed by default."""

import math
import sys
import types

import pytest

from longspan.config import kind_class, kinds
from longspan.records import StepMetrics
from longspan.train.trackers.base import Tracking
from longspan.utils.errors import ConfigError

PACKAGE = "longspan.train.trackers"
MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}


class FakePackage(types.ModuleType):
    """Takes the calls that the three packages take, and writes them down."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started: list = []
        self.logged: list[tuple[str, float, int]] = []
        self.closed = 0
        self.failing = False

    def Settings(self, **values):
        return values

    def init(self, **values):
        self.started.append(values)
        return self

    def SummaryWriter(self, folder, *, purge_step):
        self.started.append({"folder": folder, "purge_step": purge_step})
        return self

    def add_text(self, tag, text, step):
        self.started[-1][tag] = (text, step)

    def log(self, values, step):
        for key, value in values.items():
            self.add_scalar(key, value, step)

    def add_scalar(self, key, value, step):
        if self.failing:
            raise ConnectionError("the server is away")
        self.logged.append((key, value, step))

    def finish(self):
        self.closed += 1

    close = finish


@pytest.fixture(params=kinds(PACKAGE))
def kind(request):
    return request.param


@pytest.fixture
def package(kind, monkeypatch):
    fake = FakePackage(MODULES[kind])
    monkeypatch.setitem(sys.modules, MODULES[kind], fake)
    return fake


def metrics(step: int, loss: float = 2.0) -> StepMetrics:
    return StepMetrics(
        step=step,
        stage=1,
        length=8,
        loss=loss,
        gradient_norm=0.5,
        learning_rate=1e-3,
        tokens=64,
        targets=7.0,
        seconds=0.25,
    )


def tracking(kind, folder, *, warn=lambda text: None) -> Tracking:
    return Tracking(kind_class(PACKAGE, kind)(), folder, name="run-1", recipe={"seed": 7}, warn=warn)


def test_the_three_kinds():
    assert set(kinds(PACKAGE)) == set(MODULES)


def test_steps_arrive_under_their_names(kind, package, tmp_path):
    used = tracking(kind, tmp_path / "tracking")
    assert (tmp_path / "tracking").is_dir(), "wandb writes elsewhere when its folder is missing"
    used.observe(metrics(3))
    used.close()
    used.close()
    assert ("train/loss", 2.0, 3) in package.logged
    assert ("train/learning_rate", 1e-3, 3) in package.logged
    assert {key for key, _, _ in package.logged} == {
        f"train/{key}"
        for key in ("stage", "length", "loss", "gradient_norm", "learning_rate", "tokens", "targets", "seconds")
    }
    assert package.closed == 1
    assert "seed" in str(package.started)


def test_a_run_goes_on_under_its_name(kind, package, tmp_path):
    for first in (1, 5):  # killed after step 8, the second process repeats steps from 5 on
        used = tracking(kind, tmp_path)
        for step in range(first, first + 8):
            used.observe(metrics(step))
        used.close()
    one, two = package.started
    if kind == "tensorboard":
        assert one["folder"] == two["folder"] == str(tmp_path / "tensorboard" / "run-1")
        assert (one["purge_step"], two["purge_step"]) == (1, 5)
        assert (one["recipe"][1], two["recipe"][1]) == (1, 5)
    else:
        assert one == two
        assert one["resume"] == "allow"
        assert {one["name"], one.get("id", "run-1")} == {"run-1"}


def test_closing_before_the_first_step(kind, package, tmp_path):
    told = []
    tracking(kind, tmp_path, warn=told.append).close()
    assert told == []


def test_what_a_tracker_prints_stays_out_of_standard_output(kind, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(package, "add_scalar", lambda *_: print("hello from a tracker"))
    tracking(kind, tmp_path).observe(metrics(1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_numbers_that_are_not_finite_are_left_out(kind, package, tmp_path):
    tracking(kind, tmp_path).observe(metrics(3, loss=math.nan))
    assert "train/loss" not in {key for key, _, _ in package.logged}


def test_a_failing_tracker_warns_once_and_is_switched_off(kind, package, tmp_path):
    told = []
    used = tracking(kind, tmp_path, warn=told.append)
    package.failing = True
    for step in (1, 2, 3):
        used.observe(metrics(step))
    used.close()
    assert len(told) == 1
    assert "the server is away" in told[0]


def test_a_tracker_that_cannot_start_is_no_reason_not_to_train(kind, package, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no key")

    monkeypatch.setattr(package, "init", refuse)
    monkeypatch.setattr(package, "SummaryWriter", refuse)
    told = []
    tracking(kind, tmp_path, warn=told.append).observe(metrics(1))
    assert len(told) == 1
    assert "no key" in told[0]


def test_a_missing_package_is_named_with_its_extra(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULES[kind], None)
    with pytest.raises(ConfigError) as caught:
        tracking(kind, tmp_path)
    assert caught.value.code == "tracker.missing"
    assert f"longspan[{kind}]" in caught.value.fix


def test_nothing_is_gathered_that_was_not_asked_for(monkeypatch, tmp_path):
    for kind in ("wandb", "trackio"):
        fake = FakePackage(kind)
        monkeypatch.setitem(sys.modules, kind, fake)
        tracking(kind, tmp_path)
        (started,) = fake.started
        switches = started.get("settings", started)
        gathering = {"wandb": ("disable_code", "disable_git", "x_disable_stats"), "trackio": ()}[kind]
        assert all(switches[name] is True for name in gathering)
        if kind == "trackio":
            assert (started["auto_log_gpu"], started["auto_log_cpu"], started["space_id"]) == (False, False, None)
