"""RULER's prompts, put together from token ids.

Templates, needles and answer prefixes are as published. Everything around them is written anew: depths are stratified
over samples, words keep to the evaluation half, keys are unique, text is never repeated except in the two tasks whose
noise is one sentence over and over.
"""

import math
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from longspan.eval.published.templates import (
    CWE,
    CWE_PREFIX,
    FWE,
    FWE_PREFIX,
    NEEDLE,
    NEEDLES,
    NIAH,
    NIAH_PREFIX,
    NOISE,
    REPLY_TOKENS,
    VT,
    VT_PREFIX,
    Needles,
    singular,
)
from longspan.eval.text import Ids
from longspan.probes import Branch, Context, Encode, Item, coined, inside, names, strings
from longspan.probes.key_value import HEX
from longspan.utils.errors import DataError


def build(name: str, text: Ids, *, length: int, depth: float, encode: Encode, rng: random.Random) -> Context:
    """One prompt with its reply of at most `length` tokens; `depth` is that of the first thing that is asked for.

    With text around the needles the length is exact, else less than a line short of it. Raises `DataError` when it is
    too short.
    """
    make = {"vt": _variables, "cwe": _common, "fwe": _frequent}.get(name)
    if make is not None:
        return make(length, depth, encode, rng)
    return _needles(NEEDLES[name], text, length, depth, encode, rng)


# -- needles ----------------------------------------------------------------------------------------------------------


def _needles(kind: Needles, text: Ids, length: int, depth: float, encode: Encode, rng: random.Random) -> Context:
    one = kind.queries * kind.values == 1
    keys = _drawn(kind.key, kind.keys, rng)
    values = _drawn(kind.value, kind.keys * kind.values, rng)
    word = kind.value[:-1] if one else kind.value
    asked = rng.sample(keys, kind.queries)
    wanted = tuple(values[keys.index(key) * kind.values + i] for key in asked for i in range(kind.values))
    query = asked[0] if one or len(asked) == 1 else ", ".join(asked[:-1]) + f", and {asked[-1]}"
    head, tail = _halves(singular(NIAH) if one else NIAH, NIAH_PREFIX, one=one, kind=word, query=query)
    lines = [
        NEEDLE.format(kind=kind.value, key=key, value=values[at * kind.values + i])
        for at, key in enumerate(keys)
        for i in range(kind.values)
    ]
    first = lines.index(NEEDLE.format(kind=kind.value, key=asked[0], value=wanted[0]))
    depths = [rng.random() for _ in lines]
    depths[first] = depth
    frame = _Frame(inside(head, encode), inside(tail, encode), length - REPLY_TOKENS["niah_single_1"])
    if kind.haystack == "text":
        planted = [inside(f"\n{line}\n", encode) for line in lines]
        room = frame.room - sum(map(len, planted))
        body, offset = _spread(text[: max(room, 0)], planted, depths, first)
        _refuse_short(room, length)
    else:
        more = _noise if kind.haystack == "noise" else lambda n: _lines_of_needles(kind, n, set(keys), rng)
        body, offset = _fill(more, lines, depths, first, frame.room, encode, length)
    return frame.context(body, wanted, depth=depth, offset=offset, reply=REPLY_TOKENS["niah_single_1"])


def _halves(template: str, prefix: str, *, one: bool = False, **words: object) -> tuple[str, str]:
    """What stands before and behind the context, the answer's prefix included."""
    head, tail = template.split("{context}")
    tail += singular(prefix) if one else prefix
    return head.format(**words), tail.format(**words)


def _drawn(kind: str, count: int, rng: random.Random) -> list[str]:
    if kind == "words":
        return names(count, rng=rng, split="evaluate")
    if kind == "numbers":
        drawn = strings(2 * count + 8, alphabet=string.digits, length=7, rng=rng, split="evaluate")
        good = [number for number in drawn if number[0] != "0"]
        return good[:count] if len(good) >= count else _drawn(kind, count, rng)
    ids = strings(count, alphabet=HEX, length=32, rng=rng, split="evaluate")
    return ["-".join(text[a:b] for a, b in pairwise((0, 8, 12, 16, 20, 32))) for text in ids]


def _noise(count: int) -> list[str]:
    return [NOISE] * count


def _lines_of_needles(kind: Needles, count: int, taken: set[str], rng: random.Random) -> list[str]:
    keys = [key for key in _drawn(kind.key, count + len(taken), random.Random(rng.random())) if key not in taken]
    values = _drawn(kind.value, count, rng)
    return [
        NEEDLE.format(kind=kind.value, key=key, value=value) for key, value in zip(keys[:count], values, strict=True)
    ]


# -- the other tasks --------------------------------------------------------------------------------------------------


def _variables(length: int, depth: float, encode: Encode, rng: random.Random) -> Context:
    example_chain, example_value = _chain(3, 4, rng)
    example_body = "\n".join([NOISE, *(part for line in example_chain[1] for part in (line, NOISE))])
    head, tail = _halves(VT, VT_PREFIX, query=example_value, count=5)
    example = f"{head}{example_body}{tail}{' '.join(example_chain[0])}\n\n"
    (chain, lines), value = _chain(5, 4, rng)
    head, tail = _halves(VT, VT_PREFIX, query=value, count=5)
    frame = _Frame(inside(example + head, encode), inside(tail, encode), length - REPLY_TOKENS["vt"])
    depths = [depth, *sorted(depth + rng.random() * (1 - depth) for _ in lines[1:])]
    body, offset = _fill(_noise, lines, depths, 0, frame.room, encode, length)
    return frame.context(body, tuple(chain), depth=depth, offset=offset, reply=REPLY_TOKENS["vt"])


def _chain(letters: int, hops: int, rng: random.Random) -> tuple[tuple[list[str], list[str]], str]:
    found = strings(hops + 1, alphabet=string.ascii_uppercase, length=letters, rng=rng, split="evaluate")
    value = str(rng.randrange(10000, 99999))
    lines = [f"VAR {found[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(found))]
    return (found, lines), value


def _common(length: int, depth: float, encode: Encode, rng: random.Random) -> Context:
    often, seldom = (30, 3) if length >= 4096 else (6, 1)
    sample, answer = _numbered(20 if length < 4096 else 40, 3 if length < 4096 else 10, 1 if length < 4096 else 3, rng)
    head, tail = _halves(CWE, CWE_PREFIX)
    example = f"{head}{sample}{tail} {_ranked(answer)}\n\n"
    frame = _Frame(inside(example + head, encode), inside(tail, encode), length - REPLY_TOKENS["cwe"])
    seed = rng.random()

    def made(words: int) -> tuple[str, list[str]]:
        return _numbered(words, often, seldom, random.Random(seed))

    body, words = _most(made, 10 + 10, frame.room, encode, length)
    return frame.context(body, tuple(words), depth=depth, offset=len(frame.head), reply=REPLY_TOKENS["cwe"])


def _numbered(words: int, often: int, seldom: int, rng: random.Random) -> tuple[str, list[str]]:
    """So many different words, ten of them common, in random order."""
    known = [word.lower() for word in coined(words, syllables=3, rng=rng, split="evaluate")]
    bag = known[:10] * often + known[10:] * seldom
    rng.shuffle(bag)
    return " ".join(f"{place}. {word}" for place, word in enumerate(bag, start=1)), known[:10]


def _ranked(words: Sequence[str]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, start=1))


def _frequent(length: int, depth: float, encode: Encode, rng: random.Random) -> Context:
    head, tail = _halves(FWE, FWE_PREFIX)
    frame = _Frame(inside(head, encode), inside(tail, encode), length - REPLY_TOKENS["fwe"])
    seed, kinds = rng.random(), max(8, (length - REPLY_TOKENS["fwe"]) // 50)

    def made(words: int) -> tuple[str, list[str]]:
        draw = random.Random(seed)
        known = strings(kinds, alphabet=string.ascii_lowercase, length=6, rng=draw, split="evaluate")
        counts = frequencies(words, kinds)
        bag = ["..."] * counts[0]
        bag += [word for word, count in zip(known[1:], counts[1:], strict=False) for _ in range(count)]
        draw.shuffle(bag)
        return " ".join(bag), known[1:4]

    body, words = _most(made, 60, frame.room, encode, length)
    return frame.context(body, tuple(words), depth=depth, offset=len(frame.head), reply=REPLY_TOKENS["fwe"])


def frequencies(words: int, kinds: int) -> list[int]:
    """How often each rank comes in a text of about so many words: n / (k² ζ(2)), rounded down."""
    return [int(words / (rank * rank * (math.pi**2 / 6))) for rank in range(1, kinds + 1)]


# -- putting together -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """The ids before and behind the context, and the tokens for all three."""

    head: list[int]
    tail: list[int]
    whole: int

    @property
    def room(self) -> int:
        return self.whole - len(self.head) - len(self.tail)

    def context(
        self, body: Sequence[int] | Ids, wanted: tuple[str, ...], *, depth: float, offset: int, reply: int
    ) -> Context:
        tokens = np.concatenate([np.asarray(part, dtype=np.int64) for part in (self.head, body)])
        branch = Branch(
            item=Item(question="", answer="", parts=wanted),
            depth=depth,
            offset_tokens=offset + len(self.head),
            question=tuple(self.tail),
            answer=(),
            reply_tokens=reply,
        )
        return Context(tokens=tokens, branches=(branch,))


def _spread(text: Ids, planted: Sequence[Sequence[int]], depths: Sequence[float], first: int) -> tuple[list[int], int]:
    """Lines put into a text at their depths; where line `first` begins."""
    order = sorted(range(len(planted)), key=depths.__getitem__)
    body: list[int] = []
    done, offset = 0, 0
    for index in order:
        place = round(depths[index] * len(text))
        body += text[done:place].tolist()
        done = place
        if index == first:
            offset = len(body)
        body += planted[index]
    return body + text[done:].tolist(), offset


def _fill(
    more: Callable[[int], list[str]],
    lines: Sequence[str],
    depths: Sequence[float],
    first: int,
    room: int,
    encode: Encode,
    length: int,
) -> tuple[list[int], int]:
    """As many lines of filler as fit, with `lines` among them at their depths."""
    used = sum(len(inside(f"\n{line}", encode)) for line in lines)
    sample = more(8)
    each = max(len(inside(f"\n{line}", encode)) for line in sample)
    _refuse_short(room - used - each, length)
    filler = [inside(f"\n{line}", encode) for line in more(max(1, (room - used) // max(1, each - 8)))]
    kept, total = [], used
    for line in filler:
        if total + len(line) > room:
            break
        kept.append(line)
        total += len(line)
    order = sorted(range(len(lines)), key=depths.__getitem__)
    body: list[int] = []
    done, offset = 0, 0
    for index in order:
        place = round(depths[index] * len(kept))
        body += [token for line in kept[done:place] for token in line]
        done = place
        if index == first:
            offset = len(body)
        body += inside(f"\n{lines[index]}", encode)
    return body + [token for line in kept[done:] for token in line], offset


def _most(
    made: Callable[[int], tuple[str, list[str]]], least: int, room: int, encode: Encode, length: int
) -> tuple[list[int], list[str]]:
    """The text of the most words that fits, found by halving."""
    low, high = least, least
    best = None
    while len(ids := inside(made(high)[0], encode)) <= room:
        low, best, high = high, (ids, made(high)[1]), max(high + 1, int(high * min(2.0, room / len(ids))))
        if high <= low + max(1, low // 200):
            break
    for _ in range(6):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        ids = inside(made(middle)[0], encode)
        if len(ids) <= room:
            low, best = middle, (ids, made(middle)[1])
        else:
            high = middle
    if best is None:
        _refuse_short(0, length)
    assert best is not None
    return best


def _refuse_short(room: int, length: int) -> None:
    if room < 1:
        raise DataError(
            "eval.ruler-short",
            f"{length} tokens are too few for this task of RULER with its reply",
            fix="ask for a greater length",
        )
