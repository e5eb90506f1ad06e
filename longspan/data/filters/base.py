"""What every filter is: settings that become a judgement of one document, or of all documents together."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from longspan.config import Settings
from longspan.utils.errors import ConfigError

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a document: `text` goes on (None: it is dropped), `reason` says why when anything changed.

    `scores` are the numbers that the judgement rests on.
    """

    text: str | None
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What filters cannot make themselves; None where no filter of the recipe asks for it.

    `protected` are the sorted hashes of all runs of words of the evaluation texts, as `contamination` makes them.
    `encode` gives the token ids of a text. `perplexities` takes pairs (context, piece) of ids, the context perhaps
    empty, and gives the perplexity of each piece after its context.
    """

    protected: Hashes | None = None
    encode: Callable[[str], Ids] | None = None
    perplexities: Callable[[Sequence[tuple[Ids, Ids]]], list[float]] | None = None


Judge = Callable[[str, str], Verdict]  # id and text of a document


class Choosy(Settings):
    """Settings that are for the documents whose ids match a glob of `documents`; for all when there is none."""

    documents: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether a document of this id is meant."""
        return not self.documents or any(fnmatchcase(name, glob) for glob in self.documents)


class Filter(Choosy, ABC):
    """Settings of a filter that judges one document at a time, whatever others there are."""

    def require(self) -> None:
        """Raise `ConfigError` when a package is missing that this filter needs; most need none."""

    @abstractmethod
    def judge(self, tools: Tools) -> Judge:
        """The judgement in use: a function of a document's id and text alone."""


@dataclass(frozen=True, kw_only=True)
class Sketched:
    """One document as a filter of all documents sees it: its sketch, and an order that its text decides.

    Who comes first in the order is kept: what is held out (0 before 1), then the longest, then by the text's hash.
    """

    rank: tuple[int, int, str]
    sketch: Hashes


class CorpusFilter(Choosy, ABC):
    """Settings of a filter that needs a look at all documents: each is sketched, then the sketches are compared."""

    def require(self) -> None:
        """Raise `ConfigError` when a package is missing that this filter needs; most need none."""

    @abstractmethod
    def sketch(self, text: str) -> Hashes:
        """The few numbers that stand for a text, in rows."""

    @abstractmethod
    def surplus(self, documents: Sequence[Sketched]) -> dict[int, str]:
        """Which documents go, by their place in `documents`, and why; the order of these does not matter."""


def missing_package(kind: str, package: str) -> ConfigError:
    """The error for a filter whose optional package is not installed."""
    return ConfigError(
        "filter.missing-package",
        f"the filter {kind} needs {package}, which is not installed",
        where="recipe: data.curate.filters",
        fix=f'pip install "longspan[curate]", or take {kind} out of the filters',
    )
