"""datatrove's rules for web pages, window by window, beside the limits that are written out here."""

import random

import pytest
from curation_toys import words

from longspan.data.filters import web_rules as web_module
from longspan.data.filters.base import Tools
from longspan.data.filters.repetition import broken_limit
from longspan.data.filters.web_rules import RULES, WebRules


def planted(share: float, *, seed: int) -> dict[str, str]:
    """Texts without markup in which one thing makes up this share of all, again and again: by what it is."""
    rng, body = random.Random(seed), words(600, seed=seed).replace(".", "").split()
    lines = [" ".join(body[at : at + 6]) for at in range(0, 600, 6)]
    extra = rng.sample(lines, round(share * len(lines) / (1 - share)))
    paragraphs = ["\n".join(lines[at : at + 10]) for at in range(0, 100, 10)]
    phrase = [f"zq{n}x" for n in range(12)]
    times = round(share * sum(map(len, body)) / sum(map(len, phrase)) / (1 - share)) + 1
    mixed = [[word] for word in body] + [phrase] * times
    rng.shuffle(mixed)
    return {
        "lines": "\n".join(lines + extra),
        "paragraphs": "\n\n".join(paragraphs + rng.sample(paragraphs, round(share * 10 / (1 - share)))),
        "words": " ".join(word for run in mixed for word in run),
    }


@pytest.mark.parametrize("seed", range(6))
def test_gophers_limits_are_those_of_datatrove(seed: int) -> None:
    """Where a text is nothing but words, both ways agree; beside a limit they may not: datatrove counts spaces, too."""
    judge = WebRules(window_words=5_000).judge(Tools())
    for share, fails in ((0.0, False), (0.05, False), (0.40, True)):
        for what, text in planted(share, seed=seed).items():
            theirs = judge("x", text)
            assert (theirs.text is None) is fails, (what, share, theirs)
            assert bool(broken_limit(text)) is fails, (what, share, broken_limit(text))


def test_each_rule_of_datatrove_judges_windows() -> None:
    common = ("the", "of", "and", "that", "with", "have", "to", "be")
    rng = random.Random(0)
    prose = "\n".join(
        " ".join(
            w if rng.random() < 0.6 else rng.choice(common) for w in words(16, seed=900 + n).replace(".", "").split()
        )
        + "."
        for n in range(400)
    )
    bad = {
        "gopher_repetition": "the same words come again and again here \n" * 200,
        "gopher_quality": "x7 # 12 # 9 # " * 400,
        "c4_quality": "no sentence ends in this menu\n" * 400,
        "fineweb_quality": "a very short line\n" * 400,
    }
    for rule in RULES:
        judge = WebRules(rule=rule, window_words=1_000).judge(Tools())  # type: ignore[arg-type]
        assert judge("good", prose).text == prose, (rule, judge("good", prose))
        assert judge("bad", bad[rule]).text is None
        assert judge("bad", bad[rule]).reason
        assert 0 < judge("both", prose + "\n" + bad[rule]).scores["failing"] < 0.5, "a book with a bad table stays"


def test_sentences_cover_the_text() -> None:
    splitter = web_module._splitter()
    text = "One. Two? Three!  Four"
    assert splitter.sent_tokenize(text) == ["One.", "Two?", "Three!", "Four"]
    spans = splitter.span_tokenize(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert len(spans) == 4
