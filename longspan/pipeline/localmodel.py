"""A model folder on this machine, as something that answers prompts."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from longspan.data.chat import ChatFormat
from longspan.data.rows import digest
from longspan.data.tokenize import load_tokenizer
from longspan.engine.prefill import Branches, Prefill
from longspan.model.folder import read_plain
from longspan.model.weights import load_to_read

TEMPERATURE, TOP_P = 0.7, 0.8


class LocalModel:
    """Answers prompts with the model of a folder, token by token behind a context that is read once.

    Tokens are drawn with temperature and top-p as from a server; the same seed, prompt, and number of times that it was
    asked give the same answer. An answer has at most `most_tokens`, and fewer where the model's own window ends.
    Raises `ModelError` and `DataError` for a folder that will not load or has no chat template.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        most_tokens: int = 4_096,
        temperature: float = TEMPERATURE,
        gpu: bool = True,
    ) -> None:
        self._decoder = load_to_read(folder, "cuda" if gpu and torch.cuda.is_available() else "cpu")
        settings, template = read_plain(folder / "tokenizer_config.json"), folder / "chat_template.jinja"
        if template.exists():  # where newer versions of transformers write it
            settings["chat_template"] = template.read_text(encoding="utf-8")
        self._tokenizer = load_tokenizer(folder, vocabulary=self._decoder.shape.vocabulary)
        self._chat = ChatFormat(self._tokenizer, settings)
        self._prefill = Prefill(self._decoder)
        self._seed, self._most, self._temperature = seed, most_tokens, temperature
        self._asked: Counter[tuple[str, str]] = Counter()

    @torch.no_grad()
    def ask(self, prompt: str, prefix: str = "") -> str:
        """The answer to a prompt behind `prefix`, which the model takes for the beginning of its own answer.

        Nothing comes when the prompt leaves no room in the model's window.
        """
        ids = self._chat.opened([{"role": "user", "content": prompt}], prefix).tolist()
        most = min(self._most, self._decoder.frequencies.length - len(ids))
        self._asked[prompt, prefix] += 1
        key = (self._seed, self._asked[prompt, prefix], prompt, prefix)
        draw = torch.Generator().manual_seed(digest(key) % 2**63)
        said: list[int] = []
        if most < 1:
            return ""
        kept = self._prefill.read(torch.tensor(ids[:-1]))
        branches = Branches(self._prefill, kept, count=1, room_tokens=most + 1)
        (hidden,) = branches.extend([ids[-1:]])
        while len(said) < most:
            token = drawn(self._prefill.logits(hidden[-1:])[0], draw, temperature=self._temperature, top_p=TOP_P)
            if token == self._chat.closing:
                break
            said.append(token)
            (hidden,) = branches.extend([[token]])
        return str(self._tokenizer.decode(said, skip_special_tokens=True))


def drawn(logits: Tensor, generator: torch.Generator, *, temperature: float, top_p: float) -> int:
    """A token drawn from the likeliest ones that have `top_p` of the probability together; at 0 the likeliest.

    Source: Holtzman and others 2020, arXiv:1904.09751, section 3.1 (nucleus sampling).
    """
    if temperature == 0:
        return int(logits.argmax())
    shares, order = (logits.float().cpu() / temperature).softmax(-1).sort(descending=True)
    nucleus = shares.cumsum(-1) - shares < top_p  # up to and with the one that reaches top_p
    return int(order[int(torch.multinomial(shares * nucleus, 1, generator=generator))])
