"""A model behind an OpenAI-compatible server as a reader: it is asked by token ids and answers in text."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.eval.desk import Asked, Decode, Sampling, Score
from longspan.eval.text import Ids
from longspan.utils.errors import ModelError

Post = Callable[[str, dict[str, Any]], dict[str, Any]]  # address and JSON body to the JSON answer


class ServerReader:
    """Asks `url`/completions with the ids of context and question; servers that keep prefixes read a context once.

    No probability is asked for: a hit is a reply that begins with the right answer. `encode` turns replies into ids.
    """

    def __init__(
        self, url: str, model: str, *, encode: Callable[[str], list[int]], decode: Decode, post: Post | None = None
    ) -> None:
        self.url, self.model = url.rstrip("/"), model
        self.encode, self.decode = encode, decode
        self._post = post or post_json

    def read(self, tokens: Ids, *, room_tokens: int) -> "ServedContext":  # noqa: ARG002 - the server has its own limit
        """The context, which is sent with every question."""
        return ServedContext(self, tokens.tolist())

    def token_nll(self, tokens: Ids) -> NDArray[np.float32]:  # noqa: ARG002
        """Servers give no loss of a prompt that could be trusted at length. Raises `ModelError`."""
        raise ModelError(
            "eval.server-no-loss",
            "a server cannot be asked for the loss of a text",
            where=self.url,
            fix="leave tasks of losses out, or evaluate the model's folder",
        )

    def complete(self, prompt: list[int], most: int, **drawn: float) -> tuple[str, bool]:
        """The reply to a prompt and whether it ended by itself; `drawn` is a temperature and a seed.

        Raises `ModelError` when there is none.
        """
        body = {"model": self.model, "prompt": prompt, "max_tokens": most, "temperature": 0, **drawn}
        answer = self._post(f"{self.url}/completions", body)
        try:
            choice = answer["choices"][0]
            return str(choice["text"]), choice.get("finish_reason") == "stop"
        except (KeyError, IndexError, TypeError) as cause:
            raise ModelError(
                "eval.server-answer",
                f"the server's answer has no text: {json.dumps(answer)[:200]}",
                where=self.url,
                fix="name the address that ends in /v1 and the model as the server knows it",
            ) from cause


class ServedContext:
    """A context of which questions are asked one after another."""

    def __init__(self, reader: ServerReader, tokens: list[int]) -> None:
        self._reader, self._tokens = reader, tokens

    def score(self, asked: Sequence[Asked]) -> list[Score]:
        """A hit where the reply begins with the answer, spaces at its ends aside."""
        found = []
        for entry in asked:
            text, _ = self._reader.complete([*self._tokens, *entry.question], len(entry.answer) + 1)
            gold = self._reader.decode(entry.answer).strip()
            found.append(Score(hit=bool(gold) and text.strip().startswith(gold), logprob=None))
        return found

    def generate(
        self,
        questions: Sequence[Sequence[int]],
        *,
        max_new_tokens: Sequence[int],
        stop_ids: Sequence[int] = (),  # noqa: ARG002 - the server stops where its model does
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """The ids of each reply; one that ended by itself is at least a token shorter than it might have been."""
        found = []
        for at, (question, most) in enumerate(zip(questions, max_new_tokens, strict=True)):
            drawn = {} if sampling is None else {"temperature": sampling.temperature, "seed": sampling.seeds[at]}
            text, ended = self._reader.complete([*self._tokens, *question], most, **drawn)
            ids = self._reader.encode(text)
            found.append(ids[: most - 1] if ended else ids[:most])
        return found


def post_json(address: str, body: dict[str, Any], *, key: str = "") -> dict[str, Any]:
    """The JSON answer of a server to a JSON body; a `key` goes with it as a bearer token.

    Raises `ModelError` for an address that is not http, no answer, or one that is no JSON object.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(address, data=json.dumps(body).encode(), headers=headers, method="POST")
    if request.type not in ("http", "https"):
        raise ModelError("eval.server-address", "no http address", where=address, fix="http://HOST:PORT/v1")
    try:
        with urllib.request.urlopen(request, timeout=3600) as answer:
            found: dict[str, Any] = json.loads(answer.read(2**26))
            return found
    except (OSError, ValueError) as cause:
        told = cause.read(500).decode("utf-8", "replace") if isinstance(cause, urllib.error.HTTPError) else str(cause)
        raise ModelError(
            "eval.server",
            f"the server gives no answer: {told}",
            where=address,
            fix="see that it runs, knows the model, and takes prompts of this length",
        ) from cause
