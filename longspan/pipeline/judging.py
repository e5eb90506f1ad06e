"""A decoder as the judge of a search: texts laid out as sheets, candidates measured on them."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from longspan.data.store import TokenStore
from longspan.engine import candidates as engine
from longspan.model.decoder import Decoder
from longspan.probes import Encode, training_row
from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.search.judge import Sheet, Slope
from longspan.search.settings import SearchSettings
from longspan.utils.errors import DataError
from longspan.utils.values import canonical_sha256

PASS_TOKENS = {"cuda": 2**17, "cpu": 2**14}  # what one pass takes unless the recipe says otherwise
LAYOUT = 1  # raised when sheets of before are no longer the same
ANSWER = 2.0  # the weight that marks answers in a row of probes

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Long stretches of whole documents, each `length` + 1 tokens, in an order that depends on the seed.

    They do not overlap. Where a document has room to spare, the seed says where in it they lie.
    """

    store: TokenStore
    length: int
    seed: int

    def places(self) -> list[tuple[int, int]]:
        """(document, start) of every stretch. Raises `DataError` when no document is long enough."""
        rng, size = random.Random(f"{self.seed}/texts/{self.length}"), self.length + 1
        found: list[tuple[int, int]] = []
        for document, tokens in enumerate((self.store.lengths - 1).tolist()):  # without its separator
            count = tokens // size
            start = rng.randint(0, tokens - count * size) if count else 0
            found += [(document, start + index * size) for index in range(count)]
        if not found:
            raise DataError(
                "search.document-short",
                f"no document has the {size:,} tokens of one text at this length; "
                f"the longest has {int(max(self.store.lengths, default=1)) - 1:,}",
                where=str(self.store.folder),
                fix="add a longer document, or search for a shorter length",
            )
        rng.shuffle(found)
        return found

    def require(self, count: int) -> None:
        """Raise `DataError` when there are fewer stretches than `count`."""
        have = len(self.places())
        if have < count:
            raise DataError(
                "search.few-texts",
                f"{count} texts of {self.length:,} tokens are needed, and the documents hold {have}",
                where=str(self.store.folder),
                fix="add long documents, or lower the texts in search.halving and search.skip_rows",
            )

    def read(self, number: int) -> Ids:
        """Stretch `number`."""
        document, start = self.places()[number]
        return self.store.read(document, start, self.length + 1)


class DecoderJudge:
    """A decoder with frozen weights, measured as the recipe's search says."""

    def __init__(
        self,
        decoder: Decoder,
        texts: Texts,
        settings: SearchSettings,
        *,
        pass_tokens: int,
        encode: Encode,
        identity: Sequence[str],
    ) -> None:
        """`identity` names weights and texts; `pass_tokens` go through the decoder at once."""
        self.decoder = decoder.requires_grad_(False).eval()
        self.pass_tokens = pass_tokens
        self._texts, self._settings, self._encode = texts, settings, encode
        self._sheets: dict[str, engine.Sheet] = {}
        unasked = {"strategy", "compare", "halving", "length", "pass_tokens", "export"}
        asked = settings.model_dump(mode="json", exclude=unasked)
        dtype = str(decoder.embed.weight.dtype)
        self._identity = canonical_sha256(
            [LAYOUT, *identity, asked, texts.length, texts.seed, dtype, asdict(decoder.frequencies)]
        )

    @property
    def length(self) -> int:
        """Tokens of a whole text."""
        return self._texts.length

    @property
    def identity(self) -> str:
        """Hash of weights, frequencies, texts, seed and what is measured."""
        return self._identity

    def together(self, sheet: Sheet) -> int:
        """As many as fill one pass."""
        return max(1, self.pass_tokens // self._sheet(sheet).tokens.numel())

    def losses(self, sets: Sequence[tuple[Frequencies, int]], sheet: Sheet) -> list[float]:
        """Mean loss of the scored tokens, in nats."""
        some = [engine.Candidate(frequencies=frequencies, kept_tokens=kept) for frequencies, kept in sets]
        nll = engine.candidate_nll(self.decoder, self._sheet(sheet), some, pass_tokens=self.pass_tokens)
        means: list[float] = nll.double().mean(dim=1).tolist()
        return means

    def slope(self, frequencies: Frequencies, sheet: Sheet) -> Slope:
        """Mean loss and its gradient."""
        loss, by_log_factors, by_log_attention = engine.candidate_gradient(
            self.decoder, self._sheet(sheet), frequencies
        )
        return Slope(loss=loss, by_log_factors=tuple(by_log_factors.tolist()), by_log_attention=by_log_attention)

    def _sheet(self, sheet: Sheet) -> engine.Sheet:
        if sheet.name not in self._sheets:
            full = sheet.kind == "full"
            rows = [sheet.number] if full else range(self._settings.skip_rows)
            laid = [self._full(number) if full else self._skipped(number) for number in rows]
            tokens, positions, targets, scored = (np.stack(parts) for parts in zip(*laid, strict=True))
            self._sheets[sheet.name] = engine.Sheet(
                tokens=torch.from_numpy(tokens),
                positions=torch.from_numpy(positions),
                targets=torch.from_numpy(targets),
                scored=torch.from_numpy(scored),
            )
        return self._sheets[sheet.name]

    def _full(self, number: int) -> tuple[Ids, Ids, Ids, NDArray[np.bool_]]:
        text = self._texts.read(number)
        return self._row(text, np.arange(len(text) - 1), number)

    def _skipped(self, number: int) -> tuple[Ids, Ids, Ids, NDArray[np.bool_]]:
        """Pieces of a long text at their true positions, from its first to its last; what is between is left out.

        Every token still has the one that follows it in the text as its target.
        """
        settings, text = self._settings, self._texts.read(number)
        room = len(text) - 1
        if room <= settings.skip_tokens:
            return self._row(text, np.arange(room), number)
        rng = random.Random(f"{self._texts.seed}/skip/{self._texts.length}/{number}")
        places = piece_places(room, settings.piece_tokens, settings.skip_tokens // settings.piece_tokens, rng=rng)
        positions = (places[:, None] + np.arange(settings.piece_tokens)).ravel()
        if settings.measure == "needle":  # lines are planted in the pieces joined, which then lie at their positions
            return self._row(text[np.append(positions, room)], positions, number)
        return text[positions], positions, text[positions + 1], np.ones(len(positions), dtype=bool)

    def _row(self, text: Ids, positions: Ids, number: int) -> tuple[Ids, Ids, Ids, NDArray[np.bool_]]:
        if self._settings.measure == "perplexity":
            return text[:-1], positions, text[1:], np.ones(len(positions), dtype=bool)
        rng = random.Random(f"{self._texts.seed}/needles/{self._texts.length}/{number}")
        ids, weights = training_row(
            self._settings.probe,
            text,
            length=len(positions),
            items=self._settings.needles,
            answer_weight=ANSWER,
            encode=self._encode,
            rng=rng,
        )
        return ids[:-1], positions, ids[1:], weights[1:] == ANSWER


def piece_places(room: int, piece: int, count: int, *, rng: random.Random) -> Ids:
    """Where `count` pieces of `piece` tokens begin in `room` tokens: the first at the start, the last at the end, the
    gaps between them at random. They do not overlap.
    """
    slack = room - count * piece
    cuts = sorted(rng.randint(0, slack) for _ in range(count - 2))
    gaps = np.array([0, *cuts, slack] if count > 1 else [0], dtype=np.int64)
    return gaps + piece * np.arange(count)


def rope_base(frequencies: Frequencies) -> RopeBase:
    """A decoder's rotary set-up, with its own scaling if it has one."""
    base = RopeBase(
        rotary_dim=frequencies.rotary_dim, theta=frequencies.theta, trained_length=frequencies.trained_length
    )
    if frequencies.attention_factor == 1.0 and set(frequencies.factors) == {1.0}:
        return base
    return replace(base, factors=frequencies.factors, attention_factor=frequencies.attention_factor)
