"""Small held-out text, a character tokenizer and stand-in readers for the tests of evaluation."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from longspan.eval.desk import Material, Score
from longspan.model.decoder import Decoder
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape

LETTERS = string.ascii_letters + string.digits + " \n.,:?-"
SEPARATOR = len(LETTERS)


def encode(text: str) -> list[int]:
    return [LETTERS.index(char) for char in text]


def decode(ids: Sequence[int]) -> str:
    return "".join("|" if index == SEPARATOR else LETTERS[index] for index in ids)


class Texts:
    """Documents in memory with the form of a token store: a separator ends each."""

    def __init__(self, *texts: str) -> None:
        self.documents = [np.array([*encode(text), SEPARATOR]) for text in texts]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(document) for document in self.documents], dtype=np.int64)

    def read(self, document: int, start: int, length: int) -> np.ndarray:
        assert 0 <= start <= start + length <= len(self.documents[document])
        return self.documents[document][start : start + length]


def prose(seed: int, words: int) -> str:
    """Lines of nonsense, different for each seed."""
    draw = np.random.default_rng(seed)
    pick = ["sea", "wind", "old", "ship", "and", "then", "grey", "voyage", "under", "Bildad"]
    return "".join(
        f"{pick[draw.integers(10)]}{draw.integers(99)}" + " \n"[int(draw.integers(8) == 0)] for _ in range(words)
    )


def material(*, seed: int = 7) -> Material:
    return stuff(prose(1, 2000), prose(2, 300), prose(3, 60), seed=seed)


def stuff(*texts: str, seed: int = 0) -> Material:
    return Material(documents=Texts(*texts), encode=encode, decode=decode, seed=seed, text_id="texts")


class Copier:
    """Reads the text and always finds the line; with `blind`, it never does. Counts what it was asked."""

    def __init__(self, *, blind: bool = False) -> None:
        self.blind, self.contexts, self.lengths = blind, [], []

    def read(self, tokens: np.ndarray, *, room_tokens: int) -> "CopierReading":
        self.contexts.append(tokens)
        self.lengths.append(len(tokens) + room_tokens)
        return CopierReading(decode(tokens), blind=self.blind)

    def token_nll(self, tokens: np.ndarray) -> np.ndarray:
        # A loss that names both the token and its place, so that sums can be checked by hand.
        self.contexts.append(tokens)
        return (np.arange(1, len(tokens)) * 0.001 + tokens[1:]).astype(np.float32)


@dataclass
class CopierReading:
    text: str
    blind: bool
    asked: list[str] = field(default_factory=list)

    def generate(self, questions, *, max_new_tokens: Sequence[int], stop_ids: Sequence[int] = ()) -> list[list[int]]:
        return [self.say(question, most) for question, most in zip(questions, max_new_tokens, strict=True)]

    def say(self, question: Sequence[int], max_new_tokens: int) -> list[int]:
        asked = decode(question)
        self.asked.append(asked)
        if self.blind:
            return []
        if "pass key" in asked:
            found = re.findall(r"The pass key is (\d+)", self.text)
        else:
            key = re.search(r"(?:The code of|Key) (\S+?)(?: is|:)$", asked)[1]
            found = re.findall(rf"{key}(?: is |: )(\w+)", self.text)
        assert len(found) == 1
        return encode(" " + found[0])[:max_new_tokens]

    def score(self, asked) -> list[Score]:
        hits = [self.say(entry.question, len(entry.answer)) == list(entry.answer) for entry in asked]
        return [
            Score(hit=hit, logprob=0.0 if hit else -float(len(e.answer))) for hit, e in zip(hits, asked, strict=True)
        ]


def toy_decoder(seed: int = 0) -> Decoder:
    shape = ModelShape(
        family="llama",
        layers=2,
        width=24,
        heads=4,
        kv_heads=2,
        head_dim=6,
        mlp_width=40,
        vocabulary=len(LETTERS) + 1,
        norm_epsilon=1e-5,
        tied=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        qk_norm=False,
        windows=(None, 50),
        trained_length=128,
    )
    decoder = Decoder(
        shape, Frequencies(theta=1e4, factors=(1.0, 1.0, 1.0), attention_factor=1.0, length=128, trained_length=128)
    )
    decoder.initialise(seed)
    with torch.no_grad():  # larger weights, so that predictions differ from place to place
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.mul_(20.0)
    return decoder.eval()
