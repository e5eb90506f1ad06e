"""The colours of the heat maps: lightness alone carries the number, so that every eye reads them."""

import math

LEVELS = 20  # steps of five per cent
# From "never" to "always". Lightness falls (light page) or rises (dark page) all along.
LIGHT = ("#f5eee2", "#bddacb", "#56a7ae", "#165a7a")
DARK = ("#262c34", "#28505f", "#3e929c", "#a5e3d0")
INKS = ("#ffffff", "#060d12")

# OKLab, Björn Ottosson 2020: equal steps in it look equal.
_TO_CONE = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_FROM_LAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_FROM_CONE = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)
Triple = tuple[float, float, float]


def level(hits: int, trials: int) -> int:
    """The step of the scale, 0 to `LEVELS`; the ends are kept for "none" and "all"."""
    if hits == 0:
        return 0
    return LEVELS if hits == trials else min(LEVELS - 1, max(1, round(LEVELS * hits / trials)))


def shades(anchors: tuple[str, ...]) -> tuple[str, ...]:
    """The `LEVELS` + 1 colours between the anchors, interpolated in OKLab."""
    labs = [_to_lab(anchor) for anchor in anchors]
    found = []
    for step in range(LEVELS + 1):
        place = step / LEVELS * (len(labs) - 1)
        left = min(int(place), len(labs) - 2)
        share = place - left
        a, b = labs[left], labs[left + 1]
        found.append(_to_hex((_mix(a[0], b[0], share), _mix(a[1], b[1], share), _mix(a[2], b[2], share))))
    return tuple(found)


def ink(fill: str) -> str:
    """The text colour, of `INKS`, that stands out most on `fill`."""
    return max(INKS, key=lambda colour: contrast(colour, fill))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21. Source: WCAG 2.2, relative luminance."""
    low, high = sorted(
        sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(x), strict=True)) for x in (first, second)
    )
    return (high + 0.05) / (low + 0.05)


def css() -> str:
    """Rules for `.heat-0 … .heat-20` (fills) and `.on-0 … .on-20` (text on them), light and dark."""

    def rules(anchors: tuple[str, ...]) -> str:
        return "\n".join(
            f".heat-{i} {{ fill: {shade} }} .on-{i} {{ fill: {ink(shade)} }}" for i, shade in enumerate(shades(anchors))
        )

    return f"{rules(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{rules(DARK)}\n}}"


def _mix(a: float, b: float, share: float) -> float:
    return a + (b - a) * share


def _times(matrix: tuple[Triple, Triple, Triple], vector: Triple) -> Triple:
    x, y, z = (sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix)
    return x, y, z


def _linear(colour: str) -> Triple:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return _decode(r), _decode(g), _decode(b)


def _decode(c: float) -> float:
    return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4


def _to_lab(colour: str) -> Triple:
    x, y, z = _times(_TO_CONE, _linear(colour))
    return _times(_TO_LAB, (math.cbrt(x), math.cbrt(y), math.cbrt(z)))


def _to_hex(lab: Triple) -> str:
    x, y, z = _times(_FROM_LAB, lab)
    linear = _times(_FROM_CONE, (x**3, y**3, z**3))
    encoded = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in (max(0.0, c) for c in linear))
    return "#" + "".join(f"{round(255 * min(1.0, c)):02x}" for c in encoded)
