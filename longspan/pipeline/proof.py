"""Proof of an export: transformers loads the folder and gives the logits of the decoder that was trained."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longspan.model.decoder import Decoder
from longspan.utils.errors import ModelError

MOST_LOGIT_DIFFERENCE = 1e-3  # float32 against float32, two implementations; about 1e-5 for a small model
SAMPLE_TOKENS = 512


def can_prove() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


@torch.no_grad()
def logit_differences(folder: Path, decoder: Decoder, tokens: Int[Tensor, " n"]) -> dict[str, float]:
    """The largest differences of any logit between the folder, as transformers reads it, and the decoder.

    `export_max_logit_diff` compares like with like: both compute in float32 on the CPU, from weights rounded to the
    type of the folder's, with angles formed in float32 as engines form them. The sample stands once at the start
    and once at the end of the context, so that the positions of both are compared. `float32_angles_logit_diff` is
    what those angles cost: the decoder with them against the decoder with the float64 angles it was trained with.
    Raises `ModelError` (`export.differs`) above `MOST_LOGIT_DIFFERENCE`.
    """
    transformers = importlib.import_module("transformers")
    with quiet(transformers.utils.logging):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
    decoder, frequencies = decoder.to("cpu", torch.float32), decoder.frequencies
    end = max(decoder.frequencies.length, len(tokens))
    exported: list[Tensor] = []
    angles: list[Tensor] = []
    for first in sorted({0, end - len(tokens)}):
        positions = torch.arange(first, first + len(tokens))[None]
        decoder.frequencies = frequencies.window(first + len(tokens))  # of a mixed window, as transformers chooses
        found = theirs(input_ids=tokens[None], position_ids=positions, use_cache=False).logits.float()
        trained = _logits(decoder, tokens[None], positions, angle_dtype=torch.float64)
        served = _logits(decoder, tokens[None], positions, angle_dtype=torch.float32)
        exported.append((found - served).abs().max())
        angles.append((trained - served).abs().max())
    decoder.frequencies = frequencies
    worst = largest(exported)
    if not worst <= MOST_LOGIT_DIFFERENCE:
        raise ModelError(
            "export.differs",
            f"transformers computes other logits from the exported folder: they differ by {worst:.2g}",
            where=str(folder),
            fix="do not use this folder; report it with the recipe and the versions in versions.json",
        )
    return {"export_max_logit_diff": worst, "float32_angles_logit_diff": largest(angles)}


def largest(values: Sequence[Float[Tensor, ""]]) -> float:
    """The largest of some numbers; NaN when one of them is, which Python's own `max` may pass over."""
    return float(torch.stack(tuple(values)).max())


@contextlib.contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """No progress bar, and no word on the keys that are meant for other engines; as it was before afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _logits(
    decoder: Decoder, tokens: Int[Tensor, "b S"], positions: Int[Tensor, "b S"], *, angle_dtype: torch.dtype
) -> Float[Tensor, "b S v"]:
    decoder.angle_dtype = angle_dtype
    return decoder.logits(decoder.hidden(tokens, positions=positions))


@torch.no_grad()
def round_weights(decoder: Decoder, dtype: torch.dtype) -> None:
    """Round every weight in place to what `dtype` can hold; the type of the tensors stays."""
    for weight in decoder.parameters():
        weight.copy_(weight.to(dtype))
