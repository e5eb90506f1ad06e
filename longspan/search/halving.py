"""Successive halving: the best of a search meet on full texts, fewer and fewer on more and more."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from longspan.rope.frequencies import Method
from longspan.search.desk import Desk
from longspan.search.judge import Candidate, Sheet


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found: the method, its mean loss on `sheets` full texts (0: never left the first sheet).

    `kept_tokens` is the n̂ it was found with; the loss on full texts is that without it.
    """

    method: Method
    loss: float
    sheets: int
    kept_tokens: int = 0


def halve(desk: Desk, rounds: Sequence[tuple[int, int]]) -> Found:
    """The winner of all that was explored. Round (keep, texts): the best `keep` are measured on `texts` full texts.

    Source: Jamieson and Talwalkar 2016 (arXiv:1502.07943), with rounds written out. Needs at least one explored
    candidate. Where only one was explored there is nothing to choose from and nothing is measured.
    """
    ranked = sorted(desk.tried.values(), key=lambda pair: pair[1])
    pool: dict[str, tuple[Candidate, int]] = {}
    for candidate, _ in ranked:
        pool.setdefault(candidate.method.model_dump_json(), (Candidate(method=candidate.method), candidate.kept_tokens))
    contest = list(pool.values())
    loss, sheets = ranked[0][1], 0
    if len(contest) > 1:
        for keep, texts in rounds:
            contest, sheets = contest[:keep], texts
            candidates = [candidate for candidate, _ in contest]
            columns = [desk.on_sheet(candidates, Sheet(kind="full", number=number)) for number in range(texts)]
            means = [fmean(losses) for losses in zip(*columns, strict=True)]
            order = sorted(range(len(contest)), key=means.__getitem__)
            contest, loss = [contest[index] for index in order], means[order[0]]
    winner, kept = contest[0]
    return Found(method=winner.method, loss=loss, sheets=sheets, kept_tokens=kept)
