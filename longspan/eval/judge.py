"""A model behind an OpenAI-compatible server as a judge of long texts: six marks from 1 to 5, after LongBench-Write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from longspan.config import Settings
from longspan.eval.server import post_json
from longspan.utils.errors import ConfigError, ModelError

MARKS = ("relevance", "accuracy", "coherence", "clarity", "breadth", "readability")
ASKED = (
    "Here are an instruction and the text that a writer gave for it. Mark the text from 1 (poor) to 5 (very good) for "
    f"each of: {', '.join(MARKS)}. Relevance: it does what was asked. Accuracy: what it says is right. Coherence: its "
    "parts belong together. Clarity: it is easy to follow. Breadth: it says enough, and is not padded. Readability: it "
    "is a pleasure to read. Do not mark its length. Answer with one JSON object of six numbers and nothing else.\n\n"
    "Instruction:\n{instruction}\n\nText:\n{text}\n"
)
REPLY_TOKENS = 200
Post = Callable[[str, dict[str, Any]], dict[str, Any]]


class Judge(Settings):
    """Who marks: `url` ends in /v1, `model` is known there; `key_file` holds a key if one is wanted.

    Texts leave this machine for that address. Rows name the judge, never the key.
    """

    url: str = Field(pattern=r"^https?://")
    model: str = Field(min_length=1)
    key_file: Path | None = None

    @property
    def name(self) -> str:
        """What rows are known by."""
        return f"{self.model} at {self.url}"

    def marks(self, instruction: str, text: str, *, post: Post | None = None) -> dict[str, int] | None:
        """The six marks of a text; None when the judge's answer holds no six whole numbers from 1 to 5.

        Raises `ModelError` when the server gives no answer, `ConfigError` when the key cannot be read.
        """
        content = ASKED.format(instruction=instruction, text=text)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": REPLY_TOKENS,
            "temperature": 0,
        }
        address = f"{self.url.rstrip('/')}/chat/completions"
        answer = post(address, body) if post else post_json(address, body, key=self._key())
        try:
            said = str(answer["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError) as cause:
            raise ModelError(
                "eval.judge-answer",
                f"the judge's answer has no text: {json.dumps(answer)[:200]}",
                where=address,
                fix="name an address with chat completions that ends in /v1, and the model as the server knows it",
            ) from cause
        return read_marks(said)

    def _key(self) -> str:
        if self.key_file is None:
            return ""
        try:
            return self.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as cause:
            raise ConfigError(
                "eval.judge-key",
                f"the judge's key cannot be read: {cause}",
                where=str(self.key_file),
                fix="name a file that holds the key alone, or leave key_file out",
            ) from cause


def read_marks(said: str) -> dict[str, int] | None:
    """The six marks in a reply that holds a JSON object somewhere; None when they are not all there."""
    for found in re.findall(r"\{[^{}]*\}", said):
        try:
            value = json.loads(found)
        except ValueError:
            continue
        marks = {name: value.get(name) for name in MARKS}
        if all(type(mark) in (int, float) and mark in range(1, 6) for mark in marks.values()):
            return {name: int(mark) for name, mark in marks.items()}
    return None


def quality(marks: dict[str, int]) -> float:
    """LongBench-Write's quality score of a text, 0 to 100: the mean mark less one, times 25 (arXiv:2408.07055)."""
    return 25 * (sum(marks.values()) / len(marks) - 1)
