"""Text to token ids in linear time: documents are cut where no token can cross, and encoded piece by piece."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from longspan.utils.errors import DataError

PIECE_CHARACTERS = 100_000
UNCUT_CHARACTERS = 1_000_000  # a stretch this long without a cut point is no text that a model should see
PIECES_AT_ONCE = 8  # encoded in parallel; bounds the memory of offsets and strings
CHECKED_CHARACTERS = 20_000
CROSSING_TOKENS = 2_000  # at most so many of them are tried

END_OF_TEXT = "<|endoftext|>"
SEPARATORS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")

# Everything at which a cut has ever gone wrong: punctuation before line ends, runs of spaces, apostrophes, digits,
# tabs, CRLF, signs outside the first plane, scripts without spaces.
SAMPLE = (
    "It's a test, isn't it? Yes!\n\nNo... (maybe)  two  spaces,\tone tab\t\ttwo tabs \n trailing \r\nCRLF line.\r\n\r\n"
    "def f(x):\n    return x[0] + 12345.678e-9  # note\n\n\n12 345 6789\n0\nword\nword \n word\n\u00a0fixed\u2003wide\n"
    "na\u00efve caf\u00e9, e\u0301 \u0301x \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 ok\n"
    "\u4f60\u597d\u3002\n\u4e16\u754c\n\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 <|endoftext|> </s> end."
    " \n\n - a\n - b\n ...\n x_\n_y \t z  \n"
)


@dataclass(frozen=True)
class CutRule:
    """Where a text may be cut, and how many characters of the gap the tokenizer itself puts before a piece."""

    places: re.Pattern[str]
    dropped: int


# A space after a non-space is a border for every pre-tokenizer in use; a line end is one only after a letter or digit,
# as several pre-tokenizers join punctuation with the line ends that follow.
WORDS_AND_LINES = CutRule(re.compile(r"(?<=\S) |(?<=[^\W_])[\t\n\r]"), 0)
WORDS = CutRule(re.compile(r"(?<=\S) "), 0)
# Tokenizers that put a space before whatever they encode give it back for the one that is left out.
WORDS_LESS_SPACE = CutRule(re.compile(r"(?<=\S) (?=\S)"), 1)


class UncuttableText(DataError):
    """A text has no place to cut it for a million characters."""


def cut_points(text: str, rule: CutRule, *, piece_characters: int) -> list[int]:
    """Where to cut `text`: each is the first allowed place after `piece_characters` more characters.

    Raises `UncuttableText` when there is none within `UNCUT_CHARACTERS`.
    """
    cuts: list[int] = []
    start = 0
    while len(text) - start > piece_characters:
        found = rule.places.search(text, start + piece_characters, start + max(UNCUT_CHARACTERS, piece_characters + 2))
        if found:
            start = found.start()
            cuts.append(start)
        elif len(text) - start > UNCUT_CHARACTERS:
            raise UncuttableText(
                "data.no-cut-point",
                f"no space between words for {UNCUT_CHARACTERS:,} characters",
                where=f"character {start:,}",
                fix="leave this text out, or put line ends or spaces into it",
            )
        else:
            break
    return cuts


def encode_document(text: str, tokenizer: Tokenizer, *, piece_characters: int = PIECE_CHARACTERS) -> NDArray[np.uint32]:
    """The ids of `text`, equal to one call of the tokenizer, in linear time and memory. No special tokens are added.

    Raises `UncuttableText`, and `DataError` when the tokenizer cannot be used piece by piece.
    """
    return np.concatenate(list(encode_pieces(text, tokenizer, piece_characters=piece_characters)))


def encode_pieces(
    text: str, tokenizer: Tokenizer, *, piece_characters: int = PIECE_CHARACTERS
) -> Iterator[NDArray[np.uint32]]:
    """What `encode_document` gives, a stretch at a time, so that a long document's ids are never all in memory."""
    return _encode(text, tokenizer, rule=cut_rule(tokenizer), piece_characters=piece_characters)


@lru_cache(maxsize=8)  # by identity: a tokenizer is checked once, at its first use
def cut_rule(tokenizer: Tokenizer) -> CutRule:
    """How this tokenizer's input may be cut, found by trying.

    Raises `DataError` when no rule gives the ids of one call.
    """
    sample = SAMPLE + " ".join(_crossing(tokenizer))
    for rule in (WORDS_AND_LINES, WORDS, WORDS_LESS_SPACE):
        if _same_as_one_call(sample, tokenizer, rule):
            return rule
    raise _refused("a built-in sample")


def check_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    """Check on some of the user's own text, cut wherever it may be, that pieces give the ids of one call.

    `CHECKED_CHARACTERS` of text are plenty.
    Raises `DataError` when they do not.
    """
    if not _same_as_one_call(text, tokenizer, cut_rule(tokenizer)):
        raise _refused("the first document")


def plain_encode(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """The encoder that probes take: short text to ids, special tokens neither added nor recognised."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return encode


def load_tokenizer(path: Path, *, vocabulary: int | None = None) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder, ready for whole documents.

    Names of special tokens inside a text are plain text to it, and it neither truncates nor pads.
    Raises `DataError` when it is missing, damaged, or has ids that a model of `vocabulary` tokens lacks.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            "data.tokenizer-missing",
            "there is no tokenizer.json here",
            where=str(path),
            fix="set data.tokenizer to a tokenizer.json, or put one beside the model",
        )
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as cause:  # the library raises bare Exception
        raise DataError(
            "data.tokenizer-damaged",
            f"the tokenizer cannot be read: {cause}",
            where=str(file),
            fix="restore the file, or save it again with a current version of its library",
        ) from cause
    if vocabulary is not None:
        check_vocabulary(tokenizer, vocabulary)
    return for_documents(tokenizer)


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Check that a model of `vocabulary` tokens knows every id of the tokenizer.

    Raises `DataError` when it does not.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 0 or largest >= vocabulary:
        raise DataError(
            "data.tokenizer-vocabulary",
            f"the tokenizer has ids up to {largest}, the model has {vocabulary} tokens",
            fix="use the tokenizer that the model was trained with",
        )


def separator_id(tokenizer: Tokenizer) -> int:
    """The id that ends a document: <|endoftext|>, or what other families call it.

    Raises `DataError` when the tokenizer has none of them.
    """
    for name in SEPARATORS:
        found: int | None = tokenizer.token_to_id(name)
        if found is not None:
            return found
    raise DataError(
        "data.no-separator",
        f"the tokenizer has no token that ends a document (looked for {', '.join(SEPARATORS)})",
        fix="use a tokenizer with one of these tokens",
    )


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer of exactly `vocabulary` tokens; the same texts always give the same one.

    Words are split as in GPT-2, every digit is its own token, no space is put before a text, and id 0 is
    <|endoftext|>. Raises `DataError` when the vocabulary cannot hold the bytes or the texts cannot fill it.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    if vocabulary > len(alphabet):
        tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise DataError(
            "data.vocabulary",
            f"a tokenizer of {vocabulary} tokens cannot be trained on these texts",
            fix=f"choose more than {len(alphabet)} tokens and give enough text",
        )
    return for_documents(tokenizer)


def for_documents(tokenizer: Tokenizer) -> Tokenizer:
    """Set a tokenizer to take texts as they are: nothing cut off, nothing filled up, no special token recognised."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # the name of a special token inside a text is text
    return tokenizer


def _encode(text: str, tokenizer: Tokenizer, *, rule: CutRule, piece_characters: int) -> Iterator[NDArray[np.uint32]]:
    cuts = cut_points(text, rule, piece_characters=piece_characters)
    starts = [0, *(cut + rule.dropped for cut in cuts)]
    spans = zip(starts, [*cuts, len(text)], strict=True)
    for group in _groups(spans):
        pieces = [text[start:end] for start, end in group]
        encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        yield np.concatenate([np.array(encoding.ids, dtype=np.uint32) for encoding in encodings])


def _groups(spans: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    iterator = iter(spans)
    while group := list(itertools.islice(iterator, PIECES_AT_ONCE)):
        yield group


def _crossing(tokenizer: Tokenizer) -> list[str]:
    """Tokens that reach over the end of a word: the likeliest to betray a cut, if the tokenizer ever uses them."""
    texts = tokenizer.decode_batch([[token] for token in range(tokenizer.get_vocab_size())])
    return [text for text in texts if re.search(r"\S\s", text)][:CROSSING_TOKENS]


def _same_as_one_call(text: str, tokenizer: Tokenizer, rule: CutRule) -> bool:
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = list(_encode(text, tokenizer, rule=rule, piece_characters=1))
    return np.array_equal(np.concatenate(pieces), whole)


def _refused(where: str) -> DataError:
    return DataError(
        "data.tokenizer-cuts",
        "this tokenizer gives other ids for a text in pieces than for the whole, so long documents cannot be encoded",
        where=where,
        fix="use a tokenizer that splits at spaces before it merges (byte-level BPE does)",
    )
