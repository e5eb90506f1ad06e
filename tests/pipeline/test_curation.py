"""`longspan data`: filters, stores and stages of one recipe, by the same command until it is done."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from longspan import cli
from longspan.data.curate import curated_documents
from longspan.data.tokenize import train_tokenizer
from longspan.model.decoder import Decoder
from longspan.pipeline import scoring, stages
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.scoring import perplexities
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape
from longspan.utils.errors import ConfigError, DataError, Interrupted

FILTERS = '[[data.curate.filters]]\nkind = "length"\nleast_characters = 50\n[[data.curate.filters]]\nkind = "minhash"\n'


@pytest.fixture
def job(micro: Path) -> Path:
    """The micro job with filters, and with documents for them: a short one and a copy of another page."""
    texts = micro.parent / "texts"
    (texts / "short.txt").write_text("Short.")
    (texts / "bad.txt").write_bytes(b"\xff\xfe")
    (texts / "zcopy.txt").write_text((texts / "page-1.txt").read_text())
    text = micro.read_text().replace("[[data.sources]]", f"{FILTERS}\n[[data.sources]]", 1)
    micro.write_text(text.replace("[data]\n", "[data]\ncurate.part_bytes = 4_000\n", 1))
    return micro


def read(path: Path, **changes: Any) -> Recipe:
    value = Recipe.read(path).plain()
    for key, change in changes.items():
        value[key] = change
    return Recipe.from_plain(value, folder=path.parent, where="test")


def told_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_data_prepares_and_tells(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", str(job), "--json"]) == cli.OK
    found = told_json(capsys)
    assert found["documents"] == 3
    assert found["held_out_documents"] == 1
    curated = found["curation"]
    assert {kind: {r: f["first"] for r, f in fates.items()} for kind, fates in curated["dropped"].items()} == {
        "length": {"too-short": ["short.txt"]},
        "minhash": {"near-duplicate": ["zcopy.txt"]},
    }
    assert curated["set_aside"]["invalid-utf8"]["first"] == ["bad.txt"]
    assert [stage["length"] for stage in found["stages"]] == [64, 128]
    assert all(0 < stage["attention_share"] <= 1 for stage in found["stages"])
    run = job.parent / "run"
    kept = [
        document.id
        for path in sorted((run / "curated" / "documents").iterdir())
        for document in curated_documents(path)
    ]
    assert kept == ["page-0.txt", "page-1.txt", "page-2.txt", "page-3.txt"]
    before = {path: path.stat().st_mtime_ns for path in (run / "curated").rglob("*")}
    assert cli.main(["data", str(job), "--json"]) == cli.OK
    assert told_json(capsys) == found
    assert {path: path.stat().st_mtime_ns for path in (run / "curated").rglob("*")} == before
    (job.parent / "texts" / "new.txt").write_text("Only a little more.")
    assert cli.main(["data", str(job), "--json"]) == cli.OK
    assert told_json(capsys)["curation"]["dropped"]["length"]["too-short"]["documents"] == 2


def test_the_whole_job_trains_on_what_is_kept(job: Path) -> None:
    value = json.loads(json.dumps(Recipe.read(job).plain()))
    words = (job.parent / "texts" / "page-0.txt").read_text().split()
    lines = [json.dumps({"text": " ".join(words[at : at + 20])}) for at in range(0, 1_000, 20)]
    (job.parent / "texts" / "lines.jsonl").write_text("\n".join(lines))
    value["stages"][0]["mix"] = [{"share": 1.0, "documents": ["lines*"]}]
    value["stages"][0]["curriculum"] = {"kind": "buckets", "shortest": 16, "cycles": 2}
    value["stages"][1] |= {"mix": [{"share": 0.5, "documents": ["page-0*"]}, {"share": 0.5, "least_tokens": 100}]}
    recipe = Recipe.from_plain(value, folder=job.parent, where="test")
    summary = stages.run(recipe)
    metrics = [json.loads(line) for line in (job.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    lengths = [line["length"] for line in metrics if line["stage"] == 0]
    assert len({*lengths}) > 1, "a step has the length of its bucket"
    assert lengths[0] == max(lengths), "the longest first"
    assert all(line["targets"] == 128 for line in metrics if line["stage"] == 0)
    page = (job.parent / "run" / "report.html").read_text()
    assert "near-duplicate" in page
    assert "attention costs" in page
    assert "curate" in summary["phases"]


def test_a_part_as_an_executor_calls_it(job: Path) -> None:
    recipe = Recipe.read(job)

    def stop() -> bool:
        return (job.parent / "run" / "curated" / "plan.json").exists()

    with pytest.raises(Interrupted):
        stages.data(recipe, stop=stop)
    run = job.parent / "run"
    words = [sys.executable, "-m", "longspan", "part", str(run / "recipe.json"), "0", "2"]
    root = Path(__file__).parents[2]
    assert subprocess.run(words, cwd=root, check=False).returncode == 0
    assert (run / "curated" / "round-0" / "00002.json").exists()
    assert stages.data(recipe)["documents"] == 3
    assert cli.main(["part", "recipe.toml", "zero", "1"]) == cli.MISTAKE


def test_parts_that_fail_are_told(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.read(job)
    value = recipe.plain()
    value["data"]["curate"]["part_bytes"] = 20_000
    value["data"]["curate"]["executor"] = {"kind": "local", "workers": 2}
    several = Recipe.from_plain(value, folder=job.parent, where="test")
    executor = type(several.data.curate.executor)  # type: ignore[union-attr]
    monkeypatch.setattr(executor, "require", lambda self: None)
    monkeypatch.setattr(executor, "run", lambda self, tasks: None)
    with pytest.raises(DataError) as error:
        stages.data(several)
    assert error.value.code == "curate.part-failed"

    def in_turn(self: Any, tasks: Any) -> None:
        for number in tasks.numbers:
            subprocess.run([*tasks.command, str(number)], check=True, cwd=Path(__file__).parents[2])

    def failing(self: Any, tasks: Any) -> None:
        raise DataError("curate.part-failed", "told by the executor")

    monkeypatch.setattr(executor, "run", failing)
    with pytest.raises(DataError, match="told by the executor"):
        stages.data(several)
    monkeypatch.setattr(executor, "run", in_turn)
    assert stages.data(several)["documents"] == 3


def test_dependency_needs_a_trained_model(job: Path) -> None:
    value = Recipe.read(job).plain()
    value["data"]["curate"]["filters"] = [{"kind": "dependency"}]
    with pytest.raises(ConfigError) as error:
        stages.data(Recipe.from_plain(value, folder=job.parent, where="test"))
    assert error.value.code == "curate.no-model"


def tiny() -> Decoder:
    shape = ModelShape(
        family="llama",
        layers=1,
        width=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_width=32,
        vocabulary=50,
        norm_epsilon=1e-5,
        tied=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None,),
        trained_length=64,
    )
    decoder = Decoder(shape, Default().frequencies(RopeBase(rotary_dim=8, theta=1e4, trained_length=64), 64))
    decoder.initialise(0)
    return decoder.eval()


def test_perplexities_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PASS_TOKENS", 60)
    decoder, rng = tiny(), np.random.default_rng(0)
    asked = [(rng.integers(0, 50, size=c), rng.integers(0, 50, size=8)) for c in (0, 8, 8, 0, 8, 8, 8, 8, 8, 3)]
    found = perplexities(decoder, asked)
    for value, (context, piece) in zip(found, asked, strict=True):
        ids = torch.tensor(np.concatenate([context, piece]))[None]
        with torch.no_grad():
            shares = torch.log_softmax(decoder(ids)[0].double(), dim=-1)
        losses = [-float(shares[at - 1, ids[0, at]]) for at in range(len(context) + 1, len(context) + 8)]
        assert value == pytest.approx(math.exp(sum(losses) / 7), rel=1e-5)


def test_a_model_scores_documents(job: Path, tmp_path: Path) -> None:
    """The filter through the command line, with the laptop model of the examples."""
    value = Recipe.read(job).plain()
    model = Path(__file__).parents[2] / "examples" / "laptop-base"
    entry = {"kind": "dependency", "model": str(model), "chunk_tokens": 16, "pairs": 6, "chunks": 8}
    value["data"]["curate"]["filters"] = [entry | {"least_score": 0.0}]
    assert stages.data(Recipe.from_plain(value, folder=job.parent, where="test"))["documents"] == 5
    value["data"]["curate"]["filters"] = [entry | {"least_score": 10.0}]
    with pytest.raises(DataError) as error:
        stages.data(Recipe.from_plain(value, folder=job.parent, where="test"))
    assert error.value.code == "curate.nothing-left"


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_conversations_in_a_job(micro: Path) -> None:
    talk = json.dumps({"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]})

    value = Recipe.read(micro).plain()
    (micro.parent / "talks.jsonl").write_text("\n".join(talk for _ in range(27)))
    value["data"]["sources"].append(
        {"path": str(micro.parent / "talks.jsonl"), "documents": "chats", "name": "chat", "header": "", "files": ["*"]}
    )
    value["stages"] = [
        value["stages"][1] | {"mix": [{"share": 0.5}, {"share": 0.5, "documents": ["chat/*"], "answers": True}]}
    ]
    with pytest.raises(DataError) as error:
        stages.data(Recipe.from_plain(value, folder=micro.parent, where="test"))
    assert error.value.code == "chat.no-template"
    tokenizer = train_tokenizer([(micro.parent / "texts" / "page-0.txt").read_text()], vocabulary=300)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    (micro.parent / "own").mkdir()
    tokenizer.save(str(micro.parent / "own" / "tokenizer.json"))
    (micro.parent / "own" / "tokenizer_config.json").write_text("{}")
    (micro.parent / "own" / "chat_template.jinja").write_text(CHATML)
    value["model"]["new"]["vocabulary"] = 310
    value["data"]["tokenizer"] = str(micro.parent / "own")
    value["eval"] = {"tasks": []}
    stages.train(Recipe.from_plain(value, folder=micro.parent, where="test"))
    metrics = [json.loads(line) for line in (micro.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 4
    assert all(0 < line["targets"] < 256 for line in metrics), "only answers are learnt of half of the rows"
    assert json.loads((micro.parent / "run" / "tokenizer_config.json").read_text())["chat_template"] == CHATML
