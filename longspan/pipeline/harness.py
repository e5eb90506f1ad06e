"""lm-evaluation-harness on a longspan model folder: its tasks, its options, its tables; our forward pass."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longspan.data.tokenize import load_tokenizer, plain_encode, separator_id
from longspan.eval.context import DecoderReader
from longspan.eval.harness import Answers
from longspan.model.weights import load_to_read
from longspan.utils.errors import ConfigError

NAME = "longspan"
REPLY_TOKENS = 256  # where a task does not say


def register() -> type[Any]:
    """Put the model `longspan` into the harness's registry; the class comes back.

    Its `model_args` are `model=FOLDER` and, if wanted, `device=`. Raises `ConfigError` when the harness is missing.
    """
    # Its own models first: it looks for them only while its registry is empty.
    _, api, registry = _modules("lm_eval.models", "lm_eval.api.model", "lm_eval.api.registry")
    if NAME in registry.MODEL_REGISTRY:
        known: type[Any] = registry.get_model(NAME)
        return known
    made: type[Any] = registry.register_model(NAME)(type("Longspan", (HarnessModel, api.TemplateLM), {}))
    return made


def run(folder: Path, words: Sequence[str]) -> None:
    """The harness's own command on a model folder, with its own words, such as --tasks hellaswag --limit 100.

    Raises `ConfigError` when the harness is missing, and what the model's folder raises.
    """
    register()
    (main,) = _modules("lm_eval.__main__")
    before, sys.argv = sys.argv, ["lm_eval", "--model", NAME, "--model_args", f"model={folder}", *words]
    try:
        main.cli_evaluate()
    finally:
        sys.argv = before


def _modules(*names: str) -> list[Any]:
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as cause:
        raise ConfigError(
            "eval.no-harness",
            f"lm-evaluation-harness is not installed ({cause})",
            where="eval harness",
            fix="pip install 'longspan[harness]'",
        ) from cause


class HarnessModel:
    """What a model of the harness must do, to be put before its own class `TemplateLM`, which splits texts into ids.

    `model` is a folder. The harness always gives a `batch_size`; what goes together is decided here.
    """

    cache_hook: Any  # of TemplateLM: it keeps answers for the harness's own cache

    def __init__(self, model: str, device: str = "", batch_size: Any = 1, max_batch_size: Any = None) -> None:
        super().__init__()
        del batch_size, max_batch_size
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        tokenizer = load_tokenizer(Path(model))
        decoder = load_to_read(model, place)
        self._encode, self._name = plain_encode(tokenizer), model.replace("/", "__")
        self._answers = Answers(
            DecoderReader(decoder),
            encode=self._encode,
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
            prefix_id=separator_id(tokenizer),
        )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a document, and stands before one that nothing comes before."""
        return self._answers.prefix_id

    @property
    def tokenizer_name(self) -> str:
        """By what the harness's caches know it."""
        return self._name

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        """Ids of a text; special tokens are never added."""
        return self._encode(string)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        found = self._answers.pairs([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, score)
        return found

    def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
        """Log-probability of whole texts, each in one pass: no window cuts it."""
        return [self._answers.whole(request.args[0]) for request in requests]

    def generate_until(self, requests: Any, **_: Any) -> list[str]:
        """Greedy replies. Raises `ConfigError` when a task asks for drawn ones."""
        return [self._reply(*request.args) for request in requests]

    def _reply(self, text: str, given: dict[str, Any]) -> str:
        if given.get("do_sample") and given.get("temperature") != 0:
            raise ConfigError(
                "eval.harness-sampling",
                "the task asks for drawn replies, and replies are greedy here",
                where=f"--model {NAME}",
                fix="choose another task, or pass --gen_kwargs do_sample=False",
            )
        until = given.get("until") or []
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        most = next((int(given[name]) for name in names if given.get(name) is not None), REPLY_TOKENS)
        return self._answers.reply(text, until=[until] if isinstance(until, str) else until, most=most)
