"""RULER's tasks as published: templates, needles, answer prefixes, and what each task is made of (arXiv:2404.06654).

They are those of github.com/NVIDIA/RULER, Copyright (c) 2024 NVIDIA CORPORATION, Apache License 2.0.
"""

from dataclasses import dataclass
from typing import Literal

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NIAH = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned "
    "the value {query}, they are: "
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FWE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\nQuestion: Do not provide any explanation. "
    "Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
QA_FILES = {"qa_1": "squad.json", "qa_2": "hotpotqa.json"}
QA_ORDER = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
QA_HEAD = f"{QA_ORDER}\n\nThe following are given documents.\n\n"
QA_TAIL = f"\n\n{QA_ORDER}\n\nQuestion: {{query}} Answer:"

Name = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
]
QaName = Literal["qa_1", "qa_2"]
Haystack = Literal["noise", "text", "needles"]


@dataclass(frozen=True, kw_only=True)
class Needles:
    """One of the eight needle tasks: its haystack, what keys and values are, how many of each, how many are asked."""

    haystack: Haystack
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NEEDLES: dict[str, Needles] = {
    "niah_single_1": Needles(haystack="noise"),
    "niah_single_2": Needles(haystack="text"),
    "niah_single_3": Needles(haystack="text", value="uuids"),
    "niah_multikey_1": Needles(haystack="text", keys=4),
    "niah_multikey_2": Needles(haystack="needles"),
    "niah_multikey_3": Needles(haystack="needles", key="uuids", value="uuids"),
    "niah_multivalue": Needles(haystack="text", values=4),
    "niah_multiquery": Needles(haystack="text", keys=4, queries=4),
}
REPLY_TOKENS = dict.fromkeys(NEEDLES, 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
REPEATS = ("niah_single_1", "vt")  # one sentence over and over, as published


def singular(template: str) -> str:
    """Template and prefix for one value of one key, as upstream's replacements leave them."""
    return template.replace("Some", "A").replace("are all", "is").replace("are", "is")
