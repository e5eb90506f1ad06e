"""A server that speaks OpenAI's chat format, as something that answers prompts."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

from longspan.config import Settings
from longspan.utils.errors import DataError

TRIES, FIRST_PAUSE_SECONDS = 4, 1.0
GO_ON = """

Your answer begins as follows. Go on exactly where it breaks off, and repeat nothing of it:

"""


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

    def ask(self, prompt: str, prefix: str = "") -> str:
        """The answer to one prompt, behind `prefix` if it is to begin so: any server is asked to go on there.

        A server that is busy or gone is asked again a few times.
        Raises `DataError` when it stays so, or answers in another format.
        """
        content = f"{prompt}{GO_ON}{prefix}" if prefix else prompt
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
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
                    found = _content(answer.read())
                    again = found.lstrip()  # some say the beginning once more
                    return again.removeprefix(prefix) if prefix and again.startswith(prefix) else found
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


def _failed(where: str, what: str) -> DataError:
    return DataError(
        "write.server", f"the server gives no answer: {what}", where=where, fix="start it, or check address and model"
    )
