"""Intervals for counts and means, comparisons and what follows from them, in plain Python."""

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

Z95 = 1.959963984540054  # standard normal quantile at 0.975
RESAMPLES = 2000

Group = tuple[float, float]  # of one cluster: its sum (hits) and its count (trials)


def wilson(hits: float, trials: float) -> tuple[float, float]:
    """Wilson 95 % interval of a proportion; (0, 1) when nothing was tried.

    Source: Wilson 1927, as in Brown, Cai and DasGupta 2001, section 3.1.1.
    """
    if trials == 0:
        return 0.0, 1.0
    share = hits / trials
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def intraclass(groups: Sequence[Group]) -> float:
    """How alike the trials of one cluster are: 0 for independent ones, 1 when a cluster is all hits or none.

    The analysis-of-variance estimator for proportions, cut to [0, 1]; 0 where nothing varies. Source: Fleiss 1981.
    """
    trials, clusters = sum(n for _, n in groups), len(groups)
    if clusters < 2 or trials <= clusters:
        return 0.0
    share = sum(hits for hits, _ in groups) / trials
    between = sum(n * (hits / n - share) ** 2 for hits, n in groups) / (clusters - 1)
    within = sum(hits * (1 - hits / n) for hits, n in groups) / (trials - clusters)
    size = (trials - sum(n * n for _, n in groups) / trials) / (clusters - 1)
    total = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0


def effective_trials(groups: Sequence[Group], alike: float) -> float:
    """How many independent trials the trials of some clusters are worth, when their likeness is `alike`.

    Source: the design effect 1 + (n − 1) ρ of Kish 1965, cluster by cluster.
    """
    return sum(n / (1 + (n - 1) * alike) for _, n in groups if n)


@functools.cache
def t_quantile(freedom: int) -> float:
    """The quantile of Student's t at 0.975, to six digits, by bisection on Simpson's rule."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def below(x: float, steps: int = 2000) -> float:
        width = x / steps
        heights = [scale * (1 + (i * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps + 1)]
        area: float = width / 3 * (heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
        return 0.5 + area

    low, high = 0.0, 2.0
    while below(high) < 0.975:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return (low + high) / 2


def bootstrap(
    groups: Sequence[Group], *, statistic: Callable[[Sequence[Group]], float] | None = None, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of a mean over clusters (or of another statistic of them), by drawing whole clusters again.

    The percentiles are taken further out, as Student's t asks for so few clusters: few would else give intervals that
    are too short. The same groups give the same interval. Raises `ValueError` for fewer than two clusters. Source: the
    expanded percentile interval of Hesterberg 2015, section 4.
    """
    if len(groups) < 2:
        raise ValueError("a bootstrap needs two clusters")
    value, draw, clusters = statistic or mean, random.Random(0), len(groups)
    found = sorted(value([groups[draw.randrange(clusters)] for _ in range(clusters)]) for _ in range(resamples))
    tail = NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * t_quantile(clusters - 1))
    place = tail * (resamples - 1)
    return _at(found, place), _at(found, resamples - 1 - place)


def mean(groups: Sequence[Group]) -> float:
    """The mean over all trials of some clusters."""
    trials = sum(n for _, n in groups)
    return sum(total for total, _ in groups) / trials if trials else math.nan


def score_interval(groups: Sequence[Group]) -> tuple[float, float]:
    """95 % interval of a mean of scores between 0 and 1 over clusters.

    The bootstrap; where it has nothing to go by, because all clusters agree or there is only one, Wilson's interval of
    the trials, taken as independent ones of the likeness that the clusters show.
    """
    trials = sum(n for _, n in groups)
    if len(groups) > 1 and len({total / n for total, n in groups if n}) > 1:
        low, high = bootstrap(groups)
        return max(0.0, low), min(1.0, high)
    worth = effective_trials(groups, intraclass(groups)) if len(groups) > 1 else trials
    return wilson(mean(groups) * worth, worth) if trials else (0.0, 1.0)


def paired(first: Mapping[str, Group], second: Mapping[str, Group]) -> tuple[float, float, float]:
    """Mean of the second minus mean of the first over the clusters that both have, and its 95 % interval.

    Raises `ValueError` when they share fewer than two clusters, or one differs in its trials.
    """
    both = [(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    if any(a[1] != b[1] for a, b in both):
        raise ValueError("a cluster was asked other questions by the two")
    changes = [(b[0] - a[0], a[1]) for a, b in both]
    low, high = bootstrap(changes)
    return mean(changes), low, high


def paired_p(first: Mapping[str, Group], second: Mapping[str, Group], *, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of no difference: how often random signs of the clusters' changes give as large a one.

    All signs are tried where there are no more than `resamples` of them.
    """
    changes = [second[key][0] - first[key][0] for key in sorted(first.keys() & second.keys())]
    changes = [change for change in changes if change]
    whole, count = abs(sum(changes)) - 1e-12, len(changes)
    if 2**count <= resamples:
        sums = [sum(c if bits >> i & 1 else -c for i, c in enumerate(changes)) for bits in range(2**count)]
        return sum(abs(total) >= whole for total in sums) / len(sums)
    draw = random.Random(0)
    hits = sum(abs(sum(c if draw.random() < 0.5 else -c for c in changes)) >= whole for _ in range(resamples))
    return (hits + 1) / (resamples + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values of several tests, raised so that all may be read at once. Source: Holm 1979."""
    ordered, worst, found = sorted(p_values, key=p_values.__getitem__), 0.0, {}
    for place, name in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - place) * p_values[name]))
        found[name] = worst
    return {name: found[name] for name in p_values}


def effective_length(intervals: Mapping[int, tuple[float, float]], threshold: float) -> tuple[int | None, int | None]:
    """The length that is certified and the one that is not refuted, None where there is none.

    Certified: the longest whose lower bound, and that of every shorter tested length, reaches the threshold. Not
    refuted: the longest whose upper bound reaches it.
    """
    certified = possible = None
    sure = True
    for length in sorted(intervals):
        low, high = intervals[length]
        sure = sure and low >= threshold
        certified, possible = (length if sure else certified), (length if high >= threshold else possible)
    return certified, possible


def detectable(trials: float, *, share: float = 0.5) -> float:
    """The smallest difference of two rates that so many independent trials each find with 80 % power at 5 %."""
    if trials <= 0:
        return math.inf
    return (Z95 + NormalDist().inv_cdf(0.8)) * math.sqrt(2 * share * (1 - share) / trials)


def _at(values: Sequence[float], place: float) -> float:
    """The value at a place between two ranks."""
    low = min(max(math.floor(place), 0), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (min(max(place, 0.0), len(values) - 1.0) - low)
