"""What every strategy promises, and what each one does on a loss whose best point is known."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import SMOLLM2, ToyJudge, desk_of, explored, space_of

from longspan.config import kind_class, kinds
from longspan.rope.frequencies import RopeBase
from longspan.rope.methods.default import Default
from longspan.rope.methods.ntk import Ntk
from longspan.rope.methods.yarn import Yarn
from longspan.search.desk import Spent
from longspan.search.families import FAMILIES
from longspan.search.halving import halve
from longspan.search.judge import Sheet
from longspan.search.strategies.base import Strategy
from longspan.search.strategies.evolution import KEPT_TOKENS, Evolution
from longspan.search.strategies.formula import Formula
from longspan.search.strategies.gradient import Gradient
from longspan.search.strategies.line import Line
from longspan.search.strategies.structured import Structured
from longspan.utils.errors import ConfigError, Interrupted

PACKAGE = "longspan.search.strategies"
REQUIRED = {"formula": {"rope": Yarn()}}
# Small enough for a test; the same settings on both sides of a comparison.
SMALL = {
    "evolution": {"population": 12, "rounds": 6, "parents": 6, "mutations": 4, "crossovers": 4},
    "structured": {"evaluations": 40},
    "gradient": {"steps": 12},
    "line": {"evaluations": 8},
}
BASES = st.sampled_from([SMOLLM2, RopeBase(rotary_dim=128, theta=5e5, trained_length=8192),
                         RopeBase(rotary_dim=16, theta=1e4, trained_length=512)])  # fmt: skip


def strategy_of(kind: str) -> Strategy:
    found = kind_class(PACKAGE, kind)
    assert issubclass(found, Strategy)
    return found(**REQUIRED.get(kind, {}), **SMALL.get(kind, {}))


# --- what all promise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_kind_is_the_file_name_and_settings_survive_json(kind):
    strategy = strategy_of(kind)
    assert strategy.kind == kind
    assert type(strategy).model_validate_json(strategy.model_dump_json()) == strategy
    strategy.require()


@pytest.mark.parametrize("kind", kinds(PACKAGE))
@settings(max_examples=6, deadline=None)
@given(base=BASES, factor=st.floats(1.3, 64), seed=st.integers(0, 2**40))
def test_never_tries_factors_that_fall_or_speed_up(kind, base, factor, seed, tmp_path_factory):
    space = space_of(factor, base)
    path = tmp_path_factory.mktemp("search") / "rows.jsonl"
    desk = explored(strategy_of(kind), path, space=space, judge=ToyJudge(space), seed=seed)
    assert desk.tried
    found = halve(desk, [(4, 1), (2, 2)])
    for method in [*(candidate.method for candidate, _ in desk.tried.values()), found.method]:
        frequencies = method.frequencies(space.base, space.length)
        slowed = [own / new for own, new in zip(plain(base), frequencies.omegas, strict=True)]
        assert slowed[0] >= 1 - 1e-9
        assert all(b >= a * (1 - 1e-9) for a, b in pairwise(slowed))


def plain(base: RopeBase) -> list[float]:
    return [base.theta ** -(2 * i / base.rotary_dim) for i in range(base.rotary_dim // 2)]


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_equal_seeds_ask_equal_questions_and_others_do_not(kind, tmp_path):
    strategy = strategy_of(kind)
    first, again, other = (
        list(explored(strategy, tmp_path / f"{name}.jsonl", seed=seed).tried)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == again
    assert (first == other) == (kind in ("formula", "gradient", "line"))  # which draw nothing


@pytest.mark.parametrize("kind", kinds(PACKAGE))
@settings(max_examples=8, deadline=None)
@given(share=st.floats(0, 1))
def test_a_killed_search_goes_on_to_the_same_end(kind, share, tmp_path_factory):
    folder, strategy = tmp_path_factory.mktemp("search"), strategy_of(kind)
    whole = explored(strategy, folder / "whole.jsonl")
    end = halve(whole, [(4, 1), (2, 2)])
    content = (folder / "whole.jsonl").read_bytes()
    (folder / "cut.jsonl").write_bytes(content[: int(share * len(content))])  # in mid-line, most of the time
    judge = ToyJudge(whole.space)
    resumed = explored(strategy, folder / "cut.jsonl", judge=judge)
    assert halve(resumed, [(4, 1), (2, 2)]) == end
    assert list(resumed.tried.items()) == list(whole.tried.items())
    assert resumed.evaluations == whole.evaluations
    assert judge.asked + content[: int(share * len(content))].count(b"\n") == content.count(b"\n")


@pytest.mark.parametrize("kind", [kind for kind in kinds(PACKAGE) if kind != "formula"])
@pytest.mark.parametrize("evaluations", [1, 7])
def test_the_budget_is_never_exceeded(kind, evaluations, tmp_path):
    from search_toys import budget

    desk = explored(strategy_of(kind), tmp_path / "rows.jsonl", budget=budget(evaluations))
    assert len(desk.tried) == evaluations == desk.judge.asked
    late = explored(strategy_of(kind), tmp_path / "late.jsonl", budget=budget(10**6, 1e-9))
    assert 1 <= len(late.tried) <= 4  # one group, after which the seconds are spent


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_losses_that_are_no_numbers_count_as_the_worst(kind, tmp_path):
    space = space_of()
    desk = explored(strategy_of(kind), tmp_path / "rows.jsonl", judge=ToyJudge(space, nan_above=7.99))
    losses = [loss for _, loss in desk.tried.values()]
    assert not any(math.isnan(loss) for loss in losses)
    if any(math.isfinite(loss) for loss in losses):
        assert math.isfinite(halve(desk, [(2, 1)]).loss)


def test_a_wish_to_stop_is_heard(tmp_path):
    def stop():
        raise Interrupted("stop")

    with pytest.raises(Interrupted):
        Evolution().run(desk_of(Evolution(), tmp_path / "rows.jsonl", poll=stop))


# --- each for itself -------------------------------------------------------------------------------------------------


def test_every_search_beats_what_it_starts_from(tmp_path):
    start = min(explored(Formula(rope=rope), tmp_path / f"{rope.kind}.jsonl").best for rope in (Yarn(), Ntk()))
    for strategy in (Evolution(rounds=20), Structured(), Gradient()):
        assert explored(strategy, tmp_path / f"{strategy.kind}.jsonl").best < 0.7 * start


def test_gradient_finds_the_hidden_set(tmp_path):
    space = space_of()
    desk = explored(Gradient(steps=300), tmp_path / "rows.jsonl", space=space)
    assert desk.best < 2e-3
    best = min(desk.tried.values(), key=lambda pair: pair[1])[0].method
    for found, wanted in zip(map(math.log, best.factors), ToyJudge(space).goal, strict=True):
        assert found == pytest.approx(wanted, abs=0.25)


def test_evolution_is_that_of_the_paper(tmp_path):
    strategy = Evolution()
    assert strategy.budget.evaluations == 64 + 40 * 32 == 1344
    desk = explored(strategy, tmp_path / "rows.jsonl")
    assert 1200 < len(desk.tried) <= 1344
    members = [candidate for candidate, _ in desk.tried.values()]
    first = [member.method.factors for member in members[:3]]
    assert first[0] == (8.0,) * 32
    assert first[1] == pytest.approx([round(8 ** (i / 31), 2) for i in range(32)], abs=0.011)
    assert first[2] == pytest.approx([1 / w for w in _yarn_weights()], abs=0.006)
    for member in members:
        assert all(1 <= factor <= 10.0 for factor in member.method.factors)
        assert all(abs(100 * factor - round(100 * factor)) < 1e-9 for factor in member.method.factors)
        assert member.kept_tokens in KEPT_TOKENS
    assert len({member.kept_tokens for member in members}) > 3
    assert all(member.kept_tokens == 0 for member, _ in explored(
        Evolution(search_kept=False, rounds=2), tmp_path / "none.jsonl").tried.values())  # fmt: skip


def _yarn_weights() -> list[float]:
    lo, hi = 10, 20  # of SmolLM2's ramp, shared/reference/positions.md section 2
    ramp = [min(max((i - lo) / (hi - lo), 0.0), 1.0) for i in range(32)]
    return [t / 8 + 1 - t for t in ramp]


def test_evolution_is_halved_beyond_half_a_million_tokens(tmp_path):
    space = space_of(65)
    desk = desk_of(Evolution(), tmp_path / "rows.jsonl", space=space, judge=ToyJudge(space))
    Evolution().run(desk)
    assert 600 < len(desk.tried) <= 32 + 40 * 16


def test_line_search_finds_the_bottom_of_a_curve(tmp_path):
    class Bowl(ToyJudge):
        def losses(self, sets, sheet):
            return [(math.log(f.theta / 1e5) - 3.3) ** 2 + 1.0 for f, _ in sets]

    space = space_of(8)
    for family in ("theta_law", "ntk"):
        desk = explored(
            Line(family=family, evaluations=10), tmp_path / f"{family}.jsonl", space=space, judge=Bowl(space)
        )
        assert desk.best == pytest.approx(1.0, abs=2e-3)
        assert len(desk.tried) <= 10


@pytest.mark.parametrize("place", [-0.5, 0.0, 0.37, 1.0, 1.5])
def test_line_search_ends_by_itself(place):
    from longspan.search.strategies.line import _next

    losses = {p: abs(p - place) for p in (0.25, 0.5, 0.75)}
    for _ in range(40):
        following = _next(losses)
        if following is None:
            break
        assert 0 <= following <= 1
        assert following not in losses
        losses[following] = abs(following - place)
    assert following is None
    assert min(losses, key=losses.get) == pytest.approx(min(max(place, 0), 1), abs=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_hold_the_published_formulas(family):
    space = space_of(16)
    found = FAMILIES[family](space)
    assert all(len(start) == found.size and all(0 <= x <= 1 for x in start) for start in found.starts)
    methods = [found.method(start) for start in found.starts]
    if family == "yarn":
        published = Yarn().frequencies(space.base, space.length)
        assert methods[0].frequencies(space.base, space.length).factors == pytest.approx(published.factors, rel=1e-9)
        assert methods[0].attention_factor == pytest.approx(published.attention_factor, rel=1e-9)
        at_any_length = methods[0].frequencies(space.base, 10_000)
        assert at_any_length.factors == methods[0].frequencies(space.base, space.length).factors
    if family == "longrope2":  # of seven starts the last is the theta law, 8.563e6 by positions.md
        law = [(8.563e6 / 1e5) ** (i / 32) for i in range(32)]
        assert methods[-1].frequencies(space.base, space.length).factors == pytest.approx(law, rel=2e-3)
        assert methods[-1].attention_factor == 1.0
    if family == "ntk":
        assert methods[1].factor == pytest.approx(16, rel=1e-12)
    if family == "theta_law":
        assert isinstance(methods[1], Default)
        assert methods[1].theta == pytest.approx(8.563e6, rel=1e-3)  # positions.md, section 3: SmolLM2 at 128K


@pytest.mark.parametrize(
    ("strategy", "heat"),
    [
        (Structured(family="yarn", evaluations=24), 0.1 * math.log(8) + 1),  # YaRN's formula at 8x
        (Structured(evaluations=24), math.sqrt(1 + math.log(8) / math.log(8192))),  # LongRoPE's
        (Gradient(steps=6), math.sqrt(1 + math.log(8) / math.log(8192))),
    ],
    ids=["yarn", "longrope2", "gradient"],
)
def test_only_whole_texts_tune_the_attention_factor(strategy, heat, tmp_path):
    for kind in ("skip", "full"):
        desk = explored(strategy, tmp_path / f"{kind}.jsonl", sheet=Sheet(kind=kind))
        tried = [candidate.method for candidate, _ in desk.tried.values()]
        if isinstance(strategy, Gradient):
            tried = tried[-6:]  # after the closed formulas
        found = [method.attention_factor for method in tried]
        if kind == "skip":
            assert found == pytest.approx([heat] * len(found), rel=1e-12)
        else:
            assert len(set(found)) > 3


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "window"])
def test_structured_tunes_every_family(family, tmp_path):
    desk = explored(Structured(family=family, evaluations=48), tmp_path / "rows.jsonl")
    starts = len(FAMILIES[family](desk.space).starts)
    losses = [loss for _, loss in desk.tried.values()]
    assert len(losses) == 48
    assert min(losses[starts:]) < min(losses[:starts])


def test_structured_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package cmaes") as caught:
        Structured().require()
    assert "longspan[search]" in caught.value.fix


def test_formula_asks_once(tmp_path):
    desk = explored(Formula(rope=Yarn()), tmp_path / "rows.jsonl")
    assert desk.evaluations == 1
    assert halve(desk, [(2, 1)]).sheets == 0  # nothing to choose from
    with pytest.raises(Spent):
        Formula(rope=Ntk()).run(desk)
