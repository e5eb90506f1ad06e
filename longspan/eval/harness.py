"""A longspan model as lm-evaluation-harness wants one: log-probabilities of pairs, of texts, and replies, by token ids.

Nothing here knows the harness itself; `longspan.pipeline.harness` puts this into its registry.
"""

from collections.abc import Sequence

import numpy as np

from longspan.eval.context import DecoderReader
from longspan.eval.continuations import each_context_once, scores_behind
from longspan.eval.desk import Decode
from longspan.probes import Encode

Pair = tuple[Sequence[int], Sequence[int]]  # a context and what may follow it


class Answers:
    """Answers of one decoder. `prefix_id` stands before a text that nothing comes before, and ends a reply."""

    def __init__(self, reader: DecoderReader, *, encode: Encode, decode: Decode, prefix_id: int) -> None:
        self._reader, self._decode, self._encode = reader, decode, encode
        self.prefix_id = prefix_id

    def pairs(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether greedy decoding gives it; each at least a token.

        A context that several continuations share is read once.
        """
        return each_context_once(
            [context for context, _ in pairs],
            lambda context, places: self._scores(context, [pairs[place][1] for place in places]),
        )

    def whole(self, text: str) -> float:
        """Log-probability of a text from its first token on, in one pass whatever its length; 0 for no text."""
        ids = [self.prefix_id, *self._encode(text)]
        if len(ids) == 1:
            return 0.0
        return -float(self._reader.token_nll(np.array(ids, dtype=np.int64)).sum(dtype=np.float64))

    def reply(self, text: str, *, until: Sequence[str], most: int) -> str:
        """The greedy reply to a text, up to the first of `until`, which is left out, or to `most` tokens."""
        ids = self._encode(text) or [self.prefix_id]
        head, last = (ids[:-1], ids[-1:]) if len(ids) > 1 else ([self.prefix_id], ids)
        kept = self._reader.read(np.array(head, dtype=np.int64), room_tokens=1 + most)
        stops = [stop for stop in until if stop]

        def ended(said: Sequence[int]) -> bool:
            return any(stop in self._decode(said) for stop in stops)

        (said,) = kept.generate([last], max_new_tokens=[most], stop_ids=(self.prefix_id,), ended=ended)
        found = self._decode(said)
        return found[: min([found.index(stop) for stop in stops if stop in found], default=len(found))]

    def _scores(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        context = tuple(context) or (self.prefix_id,)
        if len(context) == 1:  # the last token of a context asks, and nothing is left to be read before it
            scores = [self._reader.score_after_token(context[0], answer) for answer in answers]
            return [(score.logprob, score.hit) for score in scores if score.logprob is not None]
        scores = scores_behind(self._reader, context[:-1], context[-1], answers)
        return [(score.logprob, score.hit) for score in scores if score.logprob is not None]
