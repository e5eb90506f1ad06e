"""The one place where SVG markup is made, and so the one place where it is escaped."""

from markupsafe import Markup, escape

# Control characters have no place in HTML or XML; a file name or a model's text may still hold them.
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), 127) if chr(code) not in "\t\n"}


def clean(text: str) -> str:
    """The text with control characters and lone surrogates replaced: what is left is valid in HTML and in XML."""
    return text.translate(_CONTROL).encode("utf-8", "replace").decode("utf-8")


def element(name: str, *children: str, **attributes: object) -> Markup:
    """One SVG element; text children and attribute values are escaped, `None` leaves an attribute out.

    `class_` becomes `class`, `text_anchor` becomes `text-anchor`, floats keep two decimals.
    """
    parts = [
        f'{key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    head = " ".join([name, *parts])
    body = Markup("").join(Markup(child) if isinstance(child, Markup) else clean(child) for child in children)
    return Markup(f"<{head}>{body}</{name}>")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return clean(str(value))


def text(x: float, y: float, content: str, **attributes: object) -> Markup:
    """A line of text at (x, y)."""
    return element("text", content, x=float(x), y=float(y), **attributes)


def svg(width: float, height: float, *children: str, label: str, **attributes: object) -> Markup:
    """An image of the given size in pixels, free to be scaled; `label` is what a screen reader says."""
    box = f"0 0 {_value(width)} {_value(height)}"
    size = {"viewBox": box, "width": width, "height": height}
    return element("svg", *children, **size, role="img", aria_label=label, **attributes)
