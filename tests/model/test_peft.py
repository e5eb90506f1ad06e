"""Adapters to and from PEFT: each side reads what the other writes and computes the same; the rest is refused."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_toys import ALL, TOKENS, adapted, shape_of
from safetensors.torch import load_file, save_file
from weights_toys import SCALED, assert_equal, edit, new, tied, tied_shape

from longspan.config import kinds
from longspan.model.decoder import Decoder
from longspan.model.families.base import PACKAGE
from longspan.model.lora import merge_lora
from longspan.model.peft import load_adapter, save_adapter
from longspan.model.settings import PROJECTIONS, WHOLE_PARTS, LoraSettings
from longspan.model.weights import load, save
from longspan.utils.errors import ModelError

FAMILIES = [name for name in kinds(PACKAGE) if name != "mellum"]  # which LoRA refuses
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def theirs(folder: Path, *, config: Path | None = None) -> Any:
    """The base model as transformers loads it, with the config of another file when one is given."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    known = transformers.AutoConfig.from_pretrained(config or folder)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=known, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def with_peft(model: Any, adapter: Path) -> Any:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT and of what it imports, about themselves
        return peft.PeftModel.from_pretrained(model, adapter).eval()


def peft_made(model: Any, folder: Path, **settings: Any) -> Any:
    """An adapter that PEFT made on `model` and saved, every weight of it drawn at random."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        with torch.no_grad():
            for weight in made.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.2)
        made.save_pretrained(folder)
    return made


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out = model(TOKENS % 9)  # ids that the smallest toy has too
    return out if isinstance(out, torch.Tensor) else out.logits


def assert_close(first: Any, second: Any) -> None:
    assert (logits(first) - logits(second)).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("also", [(), WHOLE_PARTS])
def test_peft_computes_what_we_wrote(tmp_path: Path, family: str, also: tuple[Any, ...]) -> None:
    base = new(shape_of(family))
    save(base, tmp_path / "base")
    decoder = adapted(shape_of(family), ALL.model_copy(update={"also_train": also}))
    if also:
        with torch.no_grad():
            for name in ("embed.weight", "norm.weight", "blocks.1.mlp_norm.weight", "head.weight"):
                decoder.get_parameter(name).mul_(1.5)
    save_adapter(decoder, tmp_path / "adapter", base=str(tmp_path / "base"))
    found = with_peft(theirs(tmp_path / "base"), tmp_path / "adapter")
    assert (logits(base) - logits(decoder)).abs().max() > 1e-2
    assert_close(found, decoder)
    again = load(tmp_path / "base")
    assert load_adapter(again, tmp_path / "adapter") == decoder.lora_settings
    assert_equal(again, decoder)
    assert [w.requires_grad for w in again.parameters()] == [w.requires_grad for w in decoder.parameters()]


def test_a_tied_embedding_stays_tied(tmp_path: Path) -> None:
    save(tied(), tmp_path / "base")
    decoder = adapted(tied_shape(), LoraSettings(rank=2, also_train=("embed",)))
    decoder.frequencies = tied().frequencies
    with torch.no_grad():
        decoder.embed.weight.mul_(1.5)
    save_adapter(decoder, tmp_path / "adapter", base=str(tmp_path / "base"))
    assert_close(with_peft(theirs(tmp_path / "base"), tmp_path / "adapter"), decoder)
    again = load(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert_equal(again, decoder)


def test_positions_travel_beside_the_adapters(tmp_path: Path) -> None:
    save(new(), tmp_path / "base")
    decoder = adapted()
    decoder.frequencies = SCALED
    save_adapter(decoder, tmp_path / "adapter", base=str(tmp_path / "base"))
    model = theirs(tmp_path / "base", config=tmp_path / "adapter" / "base_config.json")
    assert_close(with_peft(model, tmp_path / "adapter"), decoder)
    again = load(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert again.frequencies == SCALED
    save_adapter(again, tmp_path / "twice", base=str(tmp_path / "base"))
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1},
        {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "use_rslora": True},
        {"r": 2, "lora_alpha": 2, "target_modules": ["self_attn.v_proj"], "modules_to_save": ["embed_tokens", "norm"]},
        {"r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["two", "all", "embed and norms", "head"],
)
def test_we_compute_what_peft_wrote(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    save(new(shape_of(family)), tmp_path / "base")
    made = peft_made(theirs(tmp_path / "base"), tmp_path / "adapter", **settings)
    decoder = load(tmp_path / "base")
    load_adapter(decoder, tmp_path / "adapter")
    assert_close(made, decoder)
    merge_lora(decoder)
    assert_close(made, decoder)
    save(decoder, tmp_path / "merged")
    assert_close(theirs(tmp_path / "merged"), decoder)


def test_a_tied_embedding_of_peft_is_taken_when_both_ends_agree(tmp_path: Path) -> None:
    save(tied(), tmp_path / "base")
    settings = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    peft_made(theirs(tmp_path / "base"), tmp_path / "one", **settings)
    decoder = load(tmp_path / "base")
    with pytest.raises(ModelError) as error:
        load_adapter(decoder, tmp_path / "one")
    assert error.value.code == "model.tied"
    made = peft_made(theirs(tmp_path / "base"), tmp_path / "both", **settings, ensure_weight_tying=True)
    load_adapter(decoder, tmp_path / "both")
    assert_close(made, decoder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter folder of our own, to be spoilt."""
    settings = LoraSettings(rank=3, alpha=5.0, projections=PROJECTIONS, also_train=("norms",))
    save_adapter(adapted(settings=settings), tmp_path / "adapter", base="base")
    return tmp_path / "adapter"


def refused(folder: Path, code: str, decoder: Decoder | None = None) -> ModelError:
    decoder = decoder or new()
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    with pytest.raises(ModelError) as error:
        load_adapter(decoder, folder)
    assert error.value.code == code
    assert error.value.fix
    assert not decoder.adapters
    assert all(torch.equal(weight, before[name]) for name, weight in decoder.state_dict().items())
    return error.value


CONFIGS: list[dict[str, Any]] = [
    {"peft_type": "IA3"},
    {"peft_type": None},
    {"task_type": "SEQ_CLS"},
    {"bias": "lora_only"},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": ["pissa"]},
    {"use_dora": True},
    {"lora_bias": True},
    {"fan_in_fan_out": True},
    {"rank_pattern": {"q_proj": 8}},
    {"alpha_pattern": {"q_proj": 8}},
    {"layers_to_transform": [0]},
    {"layers_to_transform": 0},
    {"layer_replication": [[0, 2]]},
    {"trainable_token_indices": [1]},
    {"some_method_of_2027": {"strength": 3}},
    {"r": 0},
    {"r": "8"},
    {"r": True},
    {"r": 2**40},
    {"lora_alpha": -1},
    {"lora_alpha": 1e30},
    {"lora_alpha": None},
    {"target_modules": None},
    {"target_modules": ".*"},
    {"target_modules": []},
    {"target_modules": [""]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "experts"]},
    {"target_modules": ["layers.0.self_attn.q_proj"]},
    {"modules_to_save": ["classifier"]},
    {"modules_to_save": ["input_layernorm"]},
    {"modules_to_save": ["q_proj"]},
    {"modules_to_save": "norm"},
]


@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_more_than_plain_lora_is_refused_by_name(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / CONFIG, lambda table: table.update(change))
    assert next(iter(change)) in refused(folder, "model.adapter-config").where


def test_a_tied_head_alone_is_refused(folder: Path) -> None:
    edit(folder / CONFIG, lambda table: table.update(modules_to_save=["lm_head"]))
    refused(folder, "model.adapter-config", tied())


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def test_tensors_must_be_those_of_the_config(folder: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    whole = load_file(folder / TENSORS)
    spoil(folder, lambda tensors: tensors.pop(name))
    assert name in refused(folder, "model.missing-tensor").what
    spoil(folder, lambda tensors: tensors.update(whole, extra=torch.zeros(1)))
    assert "extra" in refused(folder, "model.extra-tensor").what
    save_file(whole | {name: torch.zeros(4, 12)}, folder / TENSORS)
    assert "[4, 12]" in refused(folder, "model.shape").what
    save_file(whole, folder / TENSORS)
    load_adapter(new(), folder)


def test_a_folder_must_be_whole_and_plain(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    refused(folder, "model.pickle")
    (folder / "adapter_model.bin").unlink()
    refused(folder, "model.missing")
    (folder / TENSORS).write_bytes(b"x" * 20)
    refused(folder, "model.damaged")
    (folder / CONFIG).unlink()
    refused(folder, "model.config")
    refused(folder / "nowhere", "model.missing")


def test_positions_of_another_model_are_refused(folder: Path) -> None:
    edit(folder / "base_config.json", lambda table: table.update(hidden_size=16))
    refused(folder, "model.shape")


def test_nothing_to_save_and_no_place_to_save_it(folder: Path) -> None:
    with pytest.raises(ModelError) as error:
        save_adapter(new(), folder.parent / "out", base="base")
    assert error.value.code == "model.no-adapters"
    with pytest.raises(ModelError) as error:
        save_adapter(adapted(), folder, base="base")
    assert error.value.code == "model.exists"
