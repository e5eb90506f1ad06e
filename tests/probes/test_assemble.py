"""Assembly: exact lengths, offsets that point at the lines, answers that can be read back, uniform depths."""

import random
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from longspan.probes import Branch, Context, Probe, evaluation_context, training_row
from longspan.probes.key_value import KeyValue
from longspan.probes.needle import Needle
from longspan.probes.passkey import Passkey
from longspan.utils.errors import DataError

PROSE = "".join(
    f"It was the {number}th day of the voyage, and the wind had fallen; nobody spoke.\nThe sea—grey, café-dark—lay. "
    for number in range(400)
)


@cache
def tokenizer(name: str) -> Tokenizer:
    """Small tokenizers of the kinds that models ship with."""
    if name == "bytes":  # no merges at all
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        size = 256
    elif name == "byte_bpe":  # GPT-2, Llama 3, SmolLM2
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        made.decoder = decoders.ByteLevel()
        size = 420
    else:  # Llama 2, Mistral: a space is put before every text
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        size = 420
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if name != "spaced" else list("▁0123456789abcdef\n"),
        special_tokens=[] if name != "spaced" else ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    made.train_from_iterator([PROSE + " The code of the pass key is 0123456789. Key What"], trainer)
    return made


def encoder(name: str) -> Callable[[str], list[int]]:
    return lambda text: tokenizer(name).encode(text, add_special_tokens=False).ids


def decode(name: str, ids: list[int]) -> str:
    return tokenizer(name).decode(ids, skip_special_tokens=False)


@cache
def haystack(name: str) -> np.ndarray:
    return np.array(encoder(name)(PROSE), dtype=np.uint16)


TOKENIZERS = ["bytes", "byte_bpe", "spaced"]
MANY = [Needle(), KeyValue()]  # every other probe: test_every_probe.py


def context_of(probe: Probe, name: str, *, length: int, depths: list[float], seed: int = 0) -> Context:
    return evaluation_context(
        probe, haystack(name), length=length, depths=depths, encode=encoder(name), rng=random.Random(seed)
    )


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(TOKENIZERS),
    probe=st.sampled_from(MANY),
    length=st.integers(900, 3000),
    count=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_context_is_exact_and_every_answer_can_be_read(name, probe, length, count, seed):
    depths = [(index + 0.5) / count for index in range(count)]
    context = context_of(probe, name, length=length, depths=depths, seed=seed)
    assert len(context.tokens) + max(len(b.question) + len(b.answer) for b in context.branches) == length
    assert context.tokens.dtype == np.int64
    text = decode(name, context.tokens.tolist())
    for branch in context.branches:
        # The offset points at the line: what follows it reads as newline, line, newline.
        following = decode(name, context.tokens[branch.offset_tokens :].tolist())
        assert following.startswith(f"\n{branch.item.line}\n")
        assert text.count(branch.item.line) == 1
        whole = decode(name, [*context.tokens.tolist(), *branch.question, *branch.answer])
        assert whole.endswith(branch.item.question + branch.item.answer)
        assert read_answer(whole[: -len(branch.item.answer)]) == branch.item.answer.strip()


def read_answer(text: str) -> str | None:
    """An oracle that knows the text only: finds what the last question asks for."""
    for asked, told in (
        (r"\nThe code of ([\w-]+) is$", r"\nThe code of {} is (\d+)\.\n"),
        (r"\nKey ([\w-]+):$", r"\nKey {}: (\w+)\.\n"),
        (r"\n(What is the pass key\?) The pass key is$", r"\nThe pass key is (\d+)\. Remember it\."),
    ):
        if key := re.search(asked, text):
            found = re.search(told.format(re.escape(key[1])), text)
            return found[1] if found else None
    return None


# A question with its answer, the only group: a planted line ends in a full stop, an answer does not.
ASKED = re.compile(r"(?:\nThe code of \S+ is|\nKey \S+:|\? The pass key is) (\w+)(?=\n|$)")


def test_oracle_is_honest():
    # Without the line the oracle finds nothing, so the assertion above is about the planted text.
    assert read_answer("\nThe code of a-b is") is None


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_around_the_lines_is_untouched(name):
    context = context_of(Needle(), name, length=1500, depths=[0.0, 0.3, 1.0])
    kept = context.tokens.tolist()
    for branch in sorted(context.branches, key=lambda b: -b.offset_tokens):
        size = next(n for n in range(1, 200) if decode(name, kept[branch.offset_tokens :][:n]).endswith(".\n"))
        del kept[branch.offset_tokens : branch.offset_tokens + size]
    assert kept == haystack(name)[: len(kept)].tolist()


def test_lines_stand_at_their_depths_and_at_line_starts():
    depths = [0.9, 0.0, 0.5, 1.0]  # any order
    context = context_of(Needle(), "byte_bpe", length=4000, depths=depths)
    assert [branch.depth for branch in context.branches] == depths
    newline = encoder("byte_bpe")("\n")[0]
    for branch in context.branches[:-1]:  # the last stands behind the whole text, wherever that is cut
        assert branch.offset_tokens / len(context.tokens) == pytest.approx(branch.depth, abs=0.03)
        assert branch.offset_tokens == 0 or context.tokens[branch.offset_tokens - 1] == newline


def test_a_text_of_one_line_takes_lines_anywhere():
    flat = np.full(2000, encoder("byte_bpe")("a")[0])
    context = evaluation_context(
        Needle(), flat, length=1000, depths=[0.5], encode=encoder("byte_bpe"), rng=random.Random(0)
    )
    assert context.branches[0].offset_tokens == pytest.approx(0.5 * len(context.tokens), abs=30)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(TOKENIZERS),
    probe=st.sampled_from([*MANY, Passkey(), KeyValue(key_digits=3)]),
    answer_weight=st.sampled_from([1.0, 3.0, 0.5]),
    length=st.integers(250, 2500),
    items=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_training_row_is_exact_and_weighs_the_answers(name, probe, answer_weight, length, items, seed):
    row, weights = training_row(
        probe,
        haystack(name),
        length=length,
        items=items,
        answer_weight=answer_weight,
        encode=encoder(name),
        rng=random.Random(seed),
    )
    assert (row.shape, weights.shape) == ((length + 1,), (length + 1,))
    assert (row.dtype, weights.dtype) == (np.int64, np.float32)
    text = decode(name, row.tolist())
    questions = [match[1] for match in ASKED.finditer(text)]
    assert 1 <= len(questions) <= (probe.most_items or items)
    for answer in questions:
        assert len(re.findall(rf"(?: is |: ){answer}\.", text)) >= 1
    for match in ASKED.finditer(text):
        assert read_answer(text[: match.start(1) - 1]) == match[1]
    if answer_weight != 1.0:
        weighed = decode(name, row[weights == np.float32(answer_weight)].tolist())
        assert weighed.split() == questions
        assert set(np.unique(weights)) == {np.float32(1.0), np.float32(answer_weight)}


def test_a_short_row_carries_as_many_lines_as_fit():
    arguments = {"encode": encoder("byte_bpe"), "rng": random.Random(0)}
    counts = []
    for length in (150, 300, 600, 1200):
        row, _ = training_row(Needle(), haystack("byte_bpe"), length=length, items=8, **arguments)
        counts.append(decode("byte_bpe", row.tolist()).count("The code of") // 2)
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == 8


def test_training_depths_are_uniform():
    # Kolmogorov-Smirnov against the uniform law at the 0.1 % level: 1.95 / sqrt(n).
    depths = []
    for seed in range(60):
        row, _ = training_row(
            Needle(), haystack("byte_bpe"), length=3000, items=5, encode=encoder("byte_bpe"), rng=random.Random(seed)
        )
        text = decode("byte_bpe", row.tolist())
        asked = min(match.start() for match in ASKED.finditer(text))
        depths += [match.start() / asked for match in re.finditer("The code of", text[:asked])]
    assert len(depths) == 300
    ordered = np.sort(depths)
    steps = np.arange(1, 301) / 300
    assert max(np.abs(ordered - steps).max(), np.abs(ordered - (steps - 1 / 300)).max()) < 1.95 / 300**0.5


def test_questions_come_in_another_order_than_the_lines():
    row, _ = training_row(
        Needle(), haystack("byte_bpe"), length=3000, items=10, encode=encoder("byte_bpe"), rng=random.Random(1)
    )
    text = decode("byte_bpe", row.tolist())
    told = re.findall(r"The code of (\S+) is \d+\.", text)
    asked = re.findall(r"The code of (\S+) is \d+(?=\n|$)", text)
    assert sorted(told) == sorted(asked)
    assert told != asked


def test_same_seed_same_bytes():
    drawn = [context_of(Needle(), "byte_bpe", length=1000, depths=[0.2, 0.8], seed=seed) for seed in (4, 4, 5)]
    assert drawn[0].tokens.tobytes() == drawn[1].tokens.tobytes() != drawn[2].tokens.tobytes()
    assert drawn[0].branches == drawn[1].branches
    rows = [
        training_row(
            Needle(), haystack("byte_bpe"), length=900, items=3, encode=encoder("byte_bpe"), rng=random.Random(seed)
        )
        for seed in (4, 4, 5)
    ]
    assert rows[0][0].tobytes() == rows[1][0].tobytes() != rows[2][0].tobytes()


def test_a_tokenizer_that_merges_over_the_border_still_gives_readable_answers():
    # The question ends in a colon, and one piece swallows it with the space that follows.
    letters = {char: index for index, char in enumerate(sorted(set(PROSE + "".join(map(chr, range(32, 127))))))}
    merged = len(letters)

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        while text:
            if text.startswith(": "):
                ids.append(merged)
                text = text[2:]
            else:
                ids.append(letters[text[0]])
                text = text[1:]
        return ids

    context = evaluation_context(
        KeyValue(), np.array(encode(PROSE)), length=800, depths=[0.5], encode=encode, rng=random.Random(0)
    )
    (branch,) = context.branches
    assert branch.answer[0] == merged
    assert [*branch.question, *branch.answer] == encode(branch.item.question + branch.item.answer)


def test_refusals():
    arguments = {"encode": encoder("byte_bpe"), "rng": random.Random(0)}
    short = haystack("byte_bpe")[:500]
    with pytest.raises(DataError, match="never repeated"):
        evaluation_context(Needle(), short, length=1000, depths=[0.5], **arguments)
    with pytest.raises(DataError, match="never repeated"):
        training_row(Needle(), short, length=1000, items=1, **arguments)
    with pytest.raises(DataError, match="60 tokens are too few"):
        evaluation_context(Needle(), short, length=60, depths=[0.1, 0.5, 0.9], **arguments)
    with pytest.raises(DataError, match="20 tokens are too few"):
        training_row(Needle(), short, length=20, items=1, **arguments)
    with pytest.raises(DataError, match="2 lines are to be planted where this probe allows 1"):
        evaluation_context(Passkey(), short, length=300, depths=[0.1, 0.9], **arguments)


def test_branch_and_context_are_plain_values():
    context = context_of(Passkey(), "bytes", length=500, depths=[0.25])
    assert isinstance(context.branches[0], Branch)
    assert hash(context.branches[0]) == hash(context_of(Passkey(), "bytes", length=500, depths=[0.25]).branches[0])
