"""Mistakes that people make, through the command line: exit 2, soon, with the key, a remedy and a stable code."""

import time
from pathlib import Path

import pytest

from longspan import cli

# what is replaced in the micro recipe, with what, and what the message must say
MISTAKES = [
    ("lenght", "length = 64", "lenght = 64", "recipe.unknown-key", ("stages.0.lenght", "did you mean 'length'?")),
    ("misplaced", "seed = 1", "learning_rate = 1e-3", "recipe.unknown-key", ("belongs to [[stages]]",)),
    ("unheard of", "seed = 1", "xyzzy = 1", "recipe.unknown-key", ("remove it (keys here: data, device",)),
    (
        "deep typo",
        'kind = "yarn"',
        'kind = "yarn", beta_fats = 3.0',
        "recipe.unknown-key",
        ("beta_fast", "stages.1.rope"),
    ),
    ("typo in a task", "trials = 2", "trails = 2", "recipe.unknown-key", ("eval.tasks.0.trails", "'trials'")),
    ("typo in a table", "[train]", "[trian]", "recipe.unknown-key", ("'trian'", "did you mean 'train'?")),
    ("no such method", 'kind = "yarn"', 'kind = "yarm"', "recipe.unknown-kind", ("did you mean 'yarn'?",)),
    ("no such probe", 'kind = "needle"', 'kind = "pin"', "recipe.unknown-kind", ("passkey",)),
    ("no kind", '{ kind = "yarn" }', "{ }", "recipe.missing-key", ("stages.1.rope", "kind")),
    ("no output", 'output = "run"\n', "", "recipe.missing-key", ("'output' is missing", "add output")),
    (
        "no rate",
        'learning_rate = 1e-3\nrope = { kind = "yarn"',
        'rope = { kind = "yarn"',
        "recipe.missing-key",
        ("stages.1.learning_rate",),
    ),
    ("number as text", "learning_rate = 1e-3", 'learning_rate = "1e-3"', "recipe.type", ("without quotes",)),
    ("fraction as int", "length = 64", "length = 64.0", "recipe.type", ("whole number", "stages.0.length")),
    ("true as number", "seed = 1", "seed = true", "recipe.type", ("whole number",)),
    ("nan", "learning_rate = 1e-3", "learning_rate = nan", "recipe.type", ("ordinary number",)),
    ("date", "seed = 1", "seed = 2026-01-01", "recipe.type", ("is a date",)),
    ("negative length", "length = 64", "length = -64", "recipe.value", ("greater than",)),
    ("rate above 1", "learning_rate = 1e-3", "learning_rate = 3.0", "recipe.value", ("less than or equal to 1",)),
    (
        "ragged batch",
        "batch_tokens = 128",
        "batch_tokens = 100",
        "recipe.value",
        ("no multiple of length 64; 128 would be",),
    ),
    ("less than a step", "tokens = 512", "tokens = 100", "recipe.value", ("less than one step",)),
    ("shares", "share = 0.5 }, {", "share = 0.7 }, {", "recipe.value", ("add up",)),
    ("packing", "items = 1 }", "items = 1, length = 100 }", "recipe.value", ("do not fill rows of 128",)),
    ("kv heads", "kv_heads = 1", "kv_heads = 3", "recipe.value", ("no multiple of kv_heads",)),
    ("odd head", "head_dim = 8", "head_dim = 7", "recipe.value", ("odd",)),
    ("two models", "[model.new]", '[model]\nfolder = "x"\n[model.new]', "recipe.value", ("exactly one",)),
    ("no stages", "[[stages]]", "[[steps]]", "recipe.unknown-key", ("did you mean 'stages'?",)),
    ("device", 'device = "cpu"', 'device = "gpu"', "recipe.value", ("'cpu'",)),
    ("name with a slash", 'name = "micro"', 'name = "../micro"', "recipe.value", ("pattern",)),
    ("syntax", "seed = 1", "seed = ", "recipe.toml", ("line 2",)),
    ("key twice", "seed = 1", "seed = 1\nseed = 2", "recipe.toml", ("line 3",)),
    ("no quotes", 'output = "run"', "output = run", "recipe.toml", ("line 3",)),
    ("text is gone", 'path = "texts"', 'path = "text"', "recipe.path", ("data.sources.0.path",)),
    ("lengths fall", "lengths = [128]", "lengths = [128, 64]", "recipe.value", ("must grow",)),
]


@pytest.mark.parametrize(("old", "new", "code", "said"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistake(
    micro: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, code: str, said: tuple[str, ...]
) -> None:
    text = micro.read_text()
    assert old in text
    micro.write_text(text.replace(old, new, 1))
    start = time.monotonic()
    assert cli.main(["run", str(micro)]) == cli.MISTAKE
    assert time.monotonic() - start < 2.0
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "errors.pydantic.dev" not in told
    for words in (code, *said):
        assert words in told
    assert not (micro.parent / "run").exists()


def test_every_mistake_is_listed(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = micro.read_text().replace("length = 64", "lenght = 64").replace("seed = 1", 'seed = "1"')
    micro.write_text(text)
    assert cli.main(["train", str(micro)]) == cli.MISTAKE
    told = capsys.readouterr().err
    for words in ("2 problems", 'seed: "1" is of the wrong type', "stages.0.lenght"):
        assert words in told


@pytest.mark.parametrize("name", ["job.yaml", "job.yml", "job"])
def test_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / name).write_text("name: x\n")
    assert cli.main(["run", str(tmp_path / name)]) == cli.MISTAKE
    told = capsys.readouterr().err
    assert "recipe.format" in told
    assert "TOML" in told


def test_binary_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe\x00")
    assert cli.main(["run", str(tmp_path / "job.toml")]) == cli.MISTAKE
    assert "UTF-8" in capsys.readouterr().err
