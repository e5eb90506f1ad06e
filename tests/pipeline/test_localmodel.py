"""A model folder answers prompts: token for token as transformers does, by chance as the formula says."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

from longspan import cli
from longspan.data.tokenize import train_tokenizer
from longspan.model.decoder import Decoder
from longspan.model.weights import save
from longspan.pipeline.localmodel import LocalModel, drawn
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT = "the river ran past an old mill"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([PROMPT + " where seven grey stones stood and children sang " * 20], vocabulary=290)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    shape = ModelShape(
        family="llama",
        layers=2,
        width=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        vocabulary=292,
        norm_epsilon=1e-5,
        tied=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None, None),
        trained_length=96,
    )
    decoder = Decoder(shape, Default().frequencies(RopeBase(rotary_dim=8, theta=10_000.0, trained_length=96), 96))
    decoder.initialise(3)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim == 2:
                weight.mul_(6.0)  # so that one token stands out
    save(decoder, path)
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML, "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_greedy_answers_are_those_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    mine = LocalModel(folder, most_tokens=24, temperature=0.0, gpu=False)
    for prompt, prefix in ((PROMPT, ""), ("seven stones", ""), (PROMPT, "children sang")):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text + prefix, add_special_tokens=False, return_tensors="pt").input_ids
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        most = min(24, 96 - ids.shape[1])
        said = model.generate(ids, max_new_tokens=most, do_sample=False, eos_token_id=end, pad_token_id=end)
        wanted = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        assert mine.ask(prompt, prefix) == wanted
        assert wanted


def test_an_answer_ends_where_the_window_does(folder: Path) -> None:
    model = LocalModel(folder, temperature=0.0, gpu=False)
    assert model.ask("river " * 200) == ""
    assert model.ask(PROMPT)


def test_the_same_seed_gives_the_same_answers_and_each_try_another(folder: Path) -> None:
    one, two, other = (LocalModel(folder, seed=seed, most_tokens=12, gpu=False) for seed in (1, 1, 2))
    first, second = [one.ask(PROMPT) for _ in range(2)], [two.ask(PROMPT) for _ in range(2)]
    assert first == second
    assert first[0] != first[1]
    assert other.ask(PROMPT) not in first


def test_tokens_are_drawn_from_the_nucleus() -> None:
    shares = torch.tensor([0.5, 0.25, 0.15, 0.1])
    generator = torch.Generator().manual_seed(0)
    found = Counter(drawn(shares.log(), generator, temperature=1.0, top_p=0.7) for _ in range(3_000))
    assert set(found) == {0, 1}, "0.5 is less than 0.7, with 0.25 it is more"
    assert found[0] / 3_000 == pytest.approx(2 / 3, abs=0.03)
    cold = Counter(drawn(shares.log(), generator, temperature=0.5, top_p=1.0) for _ in range(3_000))
    squares = shares**2 / (shares**2).sum()
    assert all(cold[token] / 3_000 == pytest.approx(float(squares[token]), abs=0.03) for token in range(4))
    assert drawn(shares, generator, temperature=0.0, top_p=0.5) == 0


def test_a_folder_writes_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model plans nothing and ends nothing, so every item is given up, with a reason."""
    (tmp_path / "i.jsonl").write_text('{"id": "a", "instruction": "Tell of rivers."}\n')
    words = ["write", str(tmp_path / "i.jsonl"), "--to", str(tmp_path / "t.jsonl"), "--folder", str(folder), "--json"]
    assert cli.main(words) == cli.OK
    assert json.loads(capsys.readouterr().out)["answers"] == {"written": 0, "no-plan": 1}
    assert cli.main([*words, "--by", "self_lengthen"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["answers"] == {"draft-unclean": 1}
