"""Numbers as people read them: lengths, shares, durations."""

import math

from longspan.utils.stats import wilson

DASH = "\N{EN DASH}"
_BINARY = ((2**30, "G"), (2**20, "M"), (2**10, "K"))
_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float) -> str:
    """A whole number with thousands separated: `8,192`."""
    return f"{value:,.0f}"


def length(tokens: int) -> str:
    """A context length, short: `512`, `8K` = 8,192, `1M` = 1,048,576; written out when it is no whole multiple."""
    for unit, letter in _BINARY:
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit:,}{letter}"
    return count(tokens)


def amount(value: float) -> str:
    """A quantity in powers of a thousand, three digits: `950`, `1.5k`, `2.04M`."""
    for unit, letter in _DECIMAL:
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def percent(hits: int, trials: int) -> str:
    """A rate: `97.5 %`; 0 and 100 % only for none and all; a dash when nothing was tried."""
    if trials == 0:
        return DASH
    if hits in (0, trials):
        return "100 %" if hits else "0 %"
    return f"{min(99.9, max(0.1, 100 * hits / trials)):.3g} %"


def interval(hits: int, trials: int) -> str:
    """The Wilson 95 % interval of a rate, in per cent: `87–100`, outwards to whole per cent."""
    return percents(*wilson(hits, trials))


def percents(low: float, high: float) -> str:
    """An interval of a share in per cent: `87–100`, outwards to whole per cent."""
    # The tiny allowance keeps 100 % of a float that came out as 0.9999999999999999 from becoming 99.
    return f"{math.floor(100 * low + 1e-9)}{DASH}{math.ceil(100 * high - 1e-9)}"


def duration(seconds: float) -> str:
    """A time: `3.4 s`, `8 min 12 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def shown(value: object) -> str:
    """A value of a table of facts: `2,143,232`, `3.2e-06`, `yes`, a dash for None, other things as they are."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
