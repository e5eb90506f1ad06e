"""LoRA on the plain decoder: where adapters go, what they compute, what is frozen, and how they are folded in."""

import math

import pytest
import torch
from lora_toys import ALL, TOKENS, adapted, shape_of
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from weights_toys import SHAPE, new, tied

from longspan.config import kinds
from longspan.model.decoder import Adapter, Projection
from longspan.model.families.base import PACKAGE, family_named
from longspan.model.lora import add_lora, merge_lora
from longspan.model.peft import tensor_names
from longspan.model.settings import PROJECTIONS, WHOLE_PARTS, LoraSettings
from longspan.model.weights import save
from longspan.utils.errors import ConfigError, ModelError

FAMILIES = [name for name in kinds(PACKAGE) if name != "mellum"]


def test_a_family_that_peft_reads_otherwise_is_refused() -> None:
    with pytest.raises(ConfigError, match="PEFT takes every Mellum") as caught:
        adapted(shape_of("mellum"))
    assert caught.value.code == "lora.family"


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_no_bit(family: str) -> None:
    decoder = new(shape_of(family))
    before = decoder(TOKENS)
    add_lora(decoder, ALL, 0)
    assert torch.equal(decoder(TOKENS), before)
    assert len(decoder.adapters) == 2 * 7


def test_they_depend_on_the_seed_alone() -> None:
    first, second, other = new(), new(), new()
    torch.manual_seed(5)
    add_lora(first, ALL, 1)
    add_lora(second, ALL.model_copy(update={"projections": PROJECTIONS[::-1]}), 1)
    add_lora(other, ALL, 2)
    for name, adapter in first.adapters.items():
        assert torch.equal(adapter.down, second.adapters[name].down)
        assert not torch.equal(adapter.down, other.adapters[name].down)
        assert not adapter.up.any()
        assert adapter.down.dtype == adapter.up.dtype == torch.float32
        assert adapter.scale == 5.0 / 3


def test_down_is_drawn_as_peft_draws_it() -> None:
    """Uniform within 1/sqrt(in): PEFT's kaiming_uniform with a = sqrt(5), whose variance is 1/(3 in)."""
    decoder = new()
    add_lora(decoder, LoraSettings(rank=2**11, projections=("q", "down")), 0)
    for name, adapter in decoder.adapters.items():
        width, down = 20 if name.endswith("down") else 12, adapter.down.detach()
        assert 0.99 / math.sqrt(width) < down.abs().max() <= 1 / math.sqrt(width)
        assert float(down.var()) == pytest.approx(1 / (3 * width), rel=0.05)


def plain_forward(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """(W + alpha/rank · up down) x + bias, as the paper writes it."""
    change = 5.0 / 3 * weights[f"{name}.lora.up"] @ weights[f"{name}.lora.down"]
    return functional.linear(x, weights[f"{name}.weight"] + change, weights.get(f"{name}.bias"))


@pytest.mark.parametrize("part", PROJECTIONS)
def test_gradients_are_those_of_the_formula(part: str) -> None:
    decoder = adapted().double()
    block = decoder.blocks[1]
    projection = block.get_submodule(part)
    assert isinstance(projection, Projection)
    x = torch.randn(4, projection.in_features, dtype=torch.float64, requires_grad=True)
    weights = {
        f"{part}.{name}": value.detach().clone().requires_grad_() for name, value in projection.named_parameters()
    }
    twin = x.detach().clone().requires_grad_()
    found, wanted = projection(x), plain_forward(twin, weights, part)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    for name in ("lora.down", "lora.up"):
        gradient = projection.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient, weights[f"{part}.{name}"].grad)
    torch.testing.assert_close(x.grad, twin.grad)
    assert projection.weight.grad is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("projections", [("q",), ("o", "down"), ("k", "v", "gate", "up"), PROJECTIONS])
def test_whole_model_gradients_are_those_of_weights_with_the_change_added(
    family: str, projections: tuple[str, ...]
) -> None:
    """Chain rule by hand: with G the gradient of the summed weight, d up = s G down^T and d down = s up^T G."""
    settings = LoraSettings(rank=3, alpha=5.0, projections=projections)
    decoder = adapted(shape_of(family), settings).double()
    summed = new(shape_of(family)).double()
    with torch.no_grad():
        for name, adapter in decoder.adapters.items():
            summed.get_parameter(f"{name}.weight").add_(5.0 / 3 * adapter.up @ adapter.down)
    for model in (decoder, summed):
        functional.cross_entropy(model(TOKENS)[0, :-1].double(), TOKENS[0, 1:]).backward()
    for name, adapter in decoder.adapters.items():
        gradient = summed.get_parameter(f"{name}.weight").grad
        assert gradient is not None
        torch.testing.assert_close(adapter.up.grad, 5.0 / 3 * gradient @ adapter.down.T)
        torch.testing.assert_close(adapter.down.grad, 5.0 / 3 * adapter.up.T @ gradient)
    assert {name for name, weight in decoder.named_parameters() if weight.grad is not None} == {
        f"blocks.{layer}.{part}.lora.{side}" for layer in (0, 1) for part in projections for side in ("down", "up")
    }


def test_only_what_is_named_is_trained() -> None:
    whole = {
        "embed": {"embed.weight"},
        "head": {"head.weight"},
        "norms": {"norm.weight"}
        | {f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("attention_norm", "mlp_norm", "q_norm", "k_norm")},
    }
    for also in ((), ("embed",), ("head",), ("embed", "norms"), WHOLE_PARTS):
        settings = LoraSettings(rank=2, also_train=also)
        decoder = adapted(settings=settings)
        trained = {name for name, weight in decoder.named_parameters() if weight.requires_grad}
        adapters = {f"blocks.{i}.{p}.lora.{s}" for i in (0, 1) for p in "qkvo" for s in ("down", "up")}
        assert trained == adapters.union(*(whole[part] for part in also))
        count = sum(weight.numel() for weight in decoder.parameters() if weight.requires_grad)
        assert count == settings.trained_parameters(SHAPE)
        decoder(TOKENS).sum().backward()
        assert all((weight.grad is not None) == (name in trained) for name, weight in decoder.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_same_logits(family: str) -> None:
    decoder = adapted(shape_of(family), ALL.model_copy(update={"also_train": ("norms",)}))
    before = decoder(TOKENS)
    names = set(family_named(family).names(decoder.shape))
    merge_lora(decoder)
    assert {name for name, _ in decoder.named_parameters()} == names
    assert not decoder.adapters
    assert decoder.lora_settings is None
    assert all(weight.requires_grad for weight in decoder.parameters())
    assert (decoder(TOKENS) - before).abs().max() <= 1e-5


def test_merging_rounds_once() -> None:
    decoder = adapted().to(torch.bfloat16)
    adapters = {name: (decoder.get_parameter(f"{name}.weight").clone(), a) for name, a in decoder.adapters.items()}
    merge_lora(decoder)
    for name, (weight, adapter) in adapters.items():
        exact = weight.double() + 5.0 / 3 * adapter.up.double() @ adapter.down.double()
        assert torch.equal(decoder.get_parameter(f"{name}.weight"), exact.to(torch.bfloat16))


def test_a_narrow_base_keeps_its_type() -> None:
    """A frozen base in bfloat16 with float32 adapters: outputs stay bfloat16, gradients are float32."""
    decoder = new().to(torch.bfloat16)
    add_lora(decoder, ALL, 0)
    hidden = decoder.hidden(TOKENS)
    assert hidden.dtype == torch.bfloat16
    hidden.float().sum().backward()
    up = decoder.adapters["blocks.0.down"].up
    assert up.grad is not None
    assert up.grad.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_the_format_of_peft_are_a_bijection(family: str) -> None:
    shape = shape_of(family)
    settings = LoraSettings(projections=PROJECTIONS, also_train=WHOLE_PARTS)
    names = tensor_names(settings, shape)
    assert len(set(names.values())) == len(names)
    decoder = adapted(shape, settings)
    assert set(names) == {name for name, weight in decoder.named_parameters() if weight.requires_grad}
    assert names["blocks.1.gate.lora.up"] == "base_model.model.model.layers.1.mlp.gate_proj.lora_B.weight"
    assert names["blocks.0.q.lora.down"] == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert names["embed.weight"] == "base_model.model.model.embed_tokens.weight"


def test_a_model_folder_never_drops_adapters(tmp_path: object) -> None:
    decoder = adapted()
    with pytest.raises(ModelError, match="14 adapters") as error:
        save(decoder, f"{tmp_path}/out")
    assert error.value.code == "model.adapters"
    merge_lora(decoder)
    save(decoder, f"{tmp_path}/out")


def test_adapters_are_put_on_once() -> None:
    decoder = adapted()
    with pytest.raises(ModelError) as error:
        add_lora(decoder, ALL, 0)
    assert error.value.code == "model.adapters"


def test_a_tied_head_is_trained_as_embedding() -> None:
    decoder = tied()
    with pytest.raises(ConfigError) as error:
        add_lora(decoder, LoraSettings(also_train=("head",)), 0)
    assert error.value.code == "lora.tied-head"
    assert not decoder.adapters
    assert all(weight.requires_grad for weight in decoder.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"projections": ()},
        {"projections": ("q", "q")},
        {"projections": ("qkv",)},
        {"also_train": ("embed", "embed")},
        {"also_train": ("biases",)},
        {"dropout": 0.1},
    ],
)
def test_settings_refuse(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoraSettings(**settings)  # type: ignore[arg-type]


def test_projections_are_linear_maps_for_everyone_else() -> None:
    """Names, types and state of a decoder without adapters are those of plain linear maps."""
    decoder = new()
    assert all(isinstance(decoder.blocks[0].get_submodule(name), nn.Linear) for name in PROJECTIONS)
    assert not [name for name in decoder.state_dict() if "lora" in name]
    assert not [module for module in decoder.modules() if isinstance(module, Adapter)]
