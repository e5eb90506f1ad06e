"""English sentences as NLTK's Punkt finds them, from its published model; RULER plants its needles between them.

Rules and model are those of NLTK (github.com/nltk/nltk, Apache License 2.0): Kiss and Strunk, Unsupervised Multilingual
Sentence Boundary Detection, 2006. Only what English text with single spaces needs is here.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_CLOSERS = "\u2018\u2019\u201c\u201d\u00ab\u00bb"
_APART = rf"[)\";}}\]*:@'({{\[{_CLOSERS}?!]"  # what cannot be inside a word
_ROW = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"  # dashes and dots in a row are one token
_TOKEN = re.compile(rf"{_ROW}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_APART}|{_ROW}|,(?=$|\s|{_APART}|{_ROW}))|\S")
_END = re.compile(rf"[.?!](?=(?P<after>{_APART}|\s+(?P<next>\S+)))")
_CLOSING = re.compile(rf"[\"')\]}}{_CLOSERS}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_NUMBER = re.compile(r"^-?[.,]?\d[\d,.-]*\.?$")
_INITIAL = re.compile(r"[^\W\d]\.$")

# How the model has seen a word: at the start, inside, or anywhere unknown; in upper or lower case.
_START_LOWER, _INSIDE_UPPER = 16, 4
_UPPER, _LOWER = 2 | 4 | 8, 16 | 32 | 64


@dataclass
class _Token:
    text: str
    ends: bool = False  # a sentence ends behind it
    short: bool = False  # an abbreviation
    dots: bool = False

    @property
    def kind(self) -> str:
        return _NUMBER.sub("##number##", self.text.lower())

    @property
    def bare(self) -> str:
        """Its kind without a last period."""
        return self.kind[:-1] if len(self.kind) > 1 and self.kind[-1] == "." else self.kind

    @property
    def shown(self) -> str:
        """Its kind without a period that ends a sentence."""
        return self.bare if self.ends else self.kind


@dataclass(frozen=True)
class Sentences:
    """The model: abbreviations, pairs that no sentence parts, words that often begin one, how words are written."""

    abbreviations: frozenset[str]
    pairs: frozenset[tuple[str, str]]
    starters: frozenset[str]
    seen: dict[str, int]

    @classmethod
    def load(cls, read: Callable[[str], str]) -> "Sentences":
        """The English model of `punkt_tab`; `read` gives one of its files."""
        pairs, seen = (
            [line.split("\t") for line in read(f"punkt_tab/english/{name}.tab").splitlines() if line.strip()]
            for name in ("collocations", "ortho_context")
        )
        words = (
            frozenset(line.strip() for line in read(f"punkt_tab/english/{name}.txt").splitlines())
            for name in ("abbrev_types", "sent_starters")
        )
        first, second = words
        return cls(first, frozenset((a, b) for a, b in pairs), second, {word: int(flags) for word, flags in seen})

    def split(self, text: str) -> list[str]:
        """The sentences of a text whose words are parted by single spaces."""
        found = []
        moved = 0  # characters that belong to the sentence before
        spans = [*self._spans(text)]
        for (start, stop), after in zip(spans, [*spans[1:], None], strict=True):
            start += moved
            moved = 0
            if after is not None and (match := _CLOSING.match(text[slice(*after)])):
                moved = match.end()
                stop = after[0] + len(match[0].rstrip())
            if after is None or moved or text[start:stop]:
                found.append(text[start:stop])
        return found if found[-1] else found[:-1]

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        start = 0
        for match, context in _candidates(text):
            if self._parts(context):
                yield start, match.end()
                start = match.start("next") if match["next"] else match.end()
        yield start, len(text.rstrip())

    def _parts(self, context: str) -> bool:
        """Whether a sentence ends inside some tokens, before the last."""
        tokens = [_Token(word) for word in _TOKEN.findall(context)]
        for token in tokens:
            self._by_kind(token)
        for token, after in pairwise(tokens):
            self._by_what_follows(token, after)
        return any(token.ends for token in tokens[:-1])

    def _by_kind(self, token: _Token) -> None:
        word = token.text
        if word in (".", "?", "!"):
            token.ends = True
        elif re.match(r"\.\.+$", word):
            token.dots = True
        elif word.endswith(".") and not word.endswith(".."):
            stem = word[:-1].lower()
            token.short = stem in self.abbreviations or stem.split("-")[-1] in self.abbreviations
            token.ends = not token.short

    def _by_what_follows(self, token: _Token, after: _Token) -> None:
        if not token.text.endswith("."):
            return
        initial, upper = _INITIAL.match(token.text), after.text[0].isupper()
        if (token.bare, after.shown) in self.pairs:
            token.ends, token.short = False, True
            return
        begins = self._begins(after)
        if (token.short or token.dots) and not initial and (begins or (upper and after.shown in self.starters)):
            token.ends = True
            return
        never_lower = not self.seen.get(after.shown, 0) & _LOWER
        if (initial or token.bare == "##number##") and (
            begins is False or (begins is None and initial and upper and never_lower)
        ):
            token.ends, token.short = False, True

    def _begins(self, token: _Token) -> bool | None:
        """Whether a word begins a sentence, as far as its case tells."""
        if token.text in tuple(";:,.!?"):
            return False
        flags = self.seen.get(token.shown, 0)
        if token.text[0].isupper() and flags & _LOWER and not flags & _INSIDE_UPPER:
            return True
        if token.text[0].islower() and (flags & _UPPER or not flags & _START_LOWER):
            return False
        return None


def _candidates(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Every period that may end a sentence, with the word before it and what follows; of several in one word the last.

    A word reaches back to the space before it, but not past the candidate before.
    """
    found: list[tuple[re.Match[str], int]] = []
    word_start = end_before = 0
    for match in _END.finditer(text):
        space = text.rfind(" ", end_before + 1, match.start())
        word_start = word_start if space < 0 else space + 1
        if found and found[-1][0].start() > word_start:
            found.pop()
        found.append((match, word_start))
        end_before = match.start()
    for match, start in found:
        yield match, text[start : match.start()] + match[0] + match["after"]


def needles_between(sentences: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> str:
    """Needles put before the sentences at some places, in order, all joined by spaces."""
    borders = [0, *places, len(sentences)]
    parts: list[str] = []
    for index, (start, stop) in enumerate(pairwise(borders)):
        parts.append(" ".join(sentences[start:stop]))
        parts += needles[index : index + 1]
    return " ".join(parts)
