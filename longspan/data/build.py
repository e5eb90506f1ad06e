"""Builds the two token stores of a job, training and held-out, whole or not at all."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from longspan.data.chat import ChatFormat
from longspan.data.settings import DataSettings
from longspan.data.sources import Document, Quarantine, Rejected, read_documents
from longspan.data.store import Origin, StoreWriter, TokenStore
from longspan.data.tokenize import (
    CHECKED_CHARACTERS,
    PIECE_CHARACTERS,
    UncuttableText,
    check_tokenizer,
    cut_points,
    cut_rule,
    encode_pieces,
    for_documents,
)
from longspan.utils.errors import DataError
from longspan.utils.files import fsync_folder, read_json, storage_errors, write_json
from longspan.utils.values import canonical_sha256

CHANGED = "data.sources-changed"
ORIGIN = "building.json"  # in a folder that is being built: what it is going to hold

Progress = Callable[[int, int], None]  # bytes of text done; bytes in all, as far as they are known


@dataclass(frozen=True)
class Stores:
    """The documents to train on and those held out, apart by whole documents."""

    train: TokenStore
    held_out: TokenStore

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Stores":
        """Open both stores of a folder that `build_stores` wrote.

        Raises `DataError` when one is missing or damaged.
        """
        train, held_out = (TokenStore.open(folder / name, verify=verify) for name in ("train", "held_out"))
        return cls(train, held_out)


@dataclass
class _Survey:
    """What a first reading of all sources finds, before any long work."""

    quarantine: Quarantine = field(default_factory=Quarantine)
    total_bytes: int = 0
    train: int = 0
    held_out: set[str] = field(default_factory=set)
    first_text: str = ""
    contents: Any = field(default_factory=hashlib.sha256)

    def add(self, document: Document, *, held_out: bool) -> None:
        self.first_text = self.first_text or document.text[:CHECKED_CHARACTERS]
        self.total_bytes += document.size_bytes
        if held_out:
            self.held_out.add(document.id)
        else:
            self.train += 1
        for part in (document.id.encode("utf-8", "surrogatepass"), document.text.encode()):
            self.contents.update(len(part).to_bytes(8, "little") + hashlib.sha256(part).digest())


def is_held_out(document_id: str, settings: DataSettings) -> bool:
    """Whether a document is kept from training: by a glob over its id, or by the hash of its id."""
    if any(fnmatchcase(document_id, pattern) for pattern in settings.held_out):
        return True
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < settings.held_out_share * 2**64


def build_stores(
    folder: Path,
    settings: DataSettings,
    *,
    tokenizer: Tokenizer,
    vocabulary: int,
    separator: int,
    chat: ChatFormat | None = None,
    progress: Progress | None = None,
) -> Stores:
    """Tokenize all sources into `folder`/train and `folder`/held_out, or open them when they are there already.

    A finished pair is used again when its fingerprint (texts, ids, split, tokenizer, what was set aside) is still
    right. Otherwise a new pair is built beside it and the old one is kept under another name. A build that was
    killed leaves nothing that opens, and goes on after its last whole shards. `vocabulary` is the model's, above
    every id of the tokenizer; `separator` ends each document; `chat` writes conversations, where there are any.
    `progress` hears of every document, in the first reading with nothing done yet, and of the stretches of a long one.
    Raises `DataError` for sources, tokenizers and stores that cannot be used, before long work.
    """
    tokenizer = for_documents(tokenizer)
    survey = _survey(settings, tokenizer, progress=progress)
    origin = _origin(survey, tokenizer, vocabulary=vocabulary, separator=separator, chat=chat)
    if folder.exists():
        stores = Stores.open(folder)
        if {stores.train.fingerprint, stores.held_out.fingerprint} == {origin.fingerprint}:
            return stores
    building = folder.with_name(f".{folder.name}.building")
    try:
        _begin(building, origin)
        encode = functools.partial(_encoded, tokenizer=tokenizer, chat=chat)
        _write(building, settings, tokenizer=tokenizer, encode=encode, origin=origin, survey=survey, progress=progress)
    except BaseException as error:
        changed = isinstance(error, DataError) and error.code == CHANGED
        if changed or not any(building.glob("*/shard-*.json")):  # else the next build goes on from there
            shutil.rmtree(building, ignore_errors=True)
        raise
    with storage_errors(folder):
        for mark in (building / ORIGIN, *building.glob("*/shard-*.json")):  # of use to a killed build only
            mark.unlink()
        if folder.exists():
            folder.rename(_free_name(folder))
        building.rename(folder)
        fsync_folder(folder.parent)
    return Stores.open(folder, verify=False)


def _begin(building: Path, origin: Origin) -> None:
    """Leave what a killed build of the same tokens has finished, and nothing of another's."""
    mark = building / ORIGIN
    if mark.exists() and read_json(mark, error=DataError, code="data.building")["fingerprint"] == origin.fingerprint:
        return
    with storage_errors(building):
        if building.exists():
            shutil.rmtree(building)
        building.mkdir(parents=True)
    write_json(mark, {"fingerprint": origin.fingerprint})


def _origin(
    survey: _Survey, tokenizer: Tokenizer, *, vocabulary: int, separator: int, chat: ChatFormat | None
) -> Origin:
    tokenizer_sha256 = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    if chat is not None:  # its template decides tokens, too
        tokenizer_sha256 = hashlib.sha256(f"{tokenizer_sha256} {chat.sha256}".encode()).hexdigest()
    set_aside = survey.quarantine.record()
    decides = {
        "format": 2,  # raise it when the same texts are to give other tokens
        "contents": survey.contents.hexdigest(),
        "held_out": sorted(survey.held_out),
        "tokenizer": tokenizer_sha256,
        "vocabulary": vocabulary,
        "separator": separator,
        "quarantine": {reason: found.count for reason, found in set_aside.items()},
    }
    return Origin(
        vocabulary=vocabulary,
        separator=separator,
        tokenizer_sha256=tokenizer_sha256,
        fingerprint=canonical_sha256(decides),
        quarantine=set_aside,
    )


def _survey(settings: DataSettings, tokenizer: Tokenizer, *, progress: Progress | None) -> _Survey:
    survey = _Survey()
    for document in _usable(settings, tokenizer, survey.quarantine):
        survey.add(document, held_out=is_held_out(document.id, settings))
        if progress:
            progress(0, survey.total_bytes)
    where = ", ".join(str(source.path) for source in settings.sources)
    if not survey.train:
        raise DataError(
            "data.nothing-to-train",
            f"no document is left to train on: {len(survey.held_out)} held out, set aside: {survey.quarantine}",
            where=where,
            fix="give more documents, or hold out fewer",
        )
    idle = [p for p in settings.held_out if not any(fnmatchcase(name, p) for name in survey.held_out)]
    if idle or (settings.held_out_share and not survey.held_out):
        raise DataError(
            "data.nothing-held-out",
            f"held_out {idle[0]!r} matches no document" if idle else "held_out_share is too small to hold out anything",
            where=where,
            fix="name documents by their ids (paths relative to the source) in held_out, or raise held_out_share",
        )
    check_tokenizer(tokenizer, survey.first_text)
    return survey


def _usable(settings: DataSettings, tokenizer: Tokenizer, quarantine: Quarantine) -> Iterator[Document]:
    rule = cut_rule(tokenizer)
    cap_bytes = settings.max_document_bytes
    for document in read_documents(settings.sources, max_document_bytes=cap_bytes, quarantine=quarantine):
        try:
            if not document.chat:
                cut_points(document.text, rule, piece_characters=PIECE_CHARACTERS)
        except UncuttableText:
            quarantine.add(Rejected(document.id, "no-cut-point"))
        else:
            yield document


def _write(
    building: Path,
    settings: DataSettings,
    *,
    tokenizer: Tokenizer,
    encode: Callable[[Document], Iterator[NDArray[np.uint32]]],
    origin: Origin,
    survey: _Survey,
    progress: Progress | None,
) -> None:
    again = _Survey()
    with StoreWriter(building / "train", origin) as train, StoreWriter(building / "held_out", origin) as held:
        left = {True: held.done, False: train.done}  # documents that whole shards of a killed build hold already
        for document in _usable(settings, tokenizer, again.quarantine):
            held_out, before = is_held_out(document.id, settings), again.total_bytes
            again.add(document, held_out=held_out)
            if left[held_out]:
                left[held_out] -= 1
            else:
                pieces = _heard(encode(document), progress, before, survey.total_bytes)
                (held if held_out else train).add(document.id, pieces)
            if progress:
                progress(again.total_bytes, survey.total_bytes)
        if again.contents.digest() != survey.contents.digest():
            raise DataError(
                CHANGED,
                "the sources changed while they were read",
                where=", ".join(str(source.path) for source in settings.sources),
                fix="run again when nothing writes to them",
            )
        train.finish()
        held.finish()


def _encoded(document: Document, *, tokenizer: Tokenizer, chat: ChatFormat | None) -> Iterator[NDArray[np.uint32]]:
    if not document.chat:
        return encode_pieces(document.text, tokenizer)
    assert chat is not None, "a job with sources of chats has their format"
    return iter([chat.encode(json.loads(document.text))])


def _heard(
    pieces: Iterator[NDArray[np.uint32]], progress: Progress | None, done: int, total: int
) -> Iterator[NDArray[np.uint32]]:
    """The pieces of a document; `progress` hears between two of them, so that a stop waits for no long document."""
    for number, piece in enumerate(pieces):
        if number and progress:
            progress(done, total)
        yield piece


def _free_name(folder: Path) -> Path:
    number = 1
    while (name := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return name
