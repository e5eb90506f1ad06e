"""Numbers for people are rounded without becoming untrue."""

import pytest

from longspan.report import numbers


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (1, "1"),
        (512, "512"),
        (1000, "1,000"),
        (8192, "8K"),
        (1_048_576, "1M"),
        (2**21 + 1024, "2,049K"),
        (8191, "8,191"),
    ],
)
def test_length(tokens: int, words: str) -> None:
    assert numbers.length(tokens) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (950, "950"), (1500, "1.5k"), (2_040_000, "2.04M"), (3e9, "3G"), (1e12, "1T")]
)
def test_amount(value: float, words: str) -> None:
    assert numbers.amount(value) == words


@pytest.mark.parametrize(
    ("hits", "trials", "words"),
    [
        (0, 0, "–"),
        (0, 9, "0 %"),
        (9, 9, "100 %"),
        (39, 40, "97.5 %"),
        (9999, 10_000, "99.9 %"),
        (1, 10_000, "0.1 %"),
    ],
)
def test_percent(hits: int, trials: int, words: str) -> None:
    assert numbers.percent(hits, trials) == words


# Lower bounds of 10/10 and 25/25 are 72.2 and 86.7 per cent, as in any table of Wilson's interval.
@pytest.mark.parametrize(
    ("hits", "trials", "words"), [(10, 10, "72–100"), (25, 25, "86–100"), (0, 10, "0–28"), (428, 500, "82–89")]
)
def test_interval_is_rounded_outwards(hits: int, trials: int, words: str) -> None:
    assert numbers.interval(hits, trials) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (3.44, "3.4 s"),
        (59.97, "1 min 00 s"),
        (492, "8 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert numbers.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        (2_143_232, "2,143,232"),
        (3.2e-6, "3.2e-06"),
        (0.5, "0.5"),
        ("a_b", "a_b"),
    ],
)
def test_shown(value: object, words: str) -> None:
    assert numbers.shown(value) == words
