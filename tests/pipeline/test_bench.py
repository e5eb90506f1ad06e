"""A measurement on the CPU: its line, its picture, its refusals; and the peers' lines have the same keys."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from longspan import cli
from longspan.attention.schemes.local import Local
from longspan.pipeline import bench, benchline
from longspan.pipeline.benchparts import Skipped, random_batch, random_decoder
from longspan.pipeline.benchsettings import BenchSettings
from longspan.plan.shapes import named_shape
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.utils.errors import ConfigError, LongspanError


def measured(**changes: Any) -> dict[str, Any]:
    settings = {"shape": "tiny", "tokens": 96, "device": "cpu", "warmup_tokens": 32, "tile": 32, "keep": "attention"}
    return bench.bench_engine(BenchSettings(**{**settings, **changes}), command="the command")


def test_line_has_every_key_and_true_numbers() -> None:
    line = measured(steps=2, commit="abc")
    assert set(benchline.KEYS) <= line.keys()
    assert (line["name"], line["shape"], line["tokens"], line["layers"]) == ("longspan", "tiny", 96, 2)
    assert (line["keep"], line["segment"], line["tile_tokens"]) == ("attention", 1, 32)
    assert line["tokens_per_second"] == pytest.approx(96 / line["step_seconds"])
    assert len(line["losses"]) == len(line["all_step_seconds"]) == 2
    assert line["weight_and_gradient_bytes"] == 2 * 4 * named_shape("tiny").parameters
    assert line["command"] == "the command"
    assert line["commit"] == "abc"
    assert line["versions"]["torch"] == torch.__version__
    assert line["causal_mfu"] is None  # nobody knows the peak of this CPU
    assert line["skipped_attention"] is False
    json.dumps(line, allow_nan=False)


@pytest.mark.parametrize("keep", ["attention", "inputs", "everything"])
def test_every_policy_runs_and_finds_the_same_loss(keep: str) -> None:
    tile = {"tile": None} if keep == "everything" else {}
    assert measured(keep=keep, **tile)["losses"][0] == pytest.approx(measured()["losses"][0], rel=1e-5)


def test_rows_are_documents_of_their_own() -> None:
    line = measured(rows=3)
    assert line["rows"] == 3
    assert line["losses"][0] != measured()["losses"][0]


def test_attention_can_be_skipped_and_is_labelled() -> None:
    line = measured(skip_attention_compute=True, keep="auto")
    assert line["skipped_attention"] is True
    assert "skipped" in line["name"]
    assert line["keep"] == "attention"
    assert line["causal_mfu"] is line["hfu"] is None


@pytest.mark.parametrize("runs", [((0, 6),), ((0, 4), (4, 6))])
def test_skipped_attention_has_the_shapes_of_attention(runs: tuple[tuple[int, int], ...]) -> None:
    q, k = torch.ones(4, 6, 8), torch.ones(2, 6, 8)
    scheme = Local(kernel=Skipped())
    o, lse = scheme.forward(q, k, k, runs=runs, window=None)
    assert (o.shape, lse.shape, lse.dtype) == (q.shape, (4, 6), torch.float32)
    dq, dk, dv = scheme.backward(q, q, k, k, o, lse, runs=runs, window=None)
    assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, k.shape)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adamw"}, {"optimizer": "adamw", "update": "inside"}, {"optimizer": "adamw", "states": "host"}],
)
def test_updates_change_the_loss(changes: dict[str, Any]) -> None:
    losses = measured(steps=3, **changes)["losses"]
    assert losses[2] < losses[1] < losses[0]


def test_adapters_are_the_only_ones_with_gradients() -> None:
    line = measured(lora=2)
    ends = {"q": 64 + 64, "k": 64 + 32, "v": 64 + 32, "o": 64 + 64}
    adapters = 2 * 2 * sum(ends.values())
    assert line["weight_and_gradient_bytes"] == 4 * (named_shape("tiny").parameters + 2 * adapters)


def test_results_and_timeline_are_written(tmp_path: Path) -> None:
    results, picture = tmp_path / "lines.jsonl", tmp_path / "memory.svg"
    first = measured(results=results, timeline=picture)
    second = measured(results=results)
    assert [json.loads(text) for text in results.read_text().splitlines()] == [first, second]
    for phase in ("forward", "loss", "backward"):
        assert phase in picture.read_text()


def test_a_model_folder_gives_its_shape(tmp_path: Path) -> None:
    from longspan.model.weights import save

    shape = named_shape("tiny", layers=3)
    base = RopeBase(rotary_dim=16, theta=1e4, trained_length=512)
    decoder = random_decoder(
        shape, Default().frequencies(base, 512), device=torch.device("cpu"), dtype=torch.float32, seed=0
    )
    save(decoder, tmp_path / "model")
    assert measured(shape=str(tmp_path / "model"))["layers"] == 3
    assert measured(shape=str(tmp_path / "model"), layers=1)["layers"] == 1


def test_random_weights_follow_the_seed_and_look_like_a_fresh_model() -> None:
    shape = named_shape("tiny")
    frequencies = Default().frequencies(RopeBase(rotary_dim=16, theta=1e4, trained_length=512), 512)
    one, again, other = (
        random_decoder(shape, frequencies, device=torch.device("cpu"), dtype=torch.bfloat16, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.embed.weight, again.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)
    assert one.embed.weight.dtype == torch.bfloat16
    assert float(one.embed.weight.detach().float().std()) == pytest.approx(0.02, rel=0.05)
    assert bool((one.norm.weight == 1).all())


def test_random_batch_has_one_target_less_than_tokens_a_row() -> None:
    batch = random_batch(2, 5, vocabulary=257, device=torch.device("cpu"), seed=0)
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert batch.weights.tolist() == [[1, 1, 1, 1, 0]] * 2
    assert batch.spans == ((0, 5), (0, 5))
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_what_does_not_fit_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "random_decoder", lambda *_, **__: pytest.fail("weights were made"))
    with pytest.raises(LongspanError, match=r"tokens do not fit: the nearest way .* device memory") as error:
        measured(shape="llama3-8b", tokens=2**22, tile=None, keep="auto", device_gib=16.0)
    assert error.value.code == "plan.memory"
    assert "LoRA" in error.value.fix


def test_the_plan_is_told_first() -> None:
    told: list[str] = []
    bench.bench_engine(BenchSettings(shape="tiny", tokens=64, device="cpu"), command="", tell=told.append)
    assert told[0].startswith("plan: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 10, "rows": 3}, "no multiple of rows"),
        ({"update": "inside"}, "needs an optimizer"),
        ({"keep": "everything", "skip_attention_compute": True}, "neither skips attention"),
        ({"keep": "everything", "optimizer": "adamw", "update": "inside"}, "neither skips attention"),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        BenchSettings(**changes)


def test_an_optimizer_says_which_weights_it_needs() -> None:
    with pytest.raises(ConfigError, match="adamw needs float32 weights"):
        measured(optimizer="adamw", weights="bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    with pytest.raises(ConfigError, match="no usable GPU"):
        measured(device="cuda")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "engine", "--shape", "tiny", "--tokens", "64", "--device", "cpu"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["command"] == "longspan " + " ".join(words)
    assert shown.err.startswith("plan: ")
    assert cli.main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verb"], answer["status"], answer["tokens"]) == ("bench", "ok", 64)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bench"], "longspan bench engine"),
        (["bench", "engine", "--tokns", "5"], "did you mean --tokens?"),
        (["bench", "engine", "--shape", "lama3-8b"], "did you mean 'llama3-8b'?"),
        (["bench", "engine", "--tokens", "10", "--rows", "3"], "no multiple of rows"),
    ],
)
def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert cli.main(words) == 2
    assert told in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    assert "bench engine" in capsys.readouterr().out
    assert cli.main(["bench", "engine", "--help"]) == 0
    assert "--skip-attention-compute" in capsys.readouterr().out
