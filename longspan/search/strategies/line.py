"""A line search over a method of one number: three points, then the vertex of the parabola through the best three."""

from typing import Literal

from pydantic import Field

from longspan.search.desk import Budget, Desk
from longspan.search.families import FAMILIES
from longspan.search.judge import Candidate
from longspan.search.strategies.base import Seconds, Strategy

CLOSE = 0.01  # of the box: nearer points tell nothing new


class Line(Strategy):
    """How far theta should grow: the logarithm of its growth at half, one and two times the formula's, then refined.

    `family` "ntk" stretches NTK scaling, "theta_law" the theta law. Both end in a theta, so each finds what the other
    would, from another start. The bracket is halved where no parabola opens upwards.
    """

    kind: Literal["line"] = "line"
    family: Literal["ntk", "theta_law"] = "theta_law"
    evaluations: int = Field(default=8, ge=3)
    seconds: Seconds | None = None

    @property
    def name(self) -> str:
        """The family."""
        return self.family

    @property
    def tunes_a_formula(self) -> bool:
        """Theta alone."""
        return True

    @property
    def budget(self) -> Budget:
        """Its evaluations and seconds."""
        return Budget(evaluations=self.evaluations, seconds=self.seconds)

    def run(self, desk: Desk) -> None:
        """Three points, then one at a time between the neighbours of the best, until they are close."""
        family = FAMILIES[self.family](desk.space)
        points = [place for (place,) in family.starts]
        losses = dict(zip(points, desk.losses([Candidate(method=family.method((p,))) for p in points]), strict=True))
        while (place := _next(losses)) is not None:
            (losses[place],) = desk.losses([Candidate(method=family.method((place,)))])


def _next(losses: dict[float, float]) -> float | None:
    """Where to look next, within 0 … 1; None when the best point's surroundings are known."""
    points = sorted(losses)
    best = min(points, key=losses.__getitem__)
    index = points.index(best)
    if index == 0 or index == len(points) - 1:  # the best is at an end: go on beyond it
        step = points[1] - points[0] if index == 0 else points[-2] - points[-1]
        beyond = min(1.0, max(0.0, best - step))
        return beyond if abs(beyond - best) > CLOSE else None
    left, right = points[index - 1], points[index + 1]
    place = _vertex((left, losses[left]), (best, losses[best]), (right, losses[right]))
    if place is None or min(abs(place - known) for known in points) < CLOSE:
        wide = left if best - left > right - best else right
        place = (best + wide) / 2
        return place if abs(place - best) > CLOSE else None
    return place


def _vertex(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float | None:
    """The lowest point of the parabola through three points, b the middle and lowest; None without one."""
    left, right = b[0] - a[0], b[0] - c[0]
    up, down = left * (b[1] - c[1]), right * (b[1] - a[1])
    if not abs(up - down) > 0:
        return None
    place = b[0] - 0.5 * (left * up - right * down) / (up - down)
    return place if a[0] < place < c[0] else None
