"""What Self-Lengthen keeps, drops and asks, with a made-up model that extends, stalls or repeats itself."""

import random
from collections import Counter

import pytest
from curation_toys import words

from longspan.data.self_lengthen import (
    Draft,
    clean,
    distinct_share,
    drafted,
    invented,
    lengthened,
    repeats,
    short_ones,
    units,
    with_dropped_lines,
    with_length,
)


def text_of(paragraphs: int, *, seed: int = 0, words_each: int = 30) -> str:
    return "\n\n".join(words(words_each, seed=1000 * seed + n).rstrip(".") + "." for n in range(paragraphs))


def test_repeated_runs_are_found_in_any_script() -> None:
    ten = "one two three four five six seven eight nine ten"
    assert repeats(f"{ten} and again {ten}.")
    assert not repeats(f"{ten} and again {ten.rsplit(' ', 1)[0]}.")
    chinese = "春眠不觉晓处处闻啼"
    assert len(chinese) == 9
    assert not repeats(chinese + "，" + chinese + "。")
    assert repeats(chinese + "鸟，" + chinese + "鸟。"), "ten signs"
    assert units("Zwei 词 words") == ["zwei", "词", "words"]
    assert repeats("a-" * 12), "signs between words are no words"


@pytest.mark.parametrize(("text", "good"), [("An end.", True), ("完。", True), ("No end", False), ("“Said.”\n", True)])
def test_a_text_ends_like_one(text: str, good: bool) -> None:
    assert clean(text) is good


def test_distinct_runs() -> None:
    assert distinct_share("a b c d e f") == 1.0
    assert distinct_share("a b c d a b c d") == 4 / 5  # abcd bcda cdab dabc abcd
    assert distinct_share("a b c") == 0.0


def test_the_shortest_are_dropped_by_rank() -> None:
    counts = [10 * n + 5 for n in range(100)]
    random.Random(3).shuffle(counts)
    place = {count: at for at, count in enumerate(counts)}
    drops: Counter[int] = Counter()
    for seed in range(400):
        drops.update(short_ones(counts, random.Random(seed)))
    by_rank = [drops[place[10 * rank + 5]] / 400 for rank in range(100)]
    expected = [min(1.0, 2 * (1 - rank / 100) ** 3) for rank in range(100)]
    assert by_rank[:20] == [1.0] * 20
    assert all(abs(found - share) < 0.11 for found, share in zip(by_rank, expected, strict=True))
    assert short_ones([], random.Random(0)) == set()


def test_the_longer_clean_draft_is_kept() -> None:
    answers = iter(["Short one.", "This one is longer.", "no end", "A loop. " * 40])
    assert drafted("x", lambda prompt, prefix="": next(answers)) == Draft(text="This one is longer.")
    assert drafted("x", lambda prompt, prefix="": next(answers)) == Draft(reason="draft-unclean")


class Extender:
    """Doubles what it is given; `broken` answers come first. Keeps what it was asked."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.asked, self.made = list(broken), list[tuple[str, str]](), 0

    def __call__(self, prompt: str, prefix: str = "") -> str:
        self.asked.append((prompt, prefix))
        if self.broken:
            return self.broken.pop(0)
        self.made += 1
        given = prompt.split("too short:\n\n", 1)[1].rsplit("\n\nWrite", 1)[0]
        more = text_of(len(given.split("\n\n")), seed=self.made)
        return "\n\n" + given[len(prefix) :].strip() + "\n\n" + more if prefix else given + "\n\n" + more


def test_each_pass_opens_with_two_thirds_of_a_longer_half() -> None:
    first, ask = text_of(4, seed=90), Extender()
    found = lengthened("Tell of rivers.", first, ask)
    assert found.passes == 3
    assert len(units(found.text)) > 2 * len(units(first))
    assert clean(found.text)
    assert all("Tell of rivers." in prompt for prompt, _ in ask.asked)
    (half, nothing), (whole, opening) = ask.asked[:2]
    paragraphs = first.split("\n\n")
    assert nothing == ""
    assert "\n\n".join(paragraphs[:2]) in half
    assert paragraphs[2] not in half
    assert first in whole
    longer_half = paragraphs[:2] + text_of(2, seed=1).split("\n\n")
    assert opening == "\n\n".join(longer_half[:3]), "round(2/3 of 4) paragraphs"
    assert found.text.startswith(paragraphs[0])


def test_passes_that_do_not_help_are_tried_again_and_given_up() -> None:
    first = text_of(4, seed=91)
    good = lengthened("x", first, Extender("A half.", "and no end", "A half.", "Too short."))
    assert good.passes == 3
    stuck = lengthened("x", first, lambda prompt, prefix="": "Nothing more.")
    assert (stuck.text, stuck.reason, stuck.passes) == ("", "not-longer", 0)
    asked = 0

    def once(prompt: str, prefix: str = "") -> str:
        nonlocal asked
        asked += 1
        return "never ends"

    assert lengthened("x", first, once).reason == "not-longer"
    assert asked == 40, "20 tries of two questions"
    ten = "A b c d e f g h i j."
    little = lengthened("x", ten, lambda prompt, prefix="": " k." if prefix else ten)
    assert (little.reason, little.passes) == ("not-longer", 1), "eleven words for ten are clean, and no answer"


def test_a_text_of_one_paragraph_is_cut_at_lines_or_sentences() -> None:
    ask = Extender()
    lengthened("x", "One is here. Two is there. Three is gone. Four is left.", ask)
    assert "too short:\n\nOne is here. Two is there.\n\nWrite" in ask.asked[0][0]


def test_instructions_are_invented_from_two_known_ones() -> None:
    known, heard = ["Write a long tale of a mill.", "Explain how tides come about."], Counter[str]()
    answers = iter(
        [
            "Describe a city of glass in detail.",
            " Yes, surely.",
            "Too short",
            known[0],
            "One that is unfit for it.",
            "No.",
        ]
    )
    asked: list[str] = []

    def ask(prompt: str, prefix: str = "") -> str:
        asked.append(prompt)
        return next(answers)

    def draw(seed: int) -> str | None:
        return invented(known, ask, random.Random(seed), heard=lambda reason: heard.update([reason]))

    assert draw(0) == "Describe a city of glass in detail."
    assert all(instruction in asked[0] for instruction in known)
    assert [draw(seed) for seed in (1, 2, 3)] == [None] * 3
    assert heard == {"instruction-length": 1, "instruction-known": 1, "instruction-unfit": 1}


def test_a_demand_of_length_is_one_that_the_answer_keeps() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(2_000):
        rng = random.Random(seed)
        count = rng.choice([rng.randrange(1, 60), rng.randrange(60, 8_000)])
        instruction = with_length("Tell of rivers.", count, rng)
        assert instruction.startswith("Tell of rivers. Write ")
        numbers = [int(part) for part in instruction.replace(".", " ").split() if part.isdecimal()]
        kind = next(name for name in ("about", "between", "at least", "at most") if f"Write {name}" in instruction)
        kinds[kind] += 1
        if kind == "about":
            assert abs(numbers[0] - count) <= (50 if count >= 1_000 else 5 if count >= 100 else 0)
        elif kind == "between":
            assert numbers[0] <= count <= numbers[1]
        else:
            assert numbers[0] <= count if kind == "at least" else numbers[0] >= count
    for kind, share in {"about": 0.40, "between": 0.25, "at least": 0.175, "at most": 0.175}.items():
        assert kinds[kind] / 2_000 == pytest.approx(share, abs=0.035)


def test_lines_are_dropped_one_in_five() -> None:
    text = "\n".join(f"line {n}" for n in range(2_000))
    kept = with_dropped_lines(text, random.Random(0)).splitlines()
    assert 0.77 < len(kept) / 2_000 < 0.83
    assert kept == [line for line in text.splitlines() if line in set(kept)], "the order stays"
    assert with_dropped_lines("only", random.Random(1)) == "only"
