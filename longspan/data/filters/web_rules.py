"""datatrove's rules for web pages, asked window by window."""

import importlib
import re
from typing import Any, Literal

from pydantic import Field

from longspan.data.filters._windows import judged_by_windows
from longspan.data.filters.base import Filter, Judge, Tools, missing_package

RULES = {
    "gopher_repetition": "GopherRepetitionFilter",
    "gopher_quality": "GopherQualityFilter",
    "c4_quality": "C4QualityFilter",
    "fineweb_quality": "FineWebQualityFilter",
}
WORD, SENTENCE_END = re.compile(r"\w+"), re.compile(r"(?<=[.?!])\s+")


class WebRules(Filter):
    """Drops documents of whose windows more than `most_failing` break a rule, as datatrove has it.

    Rules judge windows of about `window_words` words and change no text, so the lines that C4's would take out stay.
    Words are runs of letters, digits and underscores, as in `repetition`; sentences end at . ? or ! before a space.
    The limits are datatrove's own. Sources: Rae and others 2021, arXiv:2112.11446, section A.1.1 (Gopher); Raffel and
    others 2020, arXiv:1910.10683, section 2.2 (C4); Penedo and others 2024, arXiv:2406.17557 (FineWeb).
    """

    kind: Literal["web_rules"] = "web_rules"
    rule: Literal["gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality"] = "gopher_repetition"
    window_words: int = Field(default=3_000, ge=200)
    most_failing: float = Field(default=0.5, ge=0.0, lt=1.0)

    def require(self) -> None:
        """Raise `ConfigError` when datatrove is missing."""
        _package("pipeline.filters")

    def judge(self, _: Tools) -> Judge:
        """By the share of windows that fail; the reason is datatrove's, of most of them."""
        rule = getattr(_package("pipeline.filters"), RULES[self.rule])(language=_splitter())
        document = _package("data").Document

        def broken(window: str) -> str:
            found = rule.filter(document(text=window, id=""))
            return "" if found is True else str(found[1])

        return judged_by_windows(broken, window_words=self.window_words, most_failing=self.most_failing)


def _splitter() -> Any:
    """Words and sentences for datatrove without its packages of languages."""

    class Splitter(_package("utils.word_tokenizers").WordTokenizer):  # type: ignore[misc]
        def word_tokenize(self, text: str) -> list[str]:
            return [word.lower() for word in WORD.findall(text)]

        def sent_tokenize(self, text: str) -> list[str]:
            return [part for part in SENTENCE_END.split(text) if part]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.start() for match in SENTENCE_END.finditer(text)]
            return list(zip([0, *ends], [*ends, len(text)], strict=True))

    return Splitter()


def _package(module: str) -> Any:
    try:
        return importlib.import_module(f"datatrove.{module}")
    except ImportError:
        raise missing_package("web_rules", "datatrove") from None
