"""`longspan write`: a set of long answers from a server that speaks OpenAI's chat format, line by line, resumable."""

import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from longspan.config import Settings
from longspan.data.agent_write import agent_write
from longspan.utils.errors import ConfigError, DataError, Interrupted
from longspan.utils.files import storage_errors

TRIES, FIRST_PAUSE_SECONDS = 4, 1.0


class Server(Settings):
    """Where answers come from: the base address, such as `http://127.0.0.1:8000/v1`, and the model's name there.

    `key_file` holds the access key, if there is one. `timeout_seconds` is for one answer.
    """

    address: str
    model: str
    key_file: Path | None = None
    temperature: float = 0.7
    top_p: float = 0.8
    most_tokens: int = 4_096
    timeout_seconds: float = 600.0

    def ask(self, prompt: str) -> str:
        """The answer to one prompt. A server that is busy or gone is asked again a few times.

        Raises `DataError` when it stays so, or answers in another format.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.most_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key_file is not None:
            headers["Authorization"] = f"Bearer {self.key_file.read_text(encoding='utf-8').strip()}"
        address = f"{self.address.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, data=json.dumps(body).encode(), headers=headers)
        for attempt in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:
                    return _content(answer.read())
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                status = 500
                if isinstance(error, urllib.error.HTTPError):
                    status = error.code
                    error.close()
                refused = 400 <= status < 500 and status != 429
                if refused or attempt == TRIES - 1:
                    raise _failed(self.address, str(error)) from error
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last try returns or raises")


def _content(answer: bytes) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise _failed("", f"the answer is not in OpenAI's chat format: {error!r}") from error
    return content if isinstance(content, str) else ""


def write_answers(
    instructions: Path, to: Path, server: Server, *, tell: Callable[[str], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Write an answer for each line `{"id": …, "instruction": …}`; how many were written and given up comes back.

    Lines of `to` are conversations that a source of `chats` reads. What stands there is not done again.
    Raises `DataError`, and `Interrupted` when stopped.
    """
    known = _known(to)
    counts: Counter[str] = Counter(written=len(known))
    with storage_errors(to):
        to.parent.mkdir(parents=True, exist_ok=True)
    for name, instruction in _instructions(instructions):
        if name in known:
            continue
        if stop():
            raise Interrupted("every answer that is written is saved")
        found = agent_write(instruction, server.ask)
        counts[found.reason or "written"] += 1
        if found.text:
            talk = [{"role": "user", "content": instruction}, {"role": "assistant", "content": found.text}]
            _append(to, {"id": name, "messages": talk, "words": found.words, "steps": found.steps})
        tell(f"{name}: {found.reason or f'{found.words:,} words in {found.steps} steps'}")
    return dict(counts)


def _instructions(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise ConfigError("write.missing", f"{path.name} does not exist", where=str(path), fix="check the path")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            yield str(row.get("id", number)), row["instruction"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                "write.line",
                f"line {number} is no instruction: {error!r}",
                where=str(path),
                fix='write lines such as {"id": "a", "instruction": "Write a history of …"}',
            ) from error


def _known(path: Path) -> set[str]:
    """The ids that are written; a line that a kill cut short is taken out."""
    if not path.exists():
        return set()
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        with storage_errors(path):
            os.truncate(path, len(kept))
    return {str(json.loads(line)["id"]) for line in kept.splitlines()}


def _append(path: Path, row: dict[str, Any]) -> None:
    with storage_errors(path), path.open("ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _failed(where: str, what: str) -> DataError:
    return DataError(
        "write.server", f"the server gives no answer: {what}", where=where, fix="start it, or check address and model"
    )
