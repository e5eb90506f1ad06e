"""Conversations as tokens: written with the model's own chat template, and which of the tokens are answers."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer

from longspan.utils.errors import DataError

Message = Mapping[str, str]  # role and content

SAMPLE: tuple[Message, ...] = (
    {"role": "user", "content": "What is one and one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "And two and two?"},
    {"role": "assistant", "content": "Four, of course."},
)


class ChatFormat:
    """A tokenizer with the template that its model was tuned with.

    An answer is what follows the template's own opening of an answer, up to and with the token that closes it. These
    are found in the ids alone, because contents can never hold a special token: there its name is plain text.
    Raises `DataError` when the template cannot be used so.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        template = settings.get("chat_template")
        if not isinstance(template, str):
            raise DataError(
                "chat.no-template",
                "the tokenizer has no chat template",
                where="tokenizer_config.json: chat_template",
                fix="start from a model that was tuned on conversations, or leave the sources of chats out",
            )
        self.sha256 = hashlib.sha256(template.encode()).hexdigest()
        self._tokenizer = tokenizer
        self._special = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(template)
            self._find_borders()
        except TemplateError as error:
            raise _unusable(f"it cannot be used: {error}") from error

    def _find_borders(self) -> None:
        before, after = self.render(SAMPLE[:1]), self.render(SAMPLE[:1], opening=True)
        if not after.startswith(before) or after == before:
            raise _unusable("it does not open an answer when asked to (add_generation_prompt)")
        self._opening = self._special_ids(after[len(before) :])
        closing = self._special_ids(self.render(SAMPLE[:2])[len(after) + len(SAMPLE[1]["content"]) :])
        self._closing = closing[0] if closing else -1
        ids = self.encode(SAMPLE)
        answers = [message["content"] for message in SAMPLE if message["role"] == "assistant"]
        if [
            self._tokenizer.decode(part, skip_special_tokens=True).strip() for part in _runs(ids, self.answers(ids))
        ] != (answers):
            raise _unusable("its answers cannot be told from the rest")

    def render(self, messages: Sequence[Message], *, opening: bool = False) -> str:
        """The text of a conversation; with `opening` the beginning of an answer follows."""
        return self._template.render(messages=list(messages), add_generation_prompt=opening, **self._special)

    def encode(self, messages: Sequence[Message]) -> NDArray[np.uint32]:
        """The ids of a conversation: the template's special tokens are tokens, names of them in contents are text.

        Raises `DataError` when the template leaves a content out or changes it.
        """
        text, at = self.render(messages), 0
        ids: list[int] = []
        held = ""  # template and harmless contents are encoded together, as one call of the tokenizer would
        for message in messages:
            content = message["content"].strip()
            start = text.find(content, at)
            if start < 0:
                raise DataError(
                    "chat.content",
                    f"the chat template changes the content of a message of the role {message['role']!r}",
                    fix="give roles and contents that the template takes",
                )
            held += text[at:start]
            at = start + len(content)
            if any(name in content for name in self._names()):
                ids += self._special_ids(held) + self._plain_ids(content)
                held = ""
            else:
                held += content
        return np.array(ids + self._special_ids(held + text[at:]), dtype=np.uint32)

    def opened(self, messages: Sequence[Message], prefix: str = "") -> NDArray[np.uint32]:
        """The ids after which a model answers the last message; with a `prefix`, of an answer that begins so already.

        Raises `DataError` as `encode` does.
        """
        start = [*self.encode(messages).tolist(), *self._opening, *self._plain_ids(prefix)]
        return np.array(start, dtype=np.uint32)

    @property
    def closing(self) -> int:
        """The id of the token that ends an answer; -1 when the template ends none."""
        return self._closing

    def answers(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Which ids are answers, the token that closes each included."""
        found = np.zeros(len(ids), dtype=np.bool_)
        width = len(self._opening)
        starts = [at + width for at in range(len(ids) - width + 1) if ids[at : at + width].tolist() == self._opening]
        for start in starts:
            closed = np.flatnonzero(ids[start:] == self._closing)
            stop = start + int(closed[0]) + 1 if len(closed) else len(ids)
            found[start:stop] = True
        return found

    def _names(self) -> list[str]:
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]

    def _special_ids(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = False
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self._tokenizer.encode_special_tokens = True

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def conversation(value: Any) -> list[Message] | None:
    """The messages of a row, if it has a role and a content for each and an answer among them; else None."""
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        return None
    answered = any(m["role"] == "assistant" and m["content"].strip() for m in value)
    return [{"role": m["role"], "content": m["content"]} for m in value] if answered else None


def _runs(ids: NDArray[Any], mask: NDArray[np.bool_]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [ids[start:stop].tolist() for start, stop in edges.reshape(-1, 2).tolist()]


def _text(token: Any) -> str:
    """The text of a special token, which some configs wrap in a table."""
    return str(token["content"] if isinstance(token, dict) else token or "")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _unusable(what: str) -> DataError:
    return DataError(
        "chat.template",
        f"the chat template is no good for training: {what}",
        where="tokenizer_config.json: chat_template",
        fix="give the model's own template, or leave the sources of chats out",
    )
