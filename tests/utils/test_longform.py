"""Scores of long output against the edges that their papers give, worked out by hand."""

import pytest

from longspan.utils.longform import (
    distinct,
    length_score,
    longen_score,
    longest_repeat,
    packed_ratio,
    section_scores,
    sections_of,
    tlg_match,
    words_longen,
    words_longwriter,
    words_tlg,
)


@pytest.mark.parametrize(
    ("written", "score"), [(100, 100), (200, 200 / 3), (50, 50), (400, 0), (500, 0), (33, 0), (0, 0), (75, 250 / 3)]
)
def test_length_score(written, score):
    assert length_score(100, written) == pytest.approx(score, abs=1.1 if written == 33 else 1e-9)


@pytest.mark.parametrize(
    ("written", "score"), [(80, 1), (120, 1), (100, 1), (60, 0.5), (40, 0), (10, 0), (150, 0.5), (180, 0), (500, 0)]
)
def test_longen(written, score):
    assert longen_score(80, 120, written) == pytest.approx(score)


@pytest.mark.parametrize(
    ("wanted", "written", "precise", "flexible"),
    [
        (10, 0, False, False),  # the lower end is left out
        (10, 1, True, True),
        (10, 20, True, True),
        (10, 21, False, False),
        (80, 91, False, True),
        (80, 60, False, False),
        (150, 170, True, True),
        (150, 130, False, True),
        (300, 400, False, True),
        (500, 550, True, True),
        (700, 631, True, True),
        (700, 600, False, False),
        (2000, 2200, True, True),
        (2000, 1600, False, False),
    ],
)
def test_target_length_bands(wanted, written, precise, flexible):
    assert tlg_match(wanted, written, flexible=False) is precise
    assert tlg_match(wanted, written, flexible=True) is flexible


def test_three_counters():
    text = "It's 3 o'clock, 你好。 well-known"
    assert words_tlg(text) == 8  # It s 3 o clock 你好 well known
    assert words_longwriter(text) == 8  # 你 好 It s o clock well known
    assert words_longen(text) == 7  # 你 好 。 It's 3 o'clock, well-known


def test_repetition():
    assert distinct("a b c d", 3) == 1.0
    assert distinct("a a a a a", 3) == pytest.approx(1 / 3)
    assert distinct("a", 3) == 1.0
    assert longest_repeat("a b c x a b c y") == 3
    assert longest_repeat("a b c d") == 0
    assert longest_repeat("") == 0
    assert packed_ratio("the same words " * 400) < 0.05 < packed_ratio("".join(map(chr, range(40, 120))))
    assert packed_ratio("") == 1.0


TEXT = """Floor 1: a hall with TULIP.
**Floor 2**: here is ROSE and more.
Floor 4: this names LILY, which is floor 3's, and IVY.
Floor 2: again, with OAK.
"""


def test_sections_and_their_codes():
    assert sorted(sections_of(TEXT, "Floor")) == [1, 2, 4]
    assert "ROSE" in sections_of(TEXT, "Floor")[2]
    codes = {1: ["TULIP"], 2: ["ROSE", "OAK"], 3: ["LILY"], 4: ["IVY"]}
    scores = section_scores(TEXT, kind="Floor", count=4, codes=codes)
    # Met: TULIP, ROSE, IVY. OAK stands in the second "Floor 2" alone, and floor 3 is missing.
    assert scores == pytest.approx({"completion": 3 / 4, "stic_1": 3 / 4, "stic_2": 3 / 5, "weighted": 9 / 20})


def test_a_code_in_a_wrong_section_is_not_met():
    text = "Floor 1: TULIP\nFloor 2: TULIP\n"
    assert section_scores(text, kind="Floor", count=2, codes={1: ["TULIP"]})["stic_2"] == 0.0
    both = section_scores(text, kind="Floor", count=2, codes={1: ["TULIP"], 2: ["TULIP"]})
    assert both["weighted"] == 1.0


def test_nothing_written_scores_nothing():
    scores = section_scores("", kind="Floor", count=3, codes={1: ["A"]})
    assert set(scores.values()) == {0.0}
