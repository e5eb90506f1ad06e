"""What a recipe says about data: where texts come from, which are held out, and what a stage's rows are made of."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from longspan.config import Settings, any_kind
from longspan.data.executors.base import Executor
from longspan.data.executors.local import Local
from longspan.data.filters.base import CorpusFilter, Filter
from longspan.data.streams import StreamSettings
from longspan.probes import Probe

if TYPE_CHECKING:
    AnyProbe = Probe
    AnyFilter = Filter | CorpusFilter
    AnyExecutor = Executor
else:  # the unions of the files in these folders, told apart by `kind`
    AnyProbe = any_kind("longspan.probes")
    AnyFilter = any_kind("longspan.data.filters")
    AnyExecutor = any_kind("longspan.data.executors")


class SourceSettings(Settings):
    """One place with documents: a text, jsonl or parquet file, or a folder of them.

    `text_field` names the field of jsonl and parquet rows that holds the text; text files have no fields. `name` goes
    before the ids of the documents, so that globs can tell sources apart. `documents` says what one document is: each
    of the "files" (or rows); each folder directly below, as one of the "repositories", its text files in the order of
    names, each after the line `header` with its path in place of {path}; each folder's own files, in order, as one
    of the "sets", such as the chapters of a book; or the field `messages` of jsonl and parquet rows as one of the
    "chats": a list of messages, each with `role` and `content`.

    `hub` is a data set on the Hugging Face hub as `owner/name@commit`: its `files` (globs) are loaded into `path` once.
    `stream` is a data set that the package `datasets` reads: its rows are written into `path` once.
    """

    path: Path
    text_field: str = "text"
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    documents: Literal["files", "repositories", "sets", "chats"] = "files"
    header: str = "// FILE {path}"
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+@[0-9a-f]{40}$")
    files: tuple[str, ...] = ("*.parquet", "*.jsonl")
    stream: StreamSettings | None = None

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Self:
        if self.hub is not None and self.stream is not None:
            raise ValueError("hub loads files and stream writes rows into the same path: leave one of them out")
        if self.stream is not None and self.documents not in ("files", "chats"):
            raise ValueError(f"the rows of a stream are documents or chats, no {self.documents}")
        return self

    @property
    def row_field(self) -> str:
        """The field of rows that is read: the text, or the messages of a conversation."""
        return "messages" if self.documents == "chats" else self.text_field


class CurateSettings(Settings):
    """What the documents go through before they become tokens: the `filters`, in this order.

    The sources are worked on in parts of about `part_bytes` of files, each part whole or not at all, by the `executor`.
    """

    filters: Annotated[tuple[AnyFilter, ...], Field(min_length=1)]
    part_bytes: int = Field(default=64 * 2**20, ge=1)
    executor: AnyExecutor = Local()


class DataSettings(Settings):
    """All documents of a job.

    A document is held out when its id matches a glob of `held_out`, or by the hash of its id for the share
    `held_out_share`. `tokenizer` is a tokenizer.json or its folder; None takes the model's own. Documents above
    `max_document_bytes` (UTF-8) are set aside and counted. `curate` filters what is not held out.
    """

    sources: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    held_out: tuple[str, ...] = ()
    held_out_share: float = Field(default=0.0, ge=0.0, lt=1.0)
    tokenizer: Path | None = None
    max_document_bytes: int = Field(default=2**30, ge=1)
    curate: CurateSettings | None = None

    @model_validator(mode="after")
    def _filters_read_text(self) -> Self:
        if self.curate is not None and any(source.documents == "chats" for source in self.sources):
            raise ValueError("filters read text and no conversations: give chats a recipe without data.curate")
        return self


class MixPart(Settings):
    """A share of a stage's rows, by tokens: plain text, or a probe planted in text.

    At most `items` lines are planted in a probe's text, as many as fit; None means 8, or what the probe can carry.
    Tokens of answers weigh `answer_weight` in the loss, all others 1; None means 1. Both need a probe. Documents of
    `length` tokens, shorter than the stage's and a whole fraction of it, are packed into the row; None means the
    stage's length. The text comes from the documents whose ids match a glob of `documents` (all when empty) and that
    have `least_tokens` to `most_tokens`.

    Without `borders` the documents of a row attend to each other, and a separator predicts the next one's first token.

    With `answers` the documents are conversations: whole ones are packed into the rows, none is cut, and only the
    tokens of answers are learnt.

    With `reach` the positions of a document jump `pieces` - 1 times (once unless told) at random places, so that they
    lie anywhere below `reach`, which is more than there are tokens: far positions at the price of short rows.
    """

    share: float = Field(gt=0.0, le=1.0)
    probe: AnyProbe | None = None
    items: int | None = Field(default=None, ge=1)
    answer_weight: float | None = Field(default=None, gt=0.0)
    length: int | None = Field(default=None, ge=2)
    documents: tuple[str, ...] = ()
    least_tokens: int = Field(default=0, ge=0)
    most_tokens: int | None = Field(default=None, ge=1)
    borders: bool = True
    answers: bool = False
    reach: int | None = Field(default=None, ge=2)
    pieces: int | None = Field(default=None, ge=2, le=4096)

    @model_validator(mode="after")
    def _every_setting_works(self) -> Self:
        if self.pieces is not None and self.reach is None:
            raise ValueError("pieces without reach: positions jump only to reach farther")
        if self.most_tokens is not None and self.most_tokens < self.least_tokens:
            raise ValueError(f"no document has {self.least_tokens} and at most {self.most_tokens} tokens")
        if not self.borders and (self.answers or self.probe is not None):
            raise ValueError("borders = false is for plain text: probes and conversations keep to themselves")
        if self.answers and self.probe is not None:
            raise ValueError("answers of conversations and a probe are two parts of a mix")
        if self.probe is None:
            idle = [name for name in ("items", "answer_weight") if getattr(self, name) is not None]
            if idle:
                raise ValueError(f"{' and '.join(idle)} without a probe: nothing is planted in plain text")
        elif self.items is not None and self.probe.most_items is not None and self.items > self.probe.most_items:
            raise ValueError(f"items {self.items}: a text carries {self.probe.most_items} line of {self.probe.kind}")
        return self


def _shares_add_up(parts: tuple[MixPart, ...]) -> tuple[MixPart, ...]:
    total = math.fsum(part.share for part in parts)
    if abs(total - 1.0) > 1e-6:
        raise ValueError(f"the shares of a mix must add up to 1, not {total:g}")
    return parts


Mix = Annotated[tuple[MixPart, ...], Field(min_length=1), AfterValidator(_shares_add_up)]
