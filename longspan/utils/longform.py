"""Scores of long output without a judge: lengths against what was asked, repetition, sections with their code words."""

import gzip
import itertools
import re
from collections.abc import Mapping, Sequence

# Three papers, three counters; a published score uses its own. CJK signs count one each.
_CJK = r"[\u4e00-\u9fff]"
_CJK_SIGNS = r"[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]"


def words_tlg(text: str) -> int:
    """Words as Target Length Generation counts them (arXiv:2409.18943): runs of letters, digits and underscores."""
    return len(re.findall(r"\w+", text))


def words_longwriter(text: str) -> int:
    """Words as LongBench-Write counts them (arXiv:2408.07055): CJK characters and runs of Latin letters."""
    return len(re.findall(_CJK, text)) + len(re.findall(r"[a-zA-Z]+", text))


def words_longen(text: str) -> int:
    """Words as LonGen counts them (Self-Lengthen): CJK characters and signs, and what spaces part."""
    return len(re.findall(_CJK_SIGNS, text)) + len(re.sub(_CJK_SIGNS, " ", text).split())


def length_score(wanted: int, written: int) -> float:
    """LongBench-Write's S_l, 0 to 100: 0 from four times and from a third of what was asked. Nothing written is 0."""
    if written == 0:
        return 0.0
    if written > wanted:
        return 100 * max(0.0, 1 - (written / wanted - 1) / 3)
    return 100 * max(0.0, 1 - (wanted / written - 1) / 2)


def longen_score(low: int, high: int, written: int) -> float:
    """LonGen's score, 0 to 1: 1 inside [low, high], falling to 0 at half of `low` and at one and a half of `high`."""
    if written < low:
        return max(0.0, 2 * written / low - 1)
    return 1.0 if written <= high else max(0.0, 3 - 2 * written / high)


_PRECISE = {10: 10, 30: 10, 50: 10, 80: 10, 150: 20, 300: 20, 500: 50, 700: 70}
_FLEXIBLE = {10: 10, 30: 10, 50: 10, 80: 20, 150: 50, 300: 100, 500: 100, 700: 100}


def tlg_match(wanted: int, written: int, *, flexible: bool) -> bool:
    """Whether a reply meets Target Length Generation's band: above its lower end, up to its upper one.

    Levels beyond 700 words, and the ladder above the paper's, take a tenth of the target (a fifth if `flexible`).
    """
    band = (_FLEXIBLE if flexible else _PRECISE).get(wanted, wanted // (5 if flexible else 10))
    return wanted - band < written <= wanted + band


def distinct(text: str, n: int) -> float:
    """Different n-grams of words over all of them; 1 for a text too short to have any."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def worst_distinct(text: str, n: int, *, window: int = 250) -> float:
    """The least `distinct` of any window of so many words, each half over the one before."""
    words = text.split()
    starts = range(0, max(1, len(words) - window // 2), window // 2)
    return min(distinct(" ".join(words[start : start + window]), n) for start in starts)


def loops(text: str) -> bool:
    """Whether the second half of a text says the same again and again: less than half of its runs of 3 words differ."""
    words = text.split()
    return len(words) >= 20 and distinct(" ".join(words[len(words) // 2 :]), 3) < 0.5


def packed_ratio(text: str) -> float:
    """Bytes after gzip over bytes before: far below 0.3 for a text that repeats itself."""
    raw = text.encode()
    return len(gzip.compress(raw, mtime=0)) / len(raw) if raw else 1.0


def longest_repeat(text: str) -> int:
    """Words of the longest run of words that comes twice (the two may overlap), by a suffix list over words."""
    words = text.split()
    order = sorted(range(len(words)), key=lambda at: words[at : at + 200])
    best = 0
    for first, second in itertools.pairwise(order):
        same = 0
        while same < 200 and max(first, second) + same < len(words) and words[first + same] == words[second + same]:
            same += 1
        best = max(best, same)
    return best


def sections_of(text: str, kind: str) -> dict[int, str]:
    """Numbered sections such as `Floor 12: …` by number; of two with one number the first counts."""
    found: dict[int, str] = {}
    starts = list(re.finditer(rf"(?mi)^\W*{re.escape(kind)} (\d+)\b", text))
    for match, after in zip(starts, [*starts[1:], None][: len(starts)], strict=True):
        found.setdefault(int(match[1]), text[match.end() : after.start() if after else len(text)])
    return found


def section_scores(text: str, *, kind: str, count: int, codes: Mapping[int, Sequence[str]]) -> dict[str, float]:
    """How a text of `count` numbered sections kept to its plan, after the rates of LongGenBench (arXiv:2409.02076).

    A check is met when the code word stands in its section and in none that it does not belong to. `completion`:
    sections that are there. `stic_1`: met checks of those whose section is there. `stic_2`: of all. `weighted`: the
    product of completion and `stic_2`.
    """
    sections = sections_of(text, kind)
    there = [number for number in range(1, count + 1) if number in sections]
    met = due = total = 0
    for number, words in codes.items():
        for word in words:
            total += 1
            if number not in sections:
                continue
            due += 1
            elsewhere = any(word in body for other, body in sections.items() if word not in codes.get(other, ()))
            met += word in sections[number] and not elsewhere
    completion, stic_2 = len(there) / count, met / total if total else 0.0
    stic_1 = met / due if due else 0.0
    return {"completion": completion, "stic_1": stic_1, "stic_2": stic_2, "weighted": completion * stic_2}
