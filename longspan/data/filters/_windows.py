"""Long documents are judged by windows: rules of web pages would drop whole books for a few tables."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from longspan.data.filters.base import Judge, Verdict

LEAST_WORDS = 50  # of fewer, shares say nothing


def judged_by_windows(broken: Callable[[str], str], *, window_words: int, most_failing: float) -> Judge:
    """Drops documents of whose windows more than the share `most_failing` break a rule.

    `broken` names the rule that a window breaks, or nothing; the reason is what most windows broke.
    """

    def judged(_id: str, text: str) -> Verdict:
        found = [broken(window) for window in windows(text, window_words)]
        failing = Counter(rule for rule in found if rule)
        share = failing.total() / len(found) if found else 0.0
        if share > most_failing:
            most = max(sorted(failing), key=failing.__getitem__)
            return Verdict(text=None, reason=most, scores={"failing": share})
        return Verdict(text=text, scores={"failing": share})

    return judged


def windows(text: str, window_words: int) -> list[str]:
    """The text in pieces of `window_words` words, cut at line ends where there are any; the last may be shorter."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    found: list[str] = []
    held: list[str] = []
    count = 0
    for line in lines:
        for piece in _long_line(line, window_words):
            held.append(piece)
            count += len(piece.split())
            if count >= window_words:
                found.append("".join(held))
                held, count = [], 0
    if held and (count >= LEAST_WORDS or not found):
        found.append("".join(held))
    return found


def _long_line(line: str, window_words: int) -> Iterable[str]:
    if len(line) < 2 * window_words:  # a word and its space have two characters at least
        return (line,)
    ends = [match.end() for match in re.finditer(r"\S+\s*", line)][window_words - 1 :: window_words]
    starts = [0, *ends]
    return [line[a:b] for a, b in zip(starts, [*ends, len(line)], strict=True) if a < b]
