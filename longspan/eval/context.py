"""A decoder as a reader: a context is read once, and questions after it cost only their own tokens."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longspan.engine.kept import Keep, Kept
from longspan.engine.precision import autocast
from longspan.engine.prefill import LOGIT_ROWS, Branches, Prefill
from longspan.eval.desk import Asked, Sampling, Score
from longspan.eval.text import Ids
from longspan.model.decoder import Decoder
from longspan.utils.errors import DataError, ModelError

FAR_TOKENS = 16_384  # of a context that several ranks read together; shorter ones one rank reads as fast
BATCH_TOKENS = 8192  # of questions that go through the model together
# How far a branch's logits may be from those of a plain full forward, as a share of the largest of these.
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.06, torch.float16: 0.02}
CHECK_TOKENS, CHECK_BRANCHES = 150, (7, 1, 19)


class DecoderReader:
    """A decoder that reads contexts of any length and is asked after them; one context is held at a time.

    `far` reads contexts from `FAR_TOKENS` on, over several ranks. `check` compares both with the plain decoder on a
    short context.
    """

    def __init__(self, decoder: Decoder, keep: Keep | None = None, *, far: Prefill | None = None) -> None:
        self.decoder = decoder
        self._near, self._far = Prefill(decoder, keep), far

    def _prefill(self, tokens: int) -> Prefill:
        return self._near if self._far is None or tokens < FAR_TOKENS else self._far

    def read(self, tokens: Ids, *, room_tokens: int) -> "KeptContext":
        """The context, read and kept, with room for questions and answers of `room_tokens`."""
        prefill = self._prefill(len(tokens))
        kept = prefill.read(torch.from_numpy(tokens))
        prefill.wait()  # so that the seconds of reading in a row are those of the device
        return KeptContext(prefill, kept, room_tokens=room_tokens)

    def token_nll(self, tokens: Ids) -> NDArray[np.float32]:
        """Loss in nats of tokens[1:]. Raises `ModelError` when it is not finite."""
        losses = self._prefill(len(tokens)).token_nll(torch.from_numpy(tokens))
        _refuse_not_finite(losses, len(tokens))
        found: NDArray[np.float32] = losses.cpu().numpy()
        return found

    @torch.no_grad()
    def score_after_token(self, token: int, answer: Sequence[int]) -> Score:
        """Teacher-forced score of an answer that only one token stands before, by a plain forward.

        Raises `DataError` when it is longer than `BATCH_TOKENS`: logits are whole.
        """
        if len(answer) > BATCH_TOKENS:
            raise DataError(
                "eval.over-length",
                f"an answer of {len(answer)} tokens after a context of one",
                fix=f"score at most {BATCH_TOKENS} tokens so, or ask for the loss of the whole text",
            )
        gold = torch.tensor(list(answer), device=self.decoder.device)
        text = torch.tensor([[token, *answer[:-1]]], device=self.decoder.device)
        with autocast(self.decoder):
            logits = self.decoder(text)[0]
        _refuse_not_finite(logits, len(answer))
        logprobs = logits.float().log_softmax(-1).gather(1, gold[:, None]).double()
        return Score(hit=bool((logits.argmax(-1) == gold).all()), logprob=float(logprobs.sum()))

    @torch.no_grad()
    def check(self) -> float:
        """Compare branches after a short random context with plain full forwards; the largest difference comes back.

        It is a share of the largest logit. Raises `ModelError` (`eval.branch-differs`) when it is more than rounding
        explains; with keys kept as fp8 numbers nothing is refused.
        """
        generator = torch.Generator().manual_seed(0)
        sizes = (CHECK_TOKENS, *CHECK_BRANCHES)
        parts = [torch.randint(0, self.decoder.shape.vocabulary, (n,), generator=generator).numpy() for n in sizes]
        wanted = []
        for branch in parts[1:]:
            whole = torch.from_numpy(np.concatenate([parts[0], branch])).to(self.decoder.device)
            with autocast(self.decoder):
                wanted.append(self.decoder(whole[None])[0, CHECK_TOKENS:])
        worst = 0.0
        for prefill in filter(None, (self._near, self._far)):
            kept = KeptContext(prefill, prefill.read(torch.from_numpy(parts[0])), room_tokens=max(CHECK_BRANCHES))
            for rows, found in zip(wanted, kept.logits([part.tolist() for part in parts[1:]]), strict=True):
                worst = max(worst, float((found - rows).abs().max() / rows.abs().max()))
        if not self._near.keep.codes and not worst <= LIMITS[self._near.dtype]:
            raise ModelError(
                "eval.branch-differs",
                f"questions after a kept context get other logits than a plain forward: {worst:.2g} of the largest",
                where=f"a context of {CHECK_TOKENS} random tokens, {self._near.dtype} on {self.decoder.device}",
                fix="report it with `longspan doctor`; nothing was evaluated",
            )
        return worst


class KeptContext:
    """Keys and values of one context. Questions go through the model side by side, and none sees another."""

    def __init__(self, prefill: Prefill, kept: Kept, *, room_tokens: int) -> None:
        self._prefill, self._kept, self._room = prefill, kept, room_tokens

    def score(self, asked: Sequence[Asked]) -> list[Score]:
        """Teacher-forced score of each gold answer: every token the most likely one means greedy decoding gives it.

        Raises `DataError` when a question and its answer are longer than the room, `ModelError` when logits are not
        finite.
        """
        for entry in asked:
            self._refuse_longer(len(entry.question) + len(entry.answer))
        found: list[Score] = []
        texts = [[*entry.question, *entry.answer[:-1]] for entry in asked]
        for part in _batches([len(text) for text in texts]):
            hidden = self._branches(texts[part], more_tokens=0)[1]
            wanted = [rows[-len(entry.answer) :] for rows, entry in zip(hidden, asked[part], strict=True)]
            gold = [list(entry.answer) for entry in asked[part]]
            found += self._scores(torch.cat(wanted), gold)
        return found

    def logits(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Float32 logits `[n, v]` at every token of each text after the context. Raises as `score` does."""
        for text in texts:
            self._refuse_longer(len(text))
        found = [self._prefill.logits(rows) for rows in self._branches(texts, more_tokens=0)[1]]
        for rows in found:
            self._refuse_not_finite(rows)
        return found

    def generate(
        self,
        questions: Sequence[Sequence[int]],
        *,
        max_new_tokens: Sequence[int],
        stop_ids: Sequence[int] = (),
        sampling: Sampling | None = None,
        ended: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[list[int]]:
        """Continuation of each question, up to its `max_new_tokens`; one of `stop_ids` ends it and is left out.

        Greedy, or drawn: what a seed gives depends on no other question. `ended` may end one after a token that it
        keeps. Raises as `score` does.
        """
        sizes = [len(question) + most for question, most in zip(questions, max_new_tokens, strict=True)]
        for size in sizes:
            self._refuse_longer(size)
        said: list[list[int]] = []
        for part in _batches(sizes):
            most = max_new_tokens[part]
            draws = [] if sampling is None else [random.Random(seed) for seed in sampling.seeds[part]]
            branches, hidden = self._branches(questions[part], more_tokens=max(most))
            mine: list[list[int]] = [[] for _ in most]
            open_ = {index for index, count in enumerate(most) if count}
            while open_:
                logits = self._prefill.logits(torch.stack([rows[-1] for rows in hidden]))
                self._refuse_not_finite(logits)
                chosen = logits.argmax(-1) if sampling is None else _drawn(logits, sampling.temperature, draws)
                tokens: list[int] = chosen.tolist()
                for index in tuple(open_):
                    if tokens[index] in stop_ids:
                        open_.discard(index)
                        continue
                    mine[index].append(tokens[index])
                    if len(mine[index]) == most[index] or (ended is not None and ended(mine[index])):
                        open_.discard(index)
                if open_:
                    hidden = branches.extend([[token] for token in tokens])
            said += mine
        return said

    def _branches(self, texts: Sequence[Sequence[int]], *, more_tokens: int) -> tuple[Branches, list[Tensor]]:
        room = max(len(text) for text in texts) + more_tokens
        branches = Branches(self._prefill, self._kept, count=len(texts), room_tokens=room)
        return branches, branches.extend(texts)

    def _scores(self, hidden: Tensor, gold: list[list[int]]) -> list[Score]:
        """The rows of `hidden` predict the tokens of `gold`, one answer after another."""
        wanted = torch.tensor([token for answer in gold for token in answer], device=hidden.device)
        right, logprob = [], []
        for rows, tokens in zip(torch.split(hidden, LOGIT_ROWS), torch.split(wanted, LOGIT_ROWS), strict=True):
            logits = self._prefill.logits(rows)
            self._refuse_not_finite(logits)
            right.append(logits.argmax(-1) == tokens)
            logprob.append(logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        sizes = [len(answer) for answer in gold]
        hits = torch.split(torch.cat(right).cpu(), sizes)
        sums = torch.split(torch.cat(logprob).double().cpu(), sizes)
        return [Score(hit=bool(hit.all()), logprob=float(s.sum())) for hit, s in zip(hits, sums, strict=True)]

    def _refuse_longer(self, tokens: int) -> None:
        if tokens > self._room:
            raise DataError(
                "eval.over-length",
                f"a question and answer of {tokens} tokens do not fit in the {self._room} left after the context",
                fix="leave more room after the context; nothing is ever truncated",
            )

    def _refuse_not_finite(self, values: Tensor) -> None:
        _refuse_not_finite(values, self._kept.length)


def _drawn(logits: Tensor, temperature: float, draws: Sequence[random.Random]) -> Tensor:
    """One token of each row of logits, where a number between 0 and 1 falls among the shares laid end to end."""
    ends = (logits.double() / temperature).softmax(-1).cumsum(-1)
    marks = torch.tensor([[draw.random()] for draw in draws], dtype=ends.dtype, device=ends.device)
    return torch.searchsorted(ends, marks * ends[:, -1:], right=True)[:, 0].clamp_max(logits.shape[1] - 1)


def _batches(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive texts whose tokens, each as many as the longest of them, are at most `BATCH_TOKENS`."""
    start, widest = 0, 0
    for index, size in enumerate(sizes):
        widest = max(widest, size)
        if index > start and widest * (index + 1 - start) > BATCH_TOKENS:
            yield slice(start, index)
            start, widest = index, size
    if sizes:
        yield slice(start, len(sizes))


def _refuse_not_finite(values: Tensor, length: int) -> None:
    if not bool(values.isfinite().all()):
        raise ModelError(
            "model.not-finite",
            f"the model gives numbers that are not finite at {length} tokens",
            fix="check the weights and the position method; a float16 model may need bfloat16",
        )
