"""A file of JSON lines that grows: one line an event, written at once, whole again after a kill."""

import json
from pathlib import Path
from typing import Any

from longspan.utils.errors import DataError
from longspan.utils.files import storage_errors


class Lines:
    """A JSONL file and its content. A last line that a kill cut short is dropped when the file is opened."""

    def __init__(self, path: Path) -> None:
        """Raises `DataError` when a whole line is no JSON object: then the file is not ours to go on with."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                with path.open("r+b") as file:
                    file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except ValueError as cause:
                raise DataError(
                    "file.lines",
                    f"line {number} is no JSON object",
                    where=str(path),
                    fix="remove the file; what it holds is then measured anew",
                ) from cause
            self.rows.append(row)

    def append(self, *rows: dict[str, Any]) -> None:
        """Write rows behind the others, in one go. Raises `StorageError` when the disk refuses."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with storage_errors(self.path), self.path.open("ab") as file:
            file.write(text.encode())
        self.rows += rows
