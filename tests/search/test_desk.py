"""The desk counts, remembers and refuses; halving picks by full texts; a second interpolation lies on the first."""

import json
import math

import pytest
from search_toys import SMOLLM2, ToyJudge, budget, desk_of, explored, space_of

from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.longrope import Longrope, su_attention_factor
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.su import Su
from longspan.rope.methods.theta_law import ThetaLaw
from longspan.rope.methods.yarn import Yarn
from longspan.search.halving import halve
from longspan.search.judge import Candidate, Sheet
from longspan.search.space import Space
from longspan.search.strategies.evolution import Evolution
from longspan.search.strategies.formula import Formula
from longspan.search.strategies.structured import Structured
from longspan.search.window import Window
from longspan.utils.errors import ConfigError

FORMULAS = [Candidate(method=method) for method in (Linear(), Ntk(), Yarn(), Yarn(beta_fast=4.0), ThetaLaw())]


def test_nothing_is_measured_twice(tmp_path):
    desk = desk_of(Evolution(), tmp_path / "rows.jsonl")
    first = desk.losses(FORMULAS)
    assert desk.losses([*FORMULAS[::-1], FORMULAS[0]]) == [*first[::-1], first[0]]
    assert desk.judge.asked == desk.evaluations == len(FORMULAS)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["rope"]["kind"] for row in rows] == ["linear", "ntk", "yarn", "yarn", "theta_law"]
    assert [row["loss"] for row in rows] == first
    assert all(row["sheet"] == "skip/0" and row["seconds"] >= 0 for row in rows)


def test_rows_of_another_judge_do_not_count(tmp_path):
    judge = ToyJudge(space_of())
    desk_of(Evolution(), tmp_path / "rows.jsonl", judge=judge).losses(FORMULAS)
    judge.identity = "other weights"
    again = desk_of(Evolution(), tmp_path / "rows.jsonl", judge=judge)
    again.losses(FORMULAS[:2])
    assert judge.asked == len(FORMULAS) + 2


def test_seconds_of_rows_found_again_count(tmp_path):
    path = tmp_path / "rows.jsonl"
    explored(Evolution(), path, budget=budget(4))
    lines = [json.loads(line) | {"seconds": 2.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = explored(Evolution(), path, budget=budget(100, 3.0))
    assert again.seconds == 8.0
    assert len(again.tried) == 4


def test_halving_goes_by_full_texts_without_kept_tokens(tmp_path):
    class Contrary(ToyJudge):
        """On full texts the order of the skip sheet is turned round."""

        def losses(self, sets, sheet):
            losses = super().losses(sets, sheet)
            return losses if sheet.kind == "skip" else [1 - loss for loss in losses]

    space = space_of()
    desk = desk_of(Evolution(), tmp_path / "rows.jsonl", judge=Contrary(space))
    skip = desk.losses([*FORMULAS, Candidate(method=FORMULAS[0].method, kept_tokens=64)])
    order = sorted(range(len(FORMULAS)), key=skip.__getitem__)
    found = halve(desk, [(3, 1), (2, 2)])
    assert found.method == FORMULAS[order[2]].method  # the worst of the three best
    assert found.sheets == 2
    names = [row["sheet"] for row in desk.lines.rows[len(FORMULAS) + 1 :]]
    assert names == ["full/0"] * 3 + ["full/1"] * 2
    assert not any("kept_tokens" in row for row in desk.lines.rows[len(FORMULAS) + 1 :])
    assert desk.evaluations == len(FORMULAS) + 1 + 5


def test_halving_remembers_the_kept_tokens_it_left_out(tmp_path):
    desk = desk_of(Evolution(), tmp_path / "rows.jsonl")
    desk.losses([Candidate(method=Ntk(), kept_tokens=8), Candidate(method=Ntk()), Candidate(method=Linear())])
    found = halve(desk, [(2, 1)])
    assert (found.method, found.kept_tokens) == (Ntk(), 8)


@pytest.mark.parametrize(
    "method",
    [Default(theta=2e4), Longrope(factors=tuple(0.5 + i / 31 for i in range(32)), attention_factor=1.0)],
)
def test_settings_that_speed_a_pair_up_are_refused(tmp_path, method):
    desk = desk_of(Formula(rope=method), tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError) as caught:
        desk.losses([Candidate(method=method)])
    assert caught.value.code == "search.falling"
    assert desk.judge.asked == 0


def test_a_length_that_is_no_longer_is_refused():
    with pytest.raises(ConfigError, match="works at 8,192 tokens already") as caught:
        Space(own=SMOLLM2, trained_length=8192, length=8192)
    assert caught.value.code == "search.length"


def test_an_unscaled_model_takes_a_method_as_it_is():
    space = space_of(4)
    for candidate in FORMULAS:
        assert space.frequencies(candidate.method) == candidate.method.frequencies(SMOLLM2, 32_768)
        assert space.rope(candidate.method)["kind"] == candidate.method.kind
    assert space.stretch(Ntk()) == pytest.approx([4 ** (i / 31) for i in range(32)], rel=1e-12)


def test_a_second_interpolation_lies_on_the_first():
    """8x of a model that LongRoPE took to 256K: factors multiply, and so does its attention factor."""
    llama = RopeBase(rotary_dim=128, theta=1e4, trained_length=4096)
    first = Longrope(factors=tuple(1 + i for i in range(64))).frequencies(llama, 262_144)
    own = RopeBase(
        rotary_dim=128,
        theta=1e4,
        trained_length=4096,
        factors=first.factors,
        attention_factor=first.attention_factor,
    )
    space = Space(own=own, trained_length=262_144, length=2_097_152)
    assert space.factor == 8
    second = Longrope(factors=tuple(1 + i / 9 for i in range(64)))
    found = space.frequencies(second)
    assert found.factors == pytest.approx([(1 + i) * (1 + i / 9) for i in range(64)], rel=1e-14)
    assert found.attention_factor == pytest.approx(math.sqrt(1 + math.log(512) / math.log(4096)), rel=1e-12)
    assert found.attention_factor == pytest.approx(su_attention_factor(512, 4096), rel=1e-12)
    assert (found.theta, found.trained_length, found.length) == (1e4, 4096, 2_097_152)
    rope = space.rope(second)
    again = Longrope.model_validate_json(json.dumps(rope)).frequencies(own, 2_097_152)
    assert again == found
    theta = space.frequencies(Default(theta=1e4 * 8 ** (128 / 126)))  # a base is factors too
    assert theta.factors == pytest.approx([(1 + i) * 8 ** (i / 63) for i in range(64)], rel=1e-12)
    assert space.stretch(Linear()) == (8.0,) * 64


def test_a_window_lies_between_the_first_training_and_the_extension(tmp_path):
    own = RopeBase(
        rotary_dim=64,
        theta=1e5,
        trained_length=8192,
        factors=tuple(8 ** (i / 31) for i in range(32)),
        attention_factor=1.2,
    )
    window = Window(own=own, trained_length=8192, length=8192, extended_length=32_768)
    strategy = Structured(family="window", evaluations=30)
    desk = explored(strategy, tmp_path / "rows.jsonl", space=window, judge=ToyJudge(window))
    for candidate, _ in desk.tried.values():
        found = window.frequencies(candidate.method)
        assert all(1 <= short <= long * (1 + 1e-9) for short, long in zip(found.factors, own.factors, strict=True))
        assert list(found.factors) == sorted(found.factors)
        assert (found.attention_factor, found.length, found.trained_length) == (1.2, 8192, 8192)
    rope = window.rope(next(iter(desk.tried.values()))[0].method)
    both = Su.model_validate_json(json.dumps(rope)).frequencies(own, 65_536)
    assert both.factors == own.factors
    assert both.short_factors == (1.0,) * 32  # the first point: as first trained
    with pytest.raises(ConfigError, match="slowed more in the original window than beyond it"):
        window.frequencies(Linear(factor=2))
    with pytest.raises(ConfigError, match="needs no other factors") as caught:
        Window(own=SMOLLM2, trained_length=8192, length=8192, extended_length=8192)
    assert caught.value.code == "search.no-window"


def test_sheets_have_names():
    assert Sheet(kind="skip").name == "skip/0"
    assert Sheet(kind="full", number=3).name == "full/3"
