"""Ids piece by piece equal the ids of one call; what cannot be done so is refused."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from longspan.data import tokenize
from longspan.data.tokenize import (
    UncuttableText,
    check_tokenizer,
    cut_rule,
    encode_document,
    for_documents,
    load_tokenizer,
    plain_encode,
    separator_id,
    train_tokenizer,
)
from longspan.utils.errors import DataError

WORDS = [
    "harbour",
    "lantern",
    "seventeen",
    "quiet",
    "stones",
    "toward",
    "morning",
    "river",
    "glass",
    "window",
    "copper",
    "garden",
]
ALPHABETS = [
    "abcdefgh  \n",
    "ab1234567890 ",
    "xy .,;:!?'\"-_()[]\n",
    " \t\r\n\u00a0\u2003a",
    "\u4f60\u597d\u4e16\u754c\u3002\uff0c \n",
    "\U0001f600\U0001f468\u200d\u2764\ufe0f e\u0301\u0301",
]
LLAMA3 = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def random_text(rng: random.Random) -> str:
    """Runs out of very different alphabets, so that every kind of border occurs."""
    runs = [
        "".join(rng.choices(rng.choice(ALPHABETS), k=rng.choice([1, 3, 20, 80]))) for _ in range(rng.randrange(1, 25))
    ]
    extra = ["\r\n" * 3, " " * 200, "7" * 300, "<|endoftext|>", "it's we'll ", "word\nword"]
    return "".join(part for run in runs for part in (run, rng.choice(extra) if rng.random() < 0.2 else ""))


def trained(pre: object = None, normalizer: object = None, seed: int = 3) -> Tokenizer:
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if pre:
        tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<unk>", "<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((random_text(rng) for _ in range(200)), trainer)
    return for_documents(tokenizer)


def plain() -> Tokenizer:
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False))


def digits() -> Tokenizer:
    rng = random.Random(5)
    return train_tokenizer((random_text(rng) for _ in range(200)), vocabulary=600)


def llama3() -> Tokenizer:
    split = pre_tokenizers.Split(LLAMA3, "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return trained(pre_tokenizers.Sequence([split, bytes_only]), normalizers.NFC())


def metaspace() -> Tokenizer:
    return trained(pre_tokenizers.Metaspace(prepend_scheme="first"))


def llama2() -> Tokenizer:
    """Merges inside words only, a space put before every input, no pre-tokenizer."""
    tokenizer = trained(pre_tokenizers.Metaspace(prepend_scheme="always"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (plain, "WORDS_AND_LINES"),
        (digits, "WORDS_AND_LINES"),
        (llama3, "WORDS_AND_LINES"),
        (metaspace, "WORDS"),
        (llama2, "WORDS_LESS_SPACE"),
    ],
)
def test_ids_equal_one_call(make, rule) -> None:
    tokenizer = make()
    assert cut_rule(tokenizer) is getattr(tokenize, rule)
    rng = random.Random(11)
    for number in range(300):
        text = random_text(rng)
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        ids = encode_document(text, tokenizer, piece_characters=1 if number % 2 else 17)
        assert ids.tolist() == expected, (number, text)


@pytest.mark.slow
@pytest.mark.parametrize("make", [plain, digits, llama3, metaspace, llama2])
def test_ids_of_ten_thousand_documents_equal_one_call(make) -> None:
    tokenizer, rng = make(), random.Random(13)
    for number in range(10_000):
        text = random_text(rng)
        ids = encode_document(text, tokenizer, piece_characters=1 if number % 2 else 23)
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids, (number, text)


def test_many_pieces_are_really_cut(monkeypatch, tokenizer, make_prose) -> None:
    text = make_prose(50_000)
    seen: list[int] = []

    class Spy:
        def encode_batch_fast(self, pieces, *, add_special_tokens):
            seen.extend(map(len, pieces))
            return tokenizer.encode_batch_fast(pieces, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenize, "cut_rule", lambda _: tokenize.WORDS_AND_LINES)
    ids = encode_document(text, Spy(), piece_characters=1_000)
    assert sum(seen) == len(text)
    assert max(seen) < 1_100
    assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_tokenizer_that_merges_over_spaces_is_refused() -> None:
    tokenizer = trained()
    with pytest.raises(DataError, match="other ids") as error:
        encode_document("a text", tokenizer)
    assert error.value.code == "data.tokenizer-cuts"


def test_users_text_is_checked_too(monkeypatch, tokenizer) -> None:
    monkeypatch.setattr(tokenize, "cut_rule", lambda _: tokenize.CutRule(tokenize.re.compile("(?<=t)h"), 0))
    with pytest.raises(DataError, match="other ids"):
        check_tokenizer(tokenizer, "that thing with the thaw")


@pytest.mark.parametrize("unit", ["a", " ", "7", "\n", "\u4f60", "\U0001f600"])
def test_a_megabyte_without_a_cut_point(unit, tokenizer) -> None:
    with pytest.raises(UncuttableText, match="no space between words"):
        encode_document("start " + unit * 1_000_001, tokenizer)


def test_just_below_a_megabyte_is_one_piece(tokenizer) -> None:
    text = "ab" * 450_000
    assert encode_document(text, tokenizer).tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_time_is_linear(tokenizer, make_prose) -> None:
    """Four times the text takes four times as long; the margin is for a busy machine, a square law would be 16."""
    text = make_prose(800_000)

    def seconds(characters: int) -> float:
        best = float("inf")
        for _ in range(2):
            begin = time.perf_counter()
            encode_document(text[:characters], tokenizer)
            best = min(best, time.perf_counter() - begin)
        return best

    seconds(10_000)
    assert seconds(800_000) < 8 * seconds(200_000)


def test_special_tokens_in_a_text_are_text(tmp_path, tokenizer) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    ids = encode_document("one <|endoftext|> two", loaded)
    assert separator_id(loaded) == 0
    assert 0 not in ids
    assert loaded.decode(ids.tolist()) == "one <|endoftext|> two"
    assert plain_encode(loaded)("one <|endoftext|> two") == ids.tolist()


def test_truncation_and_padding_of_the_file_are_off(tmp_path) -> None:
    tokenizer = train_tokenizer(["some words and more words " * 50], vocabulary=262)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(encode_document("x" * 40, load_tokenizer(tmp_path / "tokenizer.json"))) == 40


def test_missing_and_damaged_tokenizers(tmp_path, tokenizer) -> None:
    with pytest.raises(DataError) as error:
        load_tokenizer(tmp_path)
    assert error.value.code == "data.tokenizer-missing"
    for content in (b"{}", b"\xff\xfe", b'{"model": '):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError) as error:
            load_tokenizer(tmp_path)
        assert error.value.code == "data.tokenizer-damaged"
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path, vocabulary=320).get_vocab_size() == 320
    with pytest.raises(DataError) as error:
        load_tokenizer(tmp_path, vocabulary=319)
    assert error.value.code == "data.tokenizer-vocabulary"


def test_separator_of_other_families() -> None:
    tokenizer = Tokenizer(models.BPE())
    with pytest.raises(DataError, match="ends a document"):
        separator_id(tokenizer)
    tokenizer.add_special_tokens([AddedToken("<x>"), AddedToken("</s>")])
    assert separator_id(tokenizer) == 1


def test_trained_tokenizer_is_what_it_says() -> None:
    texts = [f"the number {n} and the year {n * 7} of {n % 13} towns, {word}\n" for n, word in enumerate(WORDS * 50)]
    tokenizer = train_tokenizer(texts, vocabulary=300)
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.id_to_token(0) == "<|endoftext|>"
    assert tokenizer.to_str() == train_tokenizer(texts, vocabulary=300).to_str()
    assert [tokenizer.decode([i]) for i in plain_encode(tokenizer)("1234")] == ["1", "2", "3", "4"]
    awkward = "\r\n\t caf\u00e9 \U0001f600 \u4f60\u597d 0x1F"
    assert tokenizer.decode(plain_encode(tokenizer)(awkward)) == awkward
    assert tokenizer.encode("the").tokens[0][0] != "\u0120"


@pytest.mark.parametrize(("texts", "vocabulary"), [(["abc"], 100), (["abc"], 5_000)])
def test_vocabulary_that_cannot_be_trained(texts, vocabulary) -> None:
    with pytest.raises(DataError) as error:
        train_tokenizer(texts, vocabulary=vocabulary)
    assert error.value.code == "data.vocabulary"


def test_empty_text_has_no_ids(tokenizer) -> None:
    ids = encode_document("", tokenizer)
    assert (len(ids), ids.dtype) == (0, np.uint32)


def test_the_tokenizer_in_a_folder_or_by_name(tmp_path: Path, tokenizer) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).to_str() == load_tokenizer(tmp_path / "tokenizer.json").to_str()
