"""The search verb on the small base model of the examples: what is written, resumed, compared and refused."""

import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from longspan import cli
from longspan.model.weights import load, save
from longspan.pipeline import stages
from longspan.pipeline.judging import Texts, piece_places, rope_base
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.searching import Searcher
from longspan.rope.frequencies import read_frequencies
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.su import Su
from longspan.rope.methods.yarn import Yarn
from longspan.search.judge import Sheet
from longspan.search.settings import SearchSettings
from longspan.utils.errors import ConfigError, DataError, Interrupted

ROOT = Path(__file__).parents[2]
RECIPE = """\
name = "hunt"
seed = 3
output = "run"
device = "cpu"
[model]
folder = "{model}"
[data]
sources = [{{ path = "texts" }}]
held_out = ["held-out.txt"]
[[stages]]
length = 640
tokens = 6400
batch_tokens = 6400
learning_rate = 1e-4
rope = {{ kind = "yarn" }}
[search]
strategy = {{ kind = "line", evaluations = 5 }}
skip_tokens = 96
piece_tokens = 32
skip_rows = 1
halving = [[2, 1], [1, 2]]
needles = 2
[search.compare]
factors = [1.25]
seeds = [0, 4]
windows = 2
needles = 2
needle_contexts = 1
strategies = [
    {{ kind = "formula", rope = {{ kind = "linear" }} }},
    {{ kind = "structured", family = "yarn", evaluations = 4 }},
    {{ kind = "evolution", population = 4, rounds = 1, parents = 2, mutations = 2, crossovers = 1 }},
    {{ kind = "gradient", steps = 2, explore = "full" }},
]
"""


@pytest.fixture
def hunt(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name, novel in (("search", "emma"), ("held-out", "persuasion")):
        text = (ROOT / "examples" / "texts" / "novels" / f"{novel}.txt").read_text(encoding="utf-8")
        (tmp_path / "texts" / f"{name}.txt").write_text(text[:30_000])
    path = tmp_path / "hunt.toml"
    path.write_text(RECIPE.format(model=ROOT / "examples" / "laptop-base"))
    return path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_search_writes_what_a_stage_can_use(hunt, capsys):
    assert cli.main(["search", str(hunt), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = json.loads((hunt.parent / "run" / "search" / "found.json").read_text())
    assert answer["rope"] == found["rope"]
    assert answer["stage"] == f'rope = {{ kind = "searched", result = "{answer["found"]}" }}'
    assert found["rope"]["kind"] == "default"
    assert found["rope"]["theta"] > 1e4
    assert (found["length"], found["model"]["trained_length"], found["full_texts"]) == (640, 512, 2)
    assert -1 <= found["agreement"]["spearman"] <= 1
    # the loss is that of the plain decoder on the two texts, whole
    recipe = Recipe.read(hunt)
    with stages.Job.opened(recipe, observer=stages.SILENT, stop=stages.never) as job:
        texts = Texts(store=job.stores().train, length=640, seed=3)
        decoder = load(recipe.model.folder)
        decoder.frequencies = read_frequencies(found["frequencies"])
        losses = []
        for number in range(2):
            text = torch.from_numpy(texts.read(number))
            with torch.no_grad():
                losses.append(float(functional.cross_entropy(decoder(text[None, :-1])[0], text[1:])))
    assert found["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    # and a recipe that names the file trains with these settings, which it keeps
    text = hunt.read_text().replace(
        'rope = { kind = "yarn" }', 'rope = { kind = "searched", result = "run/search/found.json" }'
    )
    (hunt.parent / "train.toml").write_text(text)
    using = Recipe.read(hunt.parent / "train.toml")
    assert using.stages[0].rope.model_dump(exclude_none=True) == found["rope"]
    (hunt.parent / "run" / "search" / "found.json").unlink()
    assert Recipe.from_plain(using.plain(), folder=hunt.parent, where="resolved") == using
    with pytest.raises(ConfigError, match=r"found.json is missing"):
        Recipe.read(hunt.parent / "train.toml")


def test_the_same_command_measures_nothing_again(hunt):
    recipe = Recipe.read(hunt)
    stages.search(recipe, race=False)
    before = {path.name: path.read_bytes() for path in (hunt.parent / "run" / "search").rglob("*.json*")}
    stages.search(recipe, race=False)
    assert {path.name: path.read_bytes() for path in (hunt.parent / "run" / "search").rglob("*.json*")} == before


@pytest.mark.slow
def test_a_stopped_race_goes_on(hunt):
    """Stopped again and again, it ends with the choices of a race that was never stopped."""
    recipe, folder = Recipe.read(hunt), hunt.parent / "run" / "search"
    allowed = 0

    def measured() -> int:
        return sum(len(rows(path)) for path in folder.rglob("*.jsonl"))

    for allowed in (4, 25):
        with pytest.raises(Interrupted):
            stages.search(recipe, race=True, stop=lambda limit=allowed: measured() >= limit)
        assert allowed <= measured() <= allowed + 8  # one group more at the most
    stages.search(recipe, race=True)
    stopped = json.loads((folder / "details.json").read_text())["1.25"]["methods"]
    whole_recipe = recipe.model_copy(update={"output": hunt.parent / "whole"})
    stages.search(whole_recipe, race=True)
    whole = json.loads((hunt.parent / "whole" / "search" / "details.json").read_text())["1.25"]["methods"]
    for name, method in whole.items():
        assert [found["rope"] for found in stopped[name]["found"]] == [found["rope"] for found in method["found"]]
        assert stopped[name]["windows"] == method["windows"]


def test_a_race_writes_table_picture_and_numbers(hunt, capsys):
    assert cli.main(["search", str(hunt), "--compare", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = hunt.parent / "run" / "search"
    assert answer["summary"] == str(folder / "summary.json")
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["1.25"]
    assert list(summary["1.25"]) == ["linear", "yarn", "evolution", "gradient"]
    for method in summary["1.25"].values():
        assert list(method) == ["nll", "needle", "gpu_seconds", "evaluations", "seeds"]
        assert method["seeds"] == 2
        assert 0 <= method["needle"] <= 1
    assert summary["1.25"]["linear"]["evaluations"] == 1
    assert summary["1.25"]["evolution"]["evaluations"] == 4 + 3 + 3
    details = json.loads((folder / "details.json").read_text())["1.25"]
    assert details["length"] == 640
    linear = details["methods"]["linear"]
    sheets = {row["sheet"] for row in rows(folder / "640" / "gradient-0.jsonl")}
    assert sheets == {"full/0", "full/1"}
    assert "skip/0" in {row["sheet"] for row in rows(folder / "640" / "evolution-0.jsonl")}
    assert linear["windows"][0] == linear["windows"][1]  # both seeds read the same held-out texts
    assert linear["nll"] == pytest.approx(np.mean(linear["windows"]))
    assert details["methods"]["gradient"]["minus_best_formula"]["formula"] in ("linear", "yarn")
    assert min(details["agreement"]["seconds_of_one"].values()) > 0
    # held-out texts are held out: the loss of the first window again, by the plain decoder
    recipe = Recipe.read(hunt)
    with stages.Job.opened(recipe, observer=stages.SILENT, stop=stages.never) as job:
        stores = job.stores()
        assert stores.held_out.documents != stores.train.documents
        text = torch.from_numpy(Texts(store=stores.held_out, length=640, seed=3).read(0))
        decoder = load(recipe.model.folder)
        decoder.frequencies = read_frequencies(linear["found"][0]["frequencies"])
        with torch.no_grad():
            wanted = float(functional.cross_entropy(decoder(text[None, :-1])[0], text[1:]))
    assert linear["windows"][0][0] == pytest.approx(wanted, rel=1e-4)
    assert (folder / "race.svg").read_text().startswith("<svg")
    # the page for others is made of the run folder alone
    page = hunt.parent / "page"
    assert cli.main(["search", str(hunt), "--page", str(page), "--search.skip-tokens", "96"]) == 0
    assert sorted(path.name for path in page.iterdir()) == ["README.md", "details.json", "race.svg", "summary.json"]
    for name in ("details.json", "race.svg", "summary.json"):
        assert (page / name).read_bytes() == (folder / name).read_bytes()
    told = (page / "README.md").read_text()
    assert f"longspan search {hunt} --compare --search.skip-tokens 96\n" in told
    assert f"{linear['nll']:.4f}" in told
    assert f"torch {torch.__version__}" in told
    assert "On cpu" in told
    # the report of the run shows the race
    stages.report(recipe)
    assert "Position settings compared" in (hunt.parent / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--page", "x"], "cli.usage"),
        (["{hunt}", "--page"], "cli.option"),
        (["{hunt}", "--page", "x"], "search.no-race"),
        (["{hunt}", "--page=x"], "search.no-race"),
    ],
)
def test_a_page_needs_a_race(hunt, capsys, words, code):
    assert cli.main(["search", *(word.format(hunt=hunt) for word in words), "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["code"] == code


def test_needles_are_measured_by_their_answers(hunt):
    text = hunt.read_text().replace("[search]\n", '[search]\nmeasure = "needle"\nexplore = "full"\n')
    hunt.write_text(text)
    stages.search(Recipe.read(hunt), race=False)
    found = json.loads((hunt.parent / "run" / "search" / "found.json").read_text())
    assert found["loss"] > 0
    full = rows(hunt.parent / "run" / "search" / "640" / "theta_law-3.jsonl")
    assert {row["sheet"] for row in full} == {"full/0", "full/1"}


def test_the_window_of_an_extended_model_is_searched_on_short_texts(hunt):
    """LongRoPE stretches the base model fourfold; on texts of its old length smaller factors are found again."""
    decoder = load(ROOT / "examples" / "laptop-base")
    decoder.frequencies = Linear(factor=4).frequencies(rope_base(decoder.frequencies), 2048)
    save(decoder, hunt.parent / "extended")
    text = hunt.read_text().replace(str(ROOT / "examples" / "laptop-base"), str(hunt.parent / "extended"))
    strategy = 'window = true\nstrategy = { kind = "structured", family = "window", evaluations = 12 }'
    hunt.write_text(text.replace('strategy = { kind = "line", evaluations = 5 }', strategy))
    answer = stages.search(Recipe.read(hunt), race=False)
    rope = Su.model_validate_json(json.dumps(answer["rope"]))
    assert rope.long_factors == (4.0,) * 32
    assert all(1 <= factor <= 4 for factor in rope.short_factors)
    assert max(rope.short_factors) < 1.5  # the weights are untrained at the stretch
    measured = rows(hunt.parent / "run" / "search" / "512" / "window-3.jsonl")
    best = min(row["loss"] for row in measured if row["sheet"] == "full/0")
    stretched = next(row["loss"] for row in measured if set(row["rope"]["factors"]) == {4.0})
    assert best < stretched - 0.3
    assert json.loads((hunt.parent / "run" / "search" / "found.json").read_text())["agreement"] is None
    with pytest.raises(ConfigError, match="is searched alone"):
        stages.search(Recipe.read(hunt), race=True)


def from_export(hunt: Path, *, strategy: str, more: str = "") -> Recipe:
    """A search on the export of the one before, in a run folder of its own."""
    base, folder = hunt.read_text(), hunt.parent / "run" / "search" / "export"
    text = base.replace(str(ROOT / "examples" / "laptop-base"), str(folder)).replace(
        'output = "run"', 'output = "next"'
    )
    path = hunt.parent / "next.toml"
    path.write_text(re.sub(r"(?m)^strategy = .*\nexport = true$", lambda _: strategy, text) + more)
    return Recipe.read(path)


def test_what_was_found_is_shipped_without_training(hunt, capsys):
    """Found, written, read by transformers; then interpolated a second time, and its old window beside the new one."""
    transformers = pytest.importorskip("transformers")
    strategy = '{ kind = "formula", rope = { kind = "linear" } }'
    hunt.write_text(hunt.read_text().replace('{ kind = "line", evaluations = 5 }', f"{strategy}\nexport = true"))
    assert cli.main(["search", str(hunt), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = hunt.parent / "run" / "search" / "export"
    assert answer["export"] == str(folder)
    shipped = load(folder)
    assert shipped.frequencies.factors == (1.25,) * 32
    assert (shipped.frequencies.length, shipped.frequencies.trained_length) == (640, 512)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.AutoConfig.from_pretrained(folder)
    )
    assert rotary.inv_freq.tolist() == pytest.approx([1e4 ** (-i / 32) / 1.25 for i in range(32)], rel=3e-7)
    for ours, theirs in zip(shipped.parameters(), load(ROOT / "examples" / "laptop-base").parameters(), strict=True):
        assert torch.equal(ours, theirs)
    stages.search(Recipe.read(hunt), race=False)  # again: the same
    # a second interpolation, on top of the first
    recipe = from_export(hunt, strategy=f"strategy = {strategy}\nexport = true\nlength = 800")
    stages.search(recipe, race=False)
    second = load(hunt.parent / "next" / "search" / "export").frequencies
    assert second.factors == pytest.approx((1.25 * 800 / 640,) * 32)
    assert (second.length, second.trained_length) == (800, 512)


def test_a_window_is_shipped_on_request_only(hunt, capsys):
    strategy = '{ kind = "formula", rope = { kind = "linear" } }\nexport = true'
    hunt.write_text(hunt.read_text().replace('{ kind = "line", evaluations = 5 }', strategy))
    stages.search(Recipe.read(hunt), race=False)
    window = 'window = true\nexport = true\nstrategy = { kind = "structured", family = "window", evaluations = 4 }'
    for asked in (False, True):
        other = 'window_result = "other.json"\n' if asked else ""  # for the model that is trained: not for this one
        from_export(hunt, strategy=window, more=f"[export]\nmixed_window = {str(asked).lower()}\n{other}")
        assert cli.main(["search", str(hunt.parent / "next.toml")]) == 0
        told = capsys.readouterr().err
        assert ("KV cache is invalid" in told) == asked
        assert ("not in the export" in told) != asked
        found = load(hunt.parent / "next" / "search" / "export").frequencies
        assert found.factors == (1.25,) * 32
        assert (found.short_factors is not None) == asked
    rope = json.loads((hunt.parent / "next" / "search" / "found.json").read_text())["rope"]
    assert found.short_factors == tuple(np.float32(factor) for factor in rope["short_factors"])


def test_what_a_search_refuses(hunt, tmp_path):
    def refused(old: str, new: str, error: type[Exception], code: str, *, race: bool = False) -> None:
        (tmp_path / "bad.toml").write_text(hunt.read_text().replace(old, new))
        with pytest.raises(error) as caught:
            stages.search(Recipe.read(tmp_path / "bad.toml"), race=race)
        assert caught.value.code == code

    refused("[search]\n", "[search]\nlength = 512\n", ConfigError, "search.length")
    window = 'window = true\nstrategy = { kind = "structured", family = "window" }'
    refused('strategy = { kind = "line", evaluations = 5 }', window, ConfigError, "search.no-window")
    refused("[search]\n", "[search]\nlength = 100_000\n", DataError, "search.document-short")
    reach = 'rope = { kind = "yarn" }\nmix = [{ share = 1.0, reach = 100_000 }]\n'  # what a stage's rope is made for
    refused('rope = { kind = "yarn" }\n[', f"{reach}[", DataError, "search.document-short")
    refused("[2, 1], [1, 2]", "[2, 1], [1, 99]", DataError, "search.few-texts")
    refused("factors = [1.25]", "factors = [90]", DataError, "search.document-short", race=True)
    assert not (hunt.parent / "run" / "search").exists()  # nothing was measured before
    new = "[model.new]\nlayers=1\nwidth=16\nheads=2\nkv_heads=1\nhead_dim=8\nmlp_width=32\nvocabulary=300\n"
    model = f'[model]\nfolder = "{ROOT / "examples" / "laptop-base"}"\n'
    refused(model, new, ConfigError, "search.new-model")


WINDOW = {"kind": "structured", "family": "window"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"halving": [[2, 1], [3, 2]]}, "keeps fewer and fewer"),
        ({"halving": [[2, 2], [1, 1]]}, "keeps fewer and fewer"),
        ({"skip_tokens": 100, "piece_tokens": 64}, "no multiple of piece_tokens"),
        ({"probe": {"kind": "passkey"}}, "a text carries 1 line of passkey"),
        ({"window": True}, 'family = "window"'),
        ({"strategy": WINDOW}, "window = true goes with"),
        ({"strategy": WINDOW, "window": True, "length": 512}, "leave out length"),
        ({"compare": {"strategies": [WINDOW]}}, "takes part in no race"),
        ({"compare": {"factors": [2.0, 2.0]}}, "each value may stand once"),
        ({"compare": {"strategies": [{"kind": "gradient"}, {"kind": "gradient"}]}}, "go by the name gradient"),
    ],
)
def test_settings_that_make_no_sense(change, text):
    with pytest.raises(ValueError, match=text):
        SearchSettings.model_validate_json(json.dumps(change))


@pytest.mark.parametrize("measure", ["perplexity", "needle"])
def test_a_skip_sheet_is_a_text_with_parts_left_out(hunt, measure):
    hunt.write_text(hunt.read_text().replace("[search]\n", f'[search]\nmeasure = "{measure}"\n'))
    stages.search(Recipe.read(hunt), race=False)
    with stages.Job.opened(Recipe.read(hunt), observer=stages.SILENT, stop=stages.never) as job:
        judge, decode = Searcher(job).judge(640, 3), job.tokenizer().decode
        sheet = judge._sheet(Sheet(kind="skip"))
        text = Texts(store=job.stores().train, length=640, seed=3).read(0)
    positions = sheet.positions[0].numpy()
    assert (positions[0], positions[-1], len(positions)) == (0, 639, 96)
    assert sorted({b - a for a, b in pairwise(positions.tolist())})[0] == 1
    assert sum(b - a > 1 for a, b in pairwise(positions.tolist())) == 2
    if measure == "perplexity":
        assert (sheet.tokens[0].numpy() == text[positions]).all()
        assert (sheet.targets[0].numpy() == text[positions + 1]).all()
        assert bool(sheet.scored.all())
    else:
        assert torch.equal(sheet.targets[0, :-1], sheet.tokens[0, 1:])
        answers = decode(sheet.targets[0][sheet.scored[0]].tolist())
        assert re.fullmatch(r"( \d{6}){2}", answers)


def test_pieces_span_the_whole_room():
    for count in (1, 2, 5, 16):
        places = piece_places(1000, 32, count, rng=random.Random(count))
        assert places[0] == 0
        assert len(places) == count
        assert all(b - a >= 32 for a, b in pairwise(places))
        if count > 1:
            assert places[-1] == 1000 - 32


def test_a_scaled_model_is_searched_on_top_of_its_scaling():
    from longspan.rope.frequencies import RopeBase

    plain = RopeBase(rotary_dim=32, theta=1e4, trained_length=512)
    assert rope_base(Yarn(factor=1).frequencies(plain, 512)) == plain
    scaled = rope_base(Yarn(factor=4).frequencies(plain, 2048))
    assert scaled.factors is not None
    assert max(scaled.factors) == pytest.approx(4)
    assert scaled.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
