"""The page shows the numbers of the records, and nothing that comes from outside becomes markup."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import evaluation, report, step

from longspan.records import Cell
from longspan.report.page import ReportData, write_report

HOSTILE = (
    """<script>alert(1)</script>"'><img src=x onerror=alert(2)></style></title></svg><a href=javascript:alert(3)>&lt;"""
)


class Page(HTMLParser):
    """Every element with its attributes, and every piece of text, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def after(self, label: str) -> str:
        """The text that follows `label`."""
        return self.texts[self.texts.index(label) + 1]


@pytest.fixture
def page_of(tmp_path: Path):
    def read(data: ReportData) -> Page:
        write_report(tmp_path / "report.html", data)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return read


def disguised(text: str) -> ReportData:
    """The sample run with `text` in every place that takes outside text."""

    def renamed(name: str, **numbers: float):
        run = evaluation(name + text, hits=3, nll=4.0)
        return dataclasses.replace(run, cells=tuple(dataclasses.replace(c, probe="p" + text) for c in run.cells))

    return report(
        title="t" + text,
        recipe={"k" + text: {"deep": ["v" + text]}},
        before=renamed("b"),
        after=renamed("a"),
        model={"m" + text: "n" + text},
        export={"e" + text: "f" + text},
        seconds={"s" + text: 1.0},
        versions={"w" + text: "x" + text},
        notes=("y" + text,),
    )


def test_outside_text_adds_no_element_and_no_attribute(page_of) -> None:
    hostile, plain = page_of(disguised(HOSTILE)), page_of(disguised(""))
    assert hostile.elements == plain.elements
    assert "t" + HOSTILE in hostile.texts
    assert "n" + HOSTILE in hostile.texts


def test_page_asks_for_nothing_and_runs_nothing(page_of) -> None:
    page = page_of(report())
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "image", "use", "base", "form", "video", "audio"}
    names = {name for name, _ in page.values}
    assert not names & {"src", "srcset", "xlink:href", "action", "poster", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert [value for name, value in page.values if name == "href"] == ["data:,"]
    assert not [value for _, value in page.values if "://" in value]
    policy = next(value for name, value in page.values if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_style_sheet_names_no_outside_address(page_of) -> None:
    style = next(text for text in page_of(report()).texts if ".tiles" in text)
    assert "@import" not in style
    assert "url(" not in style
    assert "//" not in style


def test_numbers_are_those_of_the_records(page_of) -> None:
    page = page_of(report())
    # 27 of 30 over three depths; Wilson's interval by hand: centre 0.8546, half width 0.1108.
    assert page.texts.count("27/30 [74–97]") == 3
    assert page.texts.count("0/30 [0–12]") == 3
    assert page.after("Needles found at 8,192") == "0 % →"
    assert "27 of 30 [74–97 %]" in page.texts
    assert "before, positions 512 to 8,191: 7.1250 nats over 7,680 tokens" in page.texts
    assert "after, positions 0 to 63: 3.2500 nats over 64 tokens" in page.texts
    assert page.after("together") == "2 min 02 s"
    assert page.after("largest logit difference") == "3.2e-06"
    assert page.after("torch") == "2.13.0"
    assert json.loads(page.texts[-1]) == report().recipe


def test_a_run_without_anything_measured_still_has_a_page(page_of) -> None:
    page = page_of(ReportData(title="nothing yet", trained_length=512, length=8192, recipe={}))
    headings = [text for text in page.texts if text in {"Recipe", "Training", "Loss by position", "Time and versions"}]
    assert headings == ["Recipe"]


def test_evaluation_alone_is_shown_without_a_before(page_of) -> None:
    page = page_of(report(before=None, metrics=(), others=(evaluation("rival", hits=5, nll=4.5),)))
    assert page.after("Needles found at 8,192") == "90 %"
    assert "15/30 [33–67]" in page.texts
    assert "passkey, rival" in page.texts


def test_probe_that_ran_once_has_one_map(page_of) -> None:
    only = Cell(probe="needle", length=512, depth=0.5, hits=1, trials=4)
    after = evaluation("after", hits=9, nll=3.25)
    page = page_of(report(after=dataclasses.replace(after, cells=(*after.cells, only))))
    assert "needle, after" in page.texts
    assert "needle, before" not in page.texts


def test_text_that_no_document_may_hold_is_replaced(page_of, tmp_path: Path) -> None:
    page_of(report(title="a\x00b\x1bc\ud800d", notes=("e\x0bf",)))
    source = (tmp_path / "report.html").read_bytes().decode("utf-8")
    assert "<h1>a\ufffdb\ufffdc?d</h1>" in source
    assert not [character for character in source if ord(character) < 32 and character != "\n"]


def test_long_run_makes_a_small_page(tmp_path: Path) -> None:
    many = tuple(step(i, stage=0) for i in range(1, 50_001))
    write_report(tmp_path / "report.html", report(metrics=many))
    assert (tmp_path / "report.html").stat().st_size < 200_000
