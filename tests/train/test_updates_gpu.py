"""Updates on a GPU: states that visit from the host change no bit and leave the device's memory alone."""

import pytest
import torch
from toy_training import decoder

from longspan.train import optimizer as module
from longspan.train.optimizer import build_updater
from longspan.train.settings import TrainSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")
DTYPES = {"adamw": torch.float32, "adamw8": torch.bfloat16}


def updated(kind: str, *, states: str, update: str, steps: int = 3) -> dict[str, torch.Tensor]:
    """Weights and states after some updates by gradients that are the same every time."""
    if kind == "adamw8":
        pytest.importorskip("torchao")
    model = decoder(width=256).to(CUDA, DTYPES[kind])
    choice = {"optimizer": {"kind": kind, "states": states, "update": update}, "clip_norm": "none"}
    updater = build_updater(model, TrainSettings.model_validate(choice))
    for step in range(steps):
        generator = torch.Generator(CUDA).manual_seed(step)
        gradients = [torch.randn(weight.shape, generator=generator, device=CUDA) for weight in updater.parameters]
        if update == "inside":
            inside = updater.inside(0.01)
            for weight, gradient in reversed(list(zip(updater.parameters, gradients, strict=True))):
                inside([weight], [gradient])
            assert inside.complete
        else:
            for weight, gradient in zip(updater.parameters, gradients, strict=True):
                weight.grad = gradient
            updater.step(0.01)
            updater.zero()
    found = dict(model.named_parameters()) | updater.tensors()
    found = {name: tensor.detach().cpu().clone() for name, tensor in found.items()}
    updater.close()
    return found


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(("states", "update"), [("host", "after"), ("device", "inside"), ("host", "inside")])
def test_where_states_lie_and_when_weights_change_change_no_bit(monkeypatch, kind, states, update):
    monkeypatch.setattr(module, "TILE", 4096)  # so that many pieces visit
    want = updated(kind, states="device", update="after")
    found = updated(kind, states=states, update=update)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_states_on_the_host_take_no_device_memory():
    model = torch.nn.Linear(4096, 4096, device=CUDA)  # 67 MB, its moments 134 MB
    before = torch.cuda.memory_allocated()
    choice = {"optimizer": {"kind": "adamw", "states": "host"}}
    updater = build_updater(model, TrainSettings.model_validate(choice))
    assert all(tensor.is_pinned() for name, tensor in updater.tensors().items() if name.startswith("exp"))
    assert torch.cuda.memory_allocated() - before < 2**20
    updater.close()
