"""The formulas of `rope/serving.py` against the engines' own rotary code, where a folder with it is at hand.

Unpack `vllm/model_executor/layers/rotary_embedding` of a vLLM wheel, or `sglang/srt/layers/rotary_embedding` of an
SGLang wheel, into a folder, and name it in LONGSPAN_VLLM or LONGSPAN_SGLANG. Nothing else of an engine is imported:
whatever its rotary files ask for beside torch is replaced by stand-ins that are false and do nothing. Last seen equal:
vLLM 0.33.0 and SGLang 0.5.23.
"""

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from longspan.rope.export import config_rope
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.longrope2 import Longrope2
from longspan.rope.methods.su import Su
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.serving import ENGINES, Served

pytestmark = pytest.mark.slow

PLACES = {
    "vLLM": ("LONGSPAN_VLLM", "vllm.model_executor.layers.rotary_embedding"),
    "SGLang": ("LONGSPAN_SGLANG", "sglang.srt.layers.rotary_embedding"),
}
TOPS = {package.split(".")[0] for _, package in PLACES.values()}  # SGLang imports a kernel of vLLM's
DIM, N0, N1 = 64, 64, 512
SIZES = {"head_dim": DIM, "rope_theta": 1e4, "max_position_embeddings": N1}
BASE = RopeBase(rotary_dim=DIM, theta=1e4, trained_length=N0)
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": N0}
MIXED = Su(short_factors=tuple(1 + i / 40 for i in range(32)), long_factors=tuple(1 + i / 4 for i in range(32)))


def exported(method, **choice):
    return json.loads(json.dumps(config_rope(method.frequencies(BASE, N1), head_dim=DIM, **choice)))


CONFIGS = {
    "plain": SIZES | {"rope_parameters": {"rope_type": "default"}},
    "linear": SIZES | {"max_position_embeddings": N0, "rope_parameters": {"rope_type": "linear", "factor": 8.0}},
    "dynamic": SIZES | {"max_position_embeddings": N0, "rope_parameters": {"rope_type": "dynamic", "factor": 8.0}},
    "yarn": SIZES | {"rope_parameters": YARN},
    "yarn, not rounded": SIZES | {"rope_parameters": YARN | {"truncate": False, "beta_fast": 4.0}},
    "yarn, both mscales": SIZES | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.3}},
    "yarn, attention factor": SIZES | {"rope_parameters": YARN | {"attention_factor": 1.0}},
    "llama3": SIZES
    | {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": N0,
        }
    },
    "exported theta law": exported(ThetaLaw()),
    "exported factors": exported(Longrope2(excess=0.2, slope=0.3)),
    "exported mixed window": exported(MIXED, mixed_window=True),
}


class Nothing:
    """Stands for whatever an engine imports: false, callable, a decorator that changes nothing, a base class."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> "Nothing":
        return Nothing()

    def __call__(self, *args, **_):
        return args[0] if len(args) == 1 and callable(args[0]) and not isinstance(args[0], Nothing) else Nothing()

    def __mro_entries__(self, bases):
        return (Operation,)


class Operation(nn.Module):
    """The base class of an engine's operations, which has nothing to do with frequencies."""

    def __init__(self, *_, **__) -> None:
        super().__init__()

    @classmethod
    def enabled(cls) -> bool:
        return False


class StandIn(types.ModuleType):
    """A module of an engine whose every name is `Nothing`."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the rotary package on disk, and a stand-in for everything beside it."""

    def __init__(self, root: Path, package: str) -> None:
        self.root, self.package = root, package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in TOPS:
            return None
        if name == self.package or name.startswith(f"{self.package}."):
            folder = self.root.joinpath(*name.split(".")[:-1])
            return importlib.machinery.PathFinder.find_spec(name, [str(folder)])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


@pytest.fixture(params=PLACES)
def engine(request, monkeypatch):
    """Its name, and its rotary package."""
    variable, package = PLACES[request.param]
    root = os.environ.get(variable)
    if root is None:
        pytest.skip(f"{variable} names no folder with {package}")
    finder, before = Finder(Path(root), package), set(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.setattr(torch, "compile", lambda *given, **_: given[0] if given else lambda function: function)
    yield request.param, importlib.import_module(package)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in TOPS:
            del sys.modules[name]


def theirs(name: str, package, config, length: int) -> Served:
    """What the engine's own module turns position 1 by, in a batch whose last position is length − 1."""
    rope = dict(config.get("rope_scaling") or config["rope_parameters"])
    # transformers 5, through which both engines read a file, puts these two into the dict.
    rope.setdefault("rope_theta", config["rope_theta"])
    original = config.get("original_max_position_embeddings")
    if original is not None and rope["rope_type"] != "default":
        rope["original_max_position_embeddings"] = original
    longest = config["max_position_embeddings"]
    if name == "vLLM":
        if rope["rope_type"] == "longrope":
            chosen = types.SimpleNamespace(model_config=types.SimpleNamespace(max_model_len=length))
            module = importlib.import_module(f"{package.__name__}.phi3_long_rope_scaled_rope")
            module.get_current_vllm_config = lambda: chosen
        rotary = package.get_rope(DIM, longest, rope_parameters=rope, dtype=torch.float32)
        package._ROPE_DICT.clear()  # the kept module was made for another `max_model_len`
    else:
        importlib.import_module(f"{package.__name__}.base").publish_role = lambda: None  # no training run asks
        rotary = package.get_rope(DIM, DIM, longest, rope["rope_theta"], rope_scaling=rope, dtype=torch.float32)
    if rope["rope_type"] == "longrope":
        head = torch.cat([torch.ones(1, DIM // 2), torch.zeros(1, DIM // 2)], dim=1).expand(2, DIM)
        row = rotary(torch.tensor([1, length - 1]), head, head)[0][0]
    else:
        row = rotary.cos_sin_cache[1]
    cos, sin = row.double().chunk(2)
    scale = torch.hypot(cos, sin)
    assert float(scale.max() - scale.min()) < 1e-6
    return Served(omegas=torch.atan2(sin, cos), attention_factor=float(scale.mean()))


@pytest.mark.parametrize("length", [N0 - 1, N0, N0 + 1, N0 + 2, N1])
@pytest.mark.parametrize("what", CONFIGS)
def test_an_engine_turns_as_its_formula_says(engine, what, length):
    name, package = engine
    config = CONFIGS[what]
    found, wanted = ENGINES[name](config, length), theirs(name, package, config, length)
    torch.testing.assert_close(found.omegas, wanted.omegas, rtol=1e-6, atol=1e-9)
    assert found.attention_factor == pytest.approx(wanted.attention_factor, rel=1e-6)


def test_a_whole_number_as_linear_factor_stops_both(engine):
    name, package = engine
    config = CONFIGS["linear"] | {"rope_parameters": {"rope_type": "linear", "factor": 8}}
    with pytest.raises(TypeError):
        theirs(name, package, config, N0)
