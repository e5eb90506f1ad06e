"""A decoder as a reader: a context goes into the cache once, questions after it cost only their own tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longspan.engine.prefill import extend, new_cache, prefill, token_nll
from longspan.eval.desk import Score
from longspan.eval.text import Ids
from longspan.model.decoder import Decoder
from longspan.utils.errors import DataError, ModelError


class DecoderReader:
    """A decoder that reads contexts of any length and is asked after them."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def read(self, tokens: Ids, *, room_tokens: int) -> "KeptContext":
        """The context in a cache with room for questions and answers of `room_tokens`."""
        return KeptContext(self.decoder, tokens, room_tokens=room_tokens)

    def token_nll(self, tokens: Ids) -> NDArray[np.float32]:
        """Loss in nats of tokens[1:]. Raises `ModelError` when it is not finite."""
        losses = token_nll(self.decoder, torch.from_numpy(tokens))
        _refuse_not_finite(losses, len(tokens))
        found: NDArray[np.float32] = losses.cpu().numpy()
        return found


class KeptContext:
    """Keys and values of one context. After every question the cache is cropped back, so none sees another."""

    def __init__(self, decoder: Decoder, tokens: Ids, *, room_tokens: int) -> None:
        self._decoder = decoder
        self._length = len(tokens)
        self._room = room_tokens
        self._cache = new_cache(decoder, len(tokens) + room_tokens)
        prefill(decoder, torch.from_numpy(tokens), self._cache)

    def score(self, question: Sequence[int], answer: Sequence[int]) -> Score:
        """Teacher-forced score: every gold token the most likely one means that greedy decoding gives the answer.

        Raises `DataError` when question and answer are longer than the room, `ModelError` when logits are not finite.
        """
        logits = self.logits([*question, *answer[:-1]], after_tokens=1)[-len(answer) :]
        gold = torch.tensor(answer, device=logits.device)
        logprob = logits.log_softmax(-1).gather(1, gold[:, None]).sum()
        return Score(hit=bool((logits.argmax(-1) == gold).all()), logprob=float(logprob))

    def logits(self, suffix: Sequence[int], *, after_tokens: int = 0) -> Tensor:
        """Float32 logits `[n, v]` at every token of `suffix` after the context; `after_tokens` more must fit behind.

        Raises as `score` does.
        """
        self._refuse_longer(len(suffix) + after_tokens)
        logits = self._extend(suffix)
        self._cache.crop(self._length)
        return logits

    def generate(self, question: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int] = ()) -> list[int]:
        """Greedy continuation of `question`, up to `max_new_tokens`; one of `stop_ids` ends it and is not given back.

        Raises as `score` does.
        """
        self._refuse_longer(len(question) + max_new_tokens)
        said: list[int] = []
        suffix = question
        while len(said) < max_new_tokens:
            token = int(self._extend(suffix)[-1].argmax())
            if token in stop_ids:
                break
            said.append(token)
            suffix = [token]
        self._cache.crop(self._length)
        return said

    def _extend(self, suffix: Sequence[int]) -> Tensor:
        logits = extend(self._decoder, torch.tensor(suffix), self._cache)
        _refuse_not_finite(logits, self._cache.length)
        return logits

    def _refuse_longer(self, tokens: int) -> None:
        if tokens > self._room:
            raise DataError(
                "eval.over-length",
                f"a question and answer of {tokens} tokens do not fit in the {self._room} left after the context",
                fix="leave more room after the context; nothing is ever truncated",
            )


def _refuse_not_finite(values: Tensor, length: int) -> None:
    if not bool(values.isfinite().all()):
        raise ModelError(
            "model.not-finite",
            f"the model gives numbers that are not finite at {length} tokens",
            fix="check the weights and the position method; a float16 model may need bfloat16",
        )
