"""The check of a written folder: all engines agree on what longspan writes, and each fault is told by its engine."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longspan import cli
from longspan.model.decoder import Decoder
from longspan.model.weights import load
from longspan.pipeline.exportcheck import check_folder, known_limits, require_alike, save_checked, transformers_reading
from longspan.pipeline.proof import logit_differences
from longspan.pipeline.recipe import ExportChoice
from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.rope.methods.longrope2 import Longrope2
from longspan.rope.methods.proportional import Proportional
from longspan.rope.methods.su import Su
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.rope.rotate import served_omegas
from longspan.shape import ModelShape, OwnPositions
from longspan.utils.errors import ConfigError, ModelError

BASE = RopeBase(rotary_dim=16, theta=1e4, trained_length=64)
MIXED = Su(short_factors=tuple(1 + i / 9 for i in range(8)), long_factors=tuple(1.0 + i for i in range(8)), factor=8)
METHODS = [Yarn(), ThetaLaw(), Longrope2(excess=0.2), MIXED, Proportional(share=0.5)]


def decoder_of(frequencies: Frequencies) -> Decoder:
    shape = ModelShape(
        family="llama",
        layers=1,
        width=32,
        heads=2,
        kv_heads=1,
        head_dim=16,
        mlp_width=48,
        vocabulary=61,
        norm_epsilon=1e-5,
        tied=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None,),
        trained_length=64,
    )
    decoder = Decoder(shape, frequencies)
    decoder.initialise(1)
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.mul_(20) if weight.ndim > 1 else None
    return decoder


def written(folder: Path, method, *, mixed_window: bool = False, warnings: list[str] | None = None) -> Decoder:
    decoder = decoder_of(method.frequencies(BASE, 512))
    told = [] if warnings is None else warnings
    save_checked(decoder, folder, ExportChoice(mixed_window=mixed_window), warn=told.append)
    return decoder


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_every_engine_agrees_on_what_is_written(tmp_path, method):
    written(tmp_path / "out", method)
    rows, _ = check_folder(tmp_path / "out")
    assert {row.engine.split()[0] for row in rows} == {"transformers", "vLLM", "SGLang"}
    assert all(row.same and row.difference == 0 and row.told == "" for row in rows)
    assert {row.length for row in rows} == ({512} if method.kind == "theta_law" else {64, 512})


def test_a_mixed_window_comes_with_its_warning_and_is_proven(tmp_path):
    warnings: list[str] = []
    decoder = written(tmp_path / "out", MIXED, mixed_window=True, warnings=warnings)
    assert any("KV cache is invalid" in warning for warning in warnings)
    short, long = (transformers_reading(tmp_path / "out", length) for length in (64, 65))
    assert torch.equal(short.omegas, served_omegas(decoder.frequencies.window(64)))
    assert torch.equal(long.omegas, served_omegas(decoder.frequencies))
    assert not torch.equal(short.omegas, long.omegas)
    rows, _ = check_folder(tmp_path / "out")
    assert {(row.engine.split()[0], row.length) for row in rows if not row.same} == set()
    found = logit_differences(tmp_path / "out", decoder, torch.arange(40) % 61)
    assert found["export_max_logit_diff"] < 1e-4
    assert load(tmp_path / "out").frequencies.short_factors is not None


def test_without_the_request_there_is_one_set(tmp_path):
    warnings: list[str] = []
    decoder = written(tmp_path / "out", MIXED, warnings=warnings)
    assert warnings == []
    assert decoder.frequencies.short_factors is None
    assert torch.equal(transformers_reading(tmp_path / "out", 10).omegas, served_omegas(decoder.frequencies))


def test_a_window_found_by_a_search_is_written(tmp_path):
    method = Longrope2(excess=0.2, attention_factor=1.1)
    frequencies = method.frequencies(BASE, 512)
    short = tuple(factor**0.4 for factor in frequencies.factors)
    rope = {"kind": "su", "short_factors": short, "long_factors": frequencies.factors, "attention_factor": 1.1}
    (tmp_path / "found.json").write_text(json.dumps({"rope": rope}))
    export = ExportChoice(mixed_window=True, window_result=tmp_path / "found.json")
    warnings: list[str] = []
    decoder = decoder_of(frequencies)
    save_checked(decoder, tmp_path / "out", export, warn=warnings.append)
    assert decoder.frequencies.short_factors == short
    back = load(tmp_path / "out").frequencies
    assert back.short_factors == pytest.approx(short, rel=1e-7)
    assert back.factors == pytest.approx(frequencies.factors, rel=1e-7)
    assert any("KV cache is invalid" in warning for warning in warnings)
    for other in (rope | {"long_factors": [2.0] * 8}, {"kind": "yarn"}):
        (tmp_path / "found.json").write_text(json.dumps({"rope": other}))
        with pytest.raises(ConfigError, match="no original window of this model") as caught:
            save_checked(decoder_of(frequencies), tmp_path / "no", export, warn=warnings.append)
        assert caught.value.code == "export.window"
    with pytest.raises(ValueError, match="only with mixed_window = true"):
        ExportChoice(window_result=tmp_path / "found.json")


FAULTS = {
    "no mscale": (lambda rope: [rope.pop("long_mscale"), rope.pop("short_mscale")], "vLLM", "another attention factor"),
    "another long factor": (lambda rope: rope["long_factor"].__setitem__(3, 9.0), "longspan itself", ""),
    "a kind of its own": (lambda rope: rope.update(rope_type="mrope"), None, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_an_engine_reads_otherwise_is_refused_by_name(tmp_path, fault):
    change, engine, told = FAULTS[fault]
    decoder = written(tmp_path / "out", Longrope2(attention_factor=1.01))

    def both(config):
        change(config["rope_scaling"])
        config["rope_parameters"] = config["rope_scaling"]

    edit(tmp_path / "out", both)
    with pytest.raises(ModelError) as caught:
        require_alike(tmp_path / "out", decoder.frequencies)
    if engine is None:
        assert caught.value.code == "model.rope-type"
    else:
        assert caught.value.code == "export.engine"
        assert engine in caught.value.what
        assert told in caught.value.what


def test_a_mixed_window_of_another_length_is_refused(tmp_path):
    decoder = written(tmp_path / "out", MIXED, mixed_window=True)
    edit(tmp_path / "out", lambda config: config.update(original_max_position_embeddings=32))
    with pytest.raises(ModelError, match="longspan itself would not rotate with the frequencies of training"):
        require_alike(tmp_path / "out", decoder.frequencies, mixed_window=True)


def test_yarn_as_others_write_it_is_shown_with_its_difference(tmp_path, capsys):
    written(tmp_path / "out", Yarn())
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
            "attention_factor": 1.0}  # fmt: skip
    edit(tmp_path / "out", lambda config: config.update(rope_scaling=rope, rope_parameters=rope))
    assert cli.main(["export", "--check", str(tmp_path / "out"), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["status"] == "unlike"
    wrong = {row["engine"] for row in answer["engines"] if not row["same"]}
    assert wrong == {"SGLang"}
    assert all(row["told"] == "another attention factor" for row in answer["engines"] if not row["same"])
    assert answer["limits"] == []  # they are those of longrope


def test_the_command_says_when_all_is_well(tmp_path, capsys):
    written(tmp_path / "out", Yarn())
    (tmp_path / "out" / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    edit(tmp_path / "out", lambda config: config.update(use_sliding_window=True))
    assert cli.main(["export", "--check", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "transformers" in told
    assert "caps texts at 64 tokens" in told
    assert "use_sliding_window is on" in told
    assert "--max-model-len 512" in told
    assert "SGLang rotates position 64 as position 0" in told
    assert cli.main(["export", "--check"]) == 2


def test_without_transformers_the_others_are_still_asked(tmp_path, monkeypatch):
    written(tmp_path / "out", Yarn())
    monkeypatch.setattr("longspan.pipeline.exportcheck.can_prove", lambda: False)
    rows, limits = check_folder(tmp_path / "out")
    assert {row.engine for row in rows} == {"vLLM", "SGLang"}
    assert "transformers is not installed, and so not asked" in limits
    assert known_limits(tmp_path / "out") == limits


def hybrid_of(frequencies: Frequencies) -> Decoder:
    """Full attention between two windows of 7 keys, which turn by a theta of 50, twice as slow."""
    local = OwnPositions(theta=50.0, factor=2.0)
    plain = decoder_of(frequencies).shape
    shape = replace(
        plain, family="mellum", layers=3, qk_norm=True, windows=(7, None, 7), own_positions=(local, None, local)
    )
    decoder = Decoder(shape, frequencies)
    decoder.initialise(1)
    return decoder


@pytest.mark.parametrize("method", [Longrope2(excess=0.2), ThetaLaw()])
def test_settings_by_layer_type(tmp_path, capsys, method):
    """The stretched layers as elsewhere, the others as they were: transformers computes the same, and vLLM is named."""
    decoder, warnings = hybrid_of(method.frequencies(BASE, 512)), []
    save_checked(decoder, tmp_path / "out", ExportChoice(), warn=warnings.append)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}
    assert not {"rope_scaling", "rope_theta"} & config.keys()
    again = load(tmp_path / "out")
    assert again.shape == replace(decoder.shape, trained_length=512)
    assert torch.equal(served_omegas(again.frequencies), served_omegas(decoder.frequencies))
    tokens = torch.randint(0, 61, (40,), generator=torch.Generator().manual_seed(0))
    assert logit_differences(tmp_path / "out", decoder, tokens)["export_max_logit_diff"] < 1e-4
    assert any("vLLM stops when it loads a Mellum" in line for line in warnings)
    local = transformers_reading(tmp_path / "out", 512, layers="sliding_attention")
    assert local.omegas.tolist() == pytest.approx([50 ** (-i / 8) / 2 for i in range(8)], rel=3e-7)
    rows, limits = check_folder(tmp_path / "out")
    assert limits == warnings
    assert {(row.engine.split()[0], row.layers) for row in rows if row.same} == {
        (engine, layers) for engine in ("transformers", "SGLang") for layers in ("full_attention", "sliding_attention")
    }
    assert {(row.engine, row.told) for row in rows if not row.same} == {
        ("vLLM", "vLLM stops when it loads a Mellum without layers of experts")
    }
    assert cli.main(["export", "--check", str(tmp_path / "out")]) == 1  # an engine that does not serve it is no success
    assert "sliding" in capsys.readouterr().out
    assert not any("max-model-len" in line for line in limits)  # vLLM has no say here


def test_other_families_have_no_words_for_layer_types(tmp_path):
    decoder = hybrid_of(Yarn().frequencies(BASE, 512))
    decoder.shape = replace(decoder.shape, family="qwen3")
    with pytest.raises(ModelError, match="cannot say what this decoder is"):
        save_checked(decoder, tmp_path / "out", ExportChoice(), warn=print)
    decoder.shape = replace(
        decoder.shape, family="mellum", own_positions=()
    )  # a window turns by a theta of its own there
    with pytest.raises(ModelError, match="no rotary settings for sliding_attention"):
        save_checked(decoder, tmp_path / "out", ExportChoice(), warn=print)


READ_BACK = """
import json, sys, torch, transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
found = {"version": transformers.__version__}
for folder in sys.argv[1:]:
    for length in (10, 64, 65, 512):
        rotary = LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(folder))
        rotary(torch.zeros(1), torch.tensor([[length - 1]]))
        found[f"{folder} {length}"] = [rotary.inv_freq.tolist(), rotary.attention_scaling]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "beside"),
    [("4.57.6", ["tokenizers<0.23", "huggingface_hub<1"]), ("5.0.0", ["tokenizers<0.23", "huggingface_hub>=1.3,<2"])],
)
def test_another_transformers_reads_the_same(tmp_path, version, beside):
    """Its own rotary module, in a folder of packages of its own, rebuilds every written set to the last bit."""
    packages = tmp_path / "packages"
    wanted = [f"transformers=={version}", *beside]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), *wanted], check=True)
    decoders = {}
    for method in METHODS:
        for mixed in (False, True) if method is MIXED else (False,):
            folder = tmp_path / f"{method.kind}-{mixed}"
            decoders[folder] = written(folder, method, mixed_window=mixed)
    command = [sys.executable, "-c", READ_BACK, *map(str, decoders)]
    done = subprocess.run(command, env={"PYTHONPATH": str(packages)}, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == version
    for folder, decoder in decoders.items():
        for length in (10, 64, 65, 512):
            omegas, scale = found[f"{folder} {length}"]
            wanted_omegas = served_omegas(decoder.frequencies.window(length))
            assert torch.equal(torch.tensor(omegas, dtype=torch.float64), wanted_omegas), (folder, length)
            assert scale == decoder.frequencies.attention_factor
