"""Intervals for counts, in plain Python."""

import math

Z95 = 1.959963984540054  # standard normal quantile at 0.975


def wilson(hits: int, trials: int) -> tuple[float, float]:
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
