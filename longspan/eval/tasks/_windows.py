"""What tasks that score whole windows of text share: a row a window, resumable."""

import time
from collections.abc import Callable
from typing import Any

from longspan.eval.desk import Desk
from longspan.eval.rows import Row, ids_sha256
from longspan.eval.tasks.base import Task
from longspan.eval.text import Ids


def window_row(
    desk: Desk, task: Task, *, name: str, document: int, start: int, length: int, score: Callable[[Ids], dict[str, Any]]
) -> Row:
    """The row of one window of a document: found, or made from what `score` says of its tokens.

    `score` must give back JSON values; `name` holds every setting that they depend on.
    """
    tokens = desk.material.documents.read(document, start, length)
    key = desk.key(name, tokens)
    row = desk.rows.get(key)
    if row is None:
        desk.poll()
        begun = time.monotonic()
        found = score(tokens)
        row = {
            "key": key,
            "task": task.kind,
            "model": desk.model_id,
            "length": length,
            "cluster": f"document {document}",
            "context": ids_sha256(tokens),
            "spec": {
                **task.spec(document=document, start=start),
                "seed": desk.material.seed,
                "text": desk.material.text_id,
            },
            **desk.facts,
            "offset_tokens": start,
            **found,
            "seconds": time.monotonic() - begun,
        }
        desk.rows.append(row)
    return row
