"""Where strategies try candidates: every result is a line on disk, found again and counted, never measured twice."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from longspan.search.judge import Candidate, Judge, Sheet, Slope
from longspan.search.space import Space
from longspan.utils.lines import Lines
from longspan.utils.values import canonical_sha256


class Spent(Exception):
    """The budget of a strategy is used up; what it tried so far stands."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a strategy may use: candidates on the first sheet, and seconds of the machine that measures them.

    With `evaluations` alone a search depends on its seed only; `seconds` also depend on the machine.
    """

    evaluations: int
    seconds: float | None = None


@dataclass(kw_only=True)
class Desk:
    """One strategy at work on one space, with one seed. A line on disk is a result; asking again finds it there.

    A strategy whose questions depend on the seed and on answers alone therefore goes on after a kill as if nothing had
    happened: it asks the same again, and is answered from the file.
    """

    space: Space
    judge: Judge
    lines: Lines
    budget: Budget
    seed: int
    sheet: Sheet  # on which strategies explore
    poll: Callable[[], None]  # raises `Interrupted` when the search should stop
    told: Callable[["Desk"], None]  # hears of every measured group
    tried: dict[str, tuple[Candidate, float]] = field(default_factory=dict)  # explored, in order
    seconds: float = 0.0  # that measuring took in all, kills included
    evaluations: int = 0  # candidates measured on a sheet, all sheets counted
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for row in self.lines.rows:
            if row.get("judge") == self.judge.identity:
                self._known[row["key"]] = row

    @property
    def best(self) -> float:
        """The lowest loss explored so far."""
        return min((loss for _, loss in self.tried.values()), default=math.inf)

    def losses(self, candidates: Sequence[Candidate]) -> list[float]:
        """Losses on the exploring sheet. Raises `Spent` once the budget is used up; what was measured stands."""
        keys = [_key(candidate, self.sheet) for candidate in candidates]
        fresh = {key: c for key, c in zip(keys, candidates, strict=True) if key not in self.tried}
        names, step = list(fresh), self.judge.together(self.sheet)
        while names:
            room = self._room()
            group, names = names[: min(step, room)], names[min(step, room) :]
            measured = self._measured([fresh[key] for key in group], self.sheet)
            self.tried |= {key: (fresh[key], loss) for key, loss in zip(group, measured, strict=True)}
            self.told(self)
        return [self.tried[key][1] for key in keys]

    def slope(self, candidate: Candidate) -> Slope:
        """Loss and gradient on the exploring sheet; it counts as one evaluation. Raises `Spent` as `losses` does."""
        self._room()
        key = _key(candidate, self.sheet, "slope")
        row = self._known.get(key)
        if row is None:
            self.poll()
            start = time.monotonic()
            found = self.judge.slope(self.space.frequencies(candidate.method), self.sheet)
            values = {"factors": list(found.by_log_factors), "attention": found.by_log_attention}
            row = self._line(key, candidate, self.sheet, found.loss, time.monotonic() - start) | {"slope": values}
            self._keep([row])
        self._count(row)
        slope = row["slope"]
        loss = _loss(row)
        self.tried[key] = candidate, loss
        self.told(self)
        return Slope(loss=loss, by_log_factors=tuple(slope["factors"]), by_log_attention=slope["attention"])

    def on_sheet(self, candidates: Sequence[Candidate], sheet: Sheet) -> list[float]:
        """Losses on another sheet, outside the budget, for the finals."""
        found: list[float] = []
        step = self.judge.together(sheet)
        for first in range(0, len(candidates), step):
            found += self._measured(candidates[first : first + step], sheet)
            self.told(self)
        return found

    def seconds_of(self, sheet: Sheet) -> float:
        """What one candidate took on a sheet, in the mean of those measured; 0 when none was."""
        spent = [row["seconds"] for row in self._known.values() if row["sheet"] == sheet.name]
        return sum(spent) / len(spent) if spent else 0.0

    def _room(self) -> int:
        """How many candidates may still be explored; at least one, or `Spent`."""
        room = self.budget.evaluations - len(self.tried)
        late = self.budget.seconds is not None and self.seconds >= self.budget.seconds
        if room < 1 or late:
            raise Spent
        return room

    def _measured(self, candidates: Sequence[Candidate], sheet: Sheet) -> list[float]:
        keys = [_key(candidate, sheet) for candidate in candidates]
        missing = {key: c for key, c in zip(keys, candidates, strict=True) if key not in self._known}
        if missing:
            self.poll()
            start = time.monotonic()
            sets = [(self.space.frequencies(c.method), c.kept_tokens) for c in missing.values()]
            losses = self.judge.losses(sets, sheet)
            share = (time.monotonic() - start) / len(missing)
            rows = zip(missing.items(), losses, strict=True)
            self._keep([self._line(key, c, sheet, loss, share) for (key, c), loss in rows])
        found = []
        for row in (self._known[key] for key in keys):
            self._count(row)
            found.append(_loss(row))
        return found

    def _line(self, key: str, candidate: Candidate, sheet: Sheet, loss: float, seconds: float) -> dict[str, Any]:
        rope = candidate.method.model_dump(mode="json")
        kept = {"kept_tokens": candidate.kept_tokens} if candidate.kept_tokens else {}
        value = loss if math.isfinite(loss) else None  # JSON has no word for NaN
        name = {"key": key, "judge": self.judge.identity, "sheet": sheet.name}
        return {**name, "rope": rope, **kept, "loss": value, "seconds": seconds}

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        self.lines.append(*rows)
        self._known |= {row["key"]: row for row in rows}

    def _count(self, row: dict[str, Any]) -> None:
        if row["key"] not in self._counted:
            self._counted.add(row["key"])
            self.seconds += row["seconds"]
            self.evaluations += 1


def _key(candidate: Candidate, sheet: Sheet, what: str = "loss") -> str:
    rope = candidate.method.model_dump(mode="json")
    return canonical_sha256([what, rope, candidate.kept_tokens, sheet.name])[:32]


def _loss(row: dict[str, Any]) -> float:
    return math.inf if row["loss"] is None else float(row["loss"])
