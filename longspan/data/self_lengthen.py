"""Longer answers from a model that writes short ones: it answers, then extends its own answers pass by pass."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from longspan.data.agent_write import Ask

RUN_UNITS = 10  # a text in which so many words in a row come twice is not clean
PASSES, TRIES = 3, 20
LEAST_GROWTH = 1.2  # of an extended text over the first one, in words
PREFIX_SHARE = 2 / 3  # of the extended first half that opens the whole
DROPPED_LINES = 0.2
INVENT_TRIES = 4  # for each instruction that is wanted

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
UNIT = re.compile(rf"[{CJK}]|[^\W{CJK}]+")  # a sign of scripts without spaces, or a whole word of the others
PARAGRAPHS, LINES = re.compile(r".+?(?:\n\s*\n|\Z)", re.DOTALL), re.compile(r".+?(?:\n|\Z)", re.DOTALL)
SENTENCES = re.compile(r".+?(?:[.!?。！？]+\s*|\Z)", re.DOTALL)
CLOSING = (".", "!", "?", "…", "。", "！", "？", '"', "”", "’", "」", "』", ")", "）", "】")

INVENT = """\
Here are two requests for long texts:

1. {first}

2. {second}

Write one more request for a long text, of another subject and another kind. Answer with the request alone."""

FIT = """\
Would a good answer to this request be a long text, of 2,000 words and more? Answer yes or no.

{instruction}"""

EXTEND = """\
Someone asked for the following text:

{instruction}

This is an answer, which is too short:

{text}

Write it again, longer: keep its order, say everything that it says, and go into detail at every point. Do not bring it
to an end before the answer above does. Answer with the longer text alone."""

HALF = """\
Someone asked for the following text:

{instruction}

This is the first half of an answer, which is too short:

{text}

Write this half again, twice as long: keep its order, say everything that it says, and go into detail at every point. It
is a first half: bring nothing to an end. Answer with the longer half alone."""

ABOUT, BETWEEN = "Write about {words} words.", "Write between {low} and {high} words."
AT_LEAST, AT_MOST = "Write at least {low} words.", "Write at most {high} words."


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A first answer to an instruction, or why there is none."""

    text: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Lengthened:
    """An extended answer, or why there is none, with the passes that lengthened it."""

    text: str = ""
    reason: str = ""
    passes: int = 0


def units(text: str) -> list[str]:
    """Words, and single signs of scripts that put no spaces between words."""
    return UNIT.findall(text.lower())


def clean(text: str) -> bool:
    """Whether a text ends as a text does, and no run of ten words comes twice in it."""
    return text.rstrip().endswith(CLOSING) and not repeats(text)


def repeats(text: str) -> bool:
    """Whether some run of ten words, or of ten signs where there are no words, comes twice."""
    found = units(text)
    runs = [tuple(found[at : at + RUN_UNITS]) for at in range(len(found) - RUN_UNITS + 1)]
    return len(set(runs)) < len(runs)


def distinct_share(text: str, *, length: int = 4) -> float:
    """How many of the runs of `length` words are different ones: 1 when nothing is said twice, 0 without any run."""
    found = units(text)
    runs = [tuple(found[at : at + length]) for at in range(len(found) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def invented(known: Sequence[str], ask: Ask, rng: Random, *, heard: Callable[[str], None]) -> str | None:
    """One more instruction like two of the `known`, which the model itself finds fit for a long text; None for none.

    Taken are those of 4 to 499 words that are not known yet; `heard` learns of every other one's reason.
    Source: arXiv:2410.23933 (self-instruct with two shots).
    """
    first, second = rng.sample(list(known), 2)
    found = ask(INVENT.format(first=first, second=second)).strip()
    if not 3 < len(units(found)) < 500:
        heard("instruction-length")
    elif found in known:
        heard("instruction-known")
    elif not ask(FIT.format(instruction=found)).strip().lower().startswith("yes"):
        heard("instruction-unfit")
    else:
        return found
    return None


def drafted(instruction: str, ask: Ask) -> Draft:
    """The longer clean one of two answers."""
    found = [text for text in (ask(instruction).strip(), ask(instruction).strip()) if clean(text)]
    return Draft(text=max(found, key=lambda text: len(units(text)))) if found else Draft(reason="draft-unclean")


def short_ones(words: Sequence[int], rng: Random) -> set[int]:
    """Which of the answers with so many words each are dropped for shortness, by their places.

    By rank from the shortest (0) on, r is 1 - rank / n, and an answer is dropped with probability min(1, 2 r³): the
    shortest fifth always, the longer half hardly ever. Source: arXiv:2410.23933, as its code has it.
    """
    order = sorted(range(len(words)), key=lambda place: (words[place], place))
    return {place for rank, place in enumerate(order) if rng.random() < min(1.0, 2 * (1 - rank / len(words)) ** 3)}


def lengthened(instruction: str, text: str, ask: Ask) -> Lengthened:
    """A text extended in up to three passes, each longer than the one before and clean; in all 1.2 times as long.

    A pass writes the first half anew, about twice as long; two thirds of that open the answer to "the whole, longer",
    so that the model goes on in that breadth. Given up after 20 tries in all (`not-longer`).
    Source: Quan and others 2024, arXiv:2410.23933 (Self-Lengthen), as its code has it.
    """
    best, passes, tries = text, 0, 0
    while passes < PASSES and tries < TRIES:
        tries += 1
        half = ask(HALF.format(instruction=instruction, text=_opening(best, 0.5).rstrip()))
        opening = _opening(half, PREFIX_SHARE)
        found = _joined(opening, ask(EXTEND.format(instruction=instruction, text=best), opening.rstrip()))
        if len(units(found)) > len(units(best)) and clean(found):
            best, passes = found.strip(), passes + 1
    if len(units(best)) <= LEAST_GROWTH * len(units(text)):
        return Lengthened(reason="not-longer", passes=passes)
    return Lengthened(text=best, passes=passes)


def _opening(text: str, share: float) -> str:
    """The first share of a text in whole paragraphs, or in lines or sentences where it has no two of these."""
    for pieces in (PARAGRAPHS, LINES, SENTENCES):
        parts = pieces.findall(text.strip())
        if len(parts) > 1:
            return "".join(parts[: max(1, round(share * len(parts)))])
    return text.strip()


def _joined(opening: str, rest: str) -> str:
    """An opening and what goes on behind it; where that begins with no space, the opening's own stays."""
    return opening.rstrip() + rest if rest[:1].isspace() else opening + rest


def with_dropped_lines(text: str, rng: Random) -> str:
    """A text without some of its lines, each left out with probability 0.2: what an extender learns to start from."""
    kept = [line for line in text.splitlines() if not line.strip() or rng.random() >= DROPPED_LINES]
    return "\n".join(kept).strip() or text


def with_length(instruction: str, words: int, rng: Random) -> str:
    """The instruction with a demand that an answer of so many words keeps: about, between, at least or at most.

    Of these, four tenths are "about", a quarter "between", the others one-sided. Source: the code of arXiv:2410.23933.
    """
    low, high = (words * rng.uniform(*share) for share in ((0.7, 0.95), (1.05, 1.3)))
    draw = rng.random()
    demand = ABOUT if draw < 0.40 else BETWEEN if draw < 0.65 else AT_LEAST if draw < 0.825 else AT_MOST
    unit = 100 if words >= 1_000 else 10 if words >= 100 else 1
    numbers = {"words": round(words / unit) * unit, "low": int(low // unit) * unit, "high": -int(-high // unit) * unit}
    return f"{instruction.rstrip()} {demand.format(**numbers)}"
