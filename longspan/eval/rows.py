"""The rows of an evaluation: one JSON object a line, written at once, so that a kill loses one row at most."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longspan.utils.errors import DataError
from longspan.utils.lines import Lines
from longspan.utils.values import canonical_sha256

Row = dict[str, Any]


def key_of(*parts: Any) -> str:
    """The name of a row: a hash of everything that decides its result, given as JSON values."""
    return canonical_sha256(parts)[:32]


def counts_as_score(row: Row) -> bool:
    """Whether a row's `score` may be averaged over contexts of its task and length.

    Half of the questions of `recall` have no right answer, and long output has scores of its own.
    """
    return "score" in row and row["task"].split("/")[0] not in ("recall", "sections", "writing", "judge")


def ids_sha256(tokens: NDArray[np.int64]) -> str:
    """Hash of token ids, the same on every machine."""
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()


class Rows:
    """A JSONL file of rows, found again by their `key`. A line that a kill cut short is dropped when it is opened."""

    def __init__(self, path: Path) -> None:
        """Raises `DataError` when a whole line is no row: then the file is not ours to go on with."""
        self.path, self._lines = path, Lines(path)
        self._rows: dict[str, Row] = {}
        for number, row in enumerate(self._lines.rows, start=1):
            if not isinstance(row.get("key"), str):
                raise DataError(
                    "eval.rows",
                    f"line {number} is no row of an evaluation",
                    where=str(path),
                    fix="remove the file; the evaluation then starts anew",
                )
            self._rows[row["key"]] = row

    def get(self, key: str) -> Row | None:
        """The row of this key, or None when it has not been run."""
        return self._rows.get(key)

    def append(self, row: Row) -> None:
        """Write one row behind the others. Raises `StorageError` when the disk refuses."""
        self._lines.append(row)
        self._rows[row["key"]] = row

    def __iter__(self) -> Iterator[Row]:
        """Every row in the order of the file; of two with one key the later."""
        return iter(self._rows.values())

    def merge(self, others: Iterable["Rows"]) -> int:
        """Append every row of other files whose key is not here; how many there were. Raises as `append` does.

        Two machines that ran the same evaluation gave the same answers, so whose row is kept changes its seconds alone.
        """
        count = 0
        for rows in others:
            for row in rows:
                if self.get(row["key"]) is None:
                    self.append(row)
                    count += 1
        return count
