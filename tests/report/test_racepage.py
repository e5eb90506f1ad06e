"""The page of a race: its numbers are those of the race, and it says what they say, for and against."""

import pytest

from longspan.report.racepage import race_page


def method(windows, *, formula, best=None, seconds=2.0, evaluations=66.0):
    mean = sum(map(sum, windows)) / sum(map(len, windows))
    less = None if best is None else {"formula": "yarn", "nll": best, "interval": [best - 0.01, best + 0.01]}
    return {
        "formula": formula,
        "nll": mean,
        "interval": [mean - 0.05, mean + 0.05],
        "windows": windows,
        "nll_by_bin": [1.0, 2.0],
        "needle": 0.25,
        "gpu_seconds": seconds,
        "evaluations": evaluations,
        "seeds": len(windows),
        "minus_best_formula": less,
    }


def details_of(factor="4", *, cheap=3.0, dear=3.0, best=-0.1):
    return {
        factor: {
            "length": 32_768,
            "device": "NVIDIA H200",
            "bins": [[0, 128], [128, 32_768]],
            "agreement": {"spearman": 0.91, "seconds_of_one": {"skip": 0.01, "full": 0.25}},
            "unscaled": {"nll_by_bin": [1.0, 12.0]},
            "methods": {
                "yarn": method([[3.2, 3.2]] * 3, formula=True),
                "structured": method([[cheap, cheap]] * 3, formula=False, best=best),
                "evolution": method([[dear, dear]] * 3, formula=False, best=0.2, seconds=50.0, evaluations=1344.0),
            },
        }
    }


def page_of(details):
    return race_page(details, title="A race", commands=["do it"], versions={"torch": "2.11"}, picture="race.svg")


def test_numbers_commands_and_machine():
    page = page_of(details_of())
    for text in (
        "# A race\n",
        "do it",
        "On NVIDIA H200; torch 2.11.",
        "![Held-out loss, needles and cost of every method](race.svg)",
        "## 4 × = 32,768 tokens",
        "2 held-out texts of 32,768 tokens, 3 seeds. Rank correlation of the cheap sheet with a whole text: 0.91.",
        "| method | 0–128 | 128–32K |",
        "| yarn | 2.72 | 7.39 |",  # e and e squared
        "| unscaled | 2.72 | 1.6e+05 |",
        "| structured | 3.0000 [2.9500, 3.0500] | -0.1000 [-0.1100, -0.0900] | 25% | 66 | 2.0 |",
        "| yarn | 3.2000 [3.1500, 3.2500] | the best formula | 25% | 66 | 2.0 |",
    ):
        assert text in page, text
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and "[" in line]
    assert rows == ["| structured", "| evolution", "| yarn"]  # from the best to the worst


@pytest.mark.parametrize(
    ("details", "text"),
    [
        (details_of(), "better than yarn (-0.1000 nats [-0.1100, -0.0900]), where a search was meant to beat"),
        (details_of("2"), "better than yarn (-0.1000 nats [-0.1100, -0.0900])."),
        (details_of(best=0.1), "worse than yarn (+0.1000 nats"),
        (details_of(best=0.005), "not told apart from yarn"),
        (details_of(), "structured is not told apart from evolution (+0.0000 nats [+0.0000, +0.0000]), for 1/25.0"),
        (details_of(cheap=3.1), "structured is worse than evolution (+0.1000 nats"),
        (details_of(cheap=2.9), "structured is better than evolution (-0.1000 nats"),
        (details_of(), "would take 1,344 × 0.25 s, 168 times as long as structured (arithmetic, not run)"),
    ],
)
def test_promises_are_held_against_the_numbers(details, text):
    assert text in page_of(details)


def test_a_race_of_formulas_promises_nothing():
    details = details_of()
    methods = details["4"]["methods"]
    details["4"]["methods"] = {"yarn": methods["yarn"]}
    del details["4"]["device"]  # of a race that an earlier version ran
    details["4"]["agreement"]["spearman"] = None
    page = page_of(details)
    assert "What the numbers say" not in page
    assert "hardware that was not recorded" in page
    assert "gives no order" in page
