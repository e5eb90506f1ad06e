"""Published prompts as contexts with one question."""

from functools import cache
from pathlib import Path

import numpy as np

from longspan.eval.published.documents import QuestionMaker
from longspan.eval.published.maker import Maker
from longspan.eval.published.needles import NeedleMaker
from longspan.eval.published.templates import NEEDLES, QA_FILES
from longspan.eval.published.words import CommonMaker, FrequentMaker, VariableMaker
from longspan.probes import Branch, Context, Encode, Item
from longspan.utils.errors import DataError


@cache
def maker(name: str, length: int, files: tuple[Path, ...], encode: Encode) -> Maker:
    """The one maker of a task, a length, some files and a tokenizer; it is tuned when it is made."""
    try:
        if name in NEEDLES:
            return NeedleMaker(NEEDLES[name], files, length, encode)
        if name in QA_FILES:
            return QuestionMaker(name, files, length, encode)
        if name == "vt":
            return VariableMaker(files, length, encode)
        return CommonMaker(files, length, encode) if name == "cwe" else FrequentMaker(files, length, encode)
    except (ValueError, IndexError, KeyError, TypeError) as cause:
        raise DataError(
            "eval.ruler-published",
            f"the published generator of {name} stops at {length} tokens: {cause}",
            where=", ".join(map(str, files)),
            fix="ask for another length, and see that the files are those that the guide names",
        ) from cause


def published_context(name: str, *, length: int, sample: int, files: tuple[Path, ...], encode: Encode) -> Context:
    """One published prompt as token ids, of which the last is the question; the reply follows.

    Raises `DataError` when a file is missing or the task does not fit.
    """
    made = maker(name, length, files, encode)
    prompt = made.sample(sample)
    tokens, place = encode(prompt.text), max(0, prompt.text.find(prompt.wanted[0]))
    branch = Branch(
        item=Item(question="", answer="", parts=prompt.wanted, one_part=name in QA_FILES),
        depth=place / len(prompt.text),
        offset_tokens=len(encode(prompt.text[:place])),
        question=tuple(tokens[-1:]),
        answer=(),
        reply_tokens=made.reply_tokens,
    )
    return Context(tokens=np.array(tokens[:-1], dtype=np.int64), branches=(branch,))
