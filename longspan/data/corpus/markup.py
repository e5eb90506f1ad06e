"""The text of an HTML page: what a reader of the page would read, without its furniture. Standard library only."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())  # noqa: SIM905
FURNITURE = frozenset("script style nav head footer svg form button template noscript".split())  # noqa: SIM905
BLOCK = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "br",
        "dd",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "tr",
        "ul",
    ]
)
APART = frozenset(("h1", "h2", "h3", "p", "pre", "table"))  # with a blank line before them
CELL = frozenset(("td", "th"))
# Classes and roles of divisions that are furniture; `wy-grid-for-nav` is a page that has some.
SIDE = re.compile(r"(\w+-)?(nav|navbar|navigation|navheader|navfooter)|[\w-]*sidebar[\w-]*")
LINK_MARK = re.compile(r"\b(headerlink|anchor|doc-anchor)\b")


@dataclass
class _Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["_Node | str"] = field(default_factory=list)

    def has_class(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()

    @property
    def furniture(self) -> bool:
        if self.tag in FURNITURE:
            return True
        named = f"{self.attributes.get('class', '')} {self.attributes.get('role', '')}"
        if self.tag == "a":
            return bool(LINK_MARK.search(named))
        return self.tag == "div" and any(SIDE.fullmatch(word) for word in named.split())

    def all(self) -> Iterator["_Node"]:
        """This node and all below it, in the order of the page, furniture left out."""
        stack: list[_Node | str] = [self]
        while stack:
            node = stack.pop()
            if isinstance(node, _Node) and not node.furniture:
                yield node
                stack += reversed(node.children)


# The first of these that a page has is its text.
MAIN: tuple[Callable[[_Node], bool], ...] = (
    lambda node: node.tag == "div" and node.attributes.get("role") == "main",
    lambda node: node.tag == "main",
    lambda node: node.tag == "div" and node.has_class("body"),
    lambda node: node.tag == "article",
    lambda node: node.tag == "div" and node.attributes.get("id") == "content",
    lambda node: node.tag == "div" and node.has_class("contents"),
    lambda node: node.tag == "body",
)


class _Tree(HTMLParser):
    """A page as a tree. What is not closed ends with what holds it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = _Node("page")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        if tag in ("p", "li", "dt", "dd", "tr", "td", "th") and self._open[-1].tag == tag:
            self._open.pop()  # their end may be left out
        node = _Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that is closed at once."""
        self._open[-1].children.append(_Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """Close the element, and what is still open inside it; an end without a beginning is nothing."""
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        """Text."""
        self._open[-1].children.append(data)


def page_text(page: str) -> str:
    """The text of a page: its main part, blocks on lines of their own, cells apart by tabs."""
    tree = _Tree()
    tree.feed(page)
    tree.close()
    nodes = list(tree.root.all())
    found = next((node for fits in MAIN for node in nodes if fits(node)), tree.root)
    parts: list[str] = []
    stack: list[tuple[_Node | str, bool]] = [(found, False)]
    while stack:
        node, verbatim = stack.pop()
        if isinstance(node, str):
            parts.append(node if verbatim else re.sub(r"\s+", " ", node))
            continue
        if node.furniture:
            continue
        before, after = _around(node.tag)
        parts.append(before)
        stack.append((after, True))
        stack += [(child, verbatim or node.tag == "pre") for child in reversed(node.children)]
    text = "".join(parts)
    text = re.sub(r"\n[ ]+(?=\S)", lambda match: match.group(0) if len(match.group(0)) > 2 else "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _around(tag: str) -> tuple[str, str]:
    if tag in APART:
        return "\n\n", "\n"
    if tag in BLOCK:
        return "\n", "\n"
    return "", "\t" if tag in CELL else ""
