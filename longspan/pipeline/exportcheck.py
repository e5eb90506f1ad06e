"""The check of a written folder: what each engine rotates with, against what config.json means to longspan."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longspan.model.decoder import Decoder
from longspan.model.folder import read_config, read_plain
from longspan.model.weights import save
from longspan.pipeline.proof import can_prove, quiet
from longspan.pipeline.recipe import ExportChoice
from longspan.rope.export import read_rope
from longspan.rope.frequencies import Frequencies
from longspan.rope.layertypes import LAYERED, LOCAL, STRETCHED, read_layer_type
from longspan.rope.methods.searched import Searched
from longspan.rope.methods.su import Su
from longspan.rope.rotate import served_omegas
from longspan.rope.serving import ENGINES, NO_EXPERTS, Served
from longspan.utils.errors import ConfigError, ModelError

EQUAL = 1e-6  # of the unscaled frequency: two float32 formulas of one method
EXACT_KINDS = ("default", "longrope")  # formed alike everywhere: these must be equal to the bit


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one engine makes of the folder for texts of one length, against the frequencies that the file states.

    `layers` names the kind of layers where a file has settings for each. `difference` is the largest of any pair, in
    shares of the unscaled frequency; None when the engine refuses, and `told` says why.
    """

    engine: str
    length: int
    same: bool
    difference: float | None
    attention_factor: float | None
    told: str = ""
    layers: str = ""


def check_folder(folder: Path) -> tuple[list[Reading], list[str]]:
    """A reading for each engine, for texts up to N0 and up to the whole length; and what a user of it must know.

    transformers reads the folder itself, when it is installed; vLLM and SGLang by their published formulas. Raises
    `ModelError` for a config.json that longspan cannot read.
    """
    config, readers = read_config(folder), dict(ENGINES)
    kinds = (STRETCHED, LOCAL) if LOCAL in (config.get("rope_parameters") or {}) else (STRETCHED,)
    if can_prove():
        name = f"transformers {importlib.import_module('transformers').__version__}"
        readers = {name: lambda one, length: transformers_reading(folder, length, layers=one.get("layers")), **readers}
    rows = []
    for kind in kinds:
        one = read_layer_type(config, kind) | ({"layers": kind} if config.get("model_type") in LAYERED else {})
        meant = read_rope(one)
        rows += [
            _reading(engine, read, one, meant, length, exact=_kind(one) in EXACT_KINDS)
            for engine, read in readers.items()
            for length in sorted({min(meant.trained_length, meant.length), meant.length})
        ]
    return rows, known_limits(folder)


def check_export(folder: Path) -> dict[str, Any]:
    """The check as an answer: `alike` says whether every engine agrees with longspan. Raises as `check_folder`."""
    rows, limits = check_folder(folder)
    return {"alike": all(row.same for row in rows), "engines": [asdict(row) for row in rows], "limits": limits}


def save_checked(decoder: Decoder, folder: Path, export: ExportChoice, *, warn: Callable[[str], None]) -> None:
    """Write a Hugging Face folder and see that every engine will rotate as in training; raises as `require_alike`.

    The decoder is left with the frequencies of the file: one set for every length, or the two of a mixed window.
    Raises `ConfigError` when `window_result` was not found for these frequencies.
    """
    short = decoder.frequencies.short_factors if export.mixed_window else None
    if export.window_result is not None:
        short = _found_window(export.window_result, decoder.frequencies)
    decoder.frequencies = replace(decoder.frequencies, short_factors=short)
    dtype: torch.dtype = getattr(torch, export.dtype)
    save(decoder, folder, dtype=dtype, mixed_window=export.mixed_window)
    require_alike(folder, decoder.frequencies, mixed_window=export.mixed_window)
    for limit in known_limits(folder) if export.mixed_window or decoder.shape.family in LAYERED else ():
        warn(limit)


def _found_window(result: Path, frequencies: Frequencies) -> tuple[float, ...]:
    """The short factors of a search with `window`, whose long ones must be those of the model."""
    method = Searched(result=result).method()
    if not isinstance(method, Su) or _differ_in_float32(method.long_factors, frequencies.factors):
        raise ConfigError(
            "export.window",
            "the file holds no original window of this model",
            where=str(result),
            fix="search with search.window on this run's export",
        )
    return method.short_factors


def _differ_in_float32(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether factors differ as a file holds them."""
    one, other = (torch.tensor(factors, dtype=torch.float32) for factors in (first, second))
    return not torch.equal(one, other)


def require_alike(folder: Path, frequencies: Frequencies, *, mixed_window: bool = False) -> None:
    """Raise `ModelError` (`export.engine`) when an engine would not rotate with these frequencies, naming it.

    Of a mixed window only the texts beyond N0 are asked about: before it engines switch at different moments. An
    engine that does not load a model with layer types at all reads nothing wrongly: that is a known limit.
    """
    config = read_config(folder)
    meant = read_rope(read_layer_type(config))
    ends = (frequencies.length, frequencies.trained_length) if mixed_window else (frequencies.length,)
    sets = ((served_omegas(meant.window(end)), served_omegas(frequencies.window(end))) for end in ends)
    if not all(torch.equal(*pair) for pair in sets) or meant.attention_factor != frequencies.attention_factor:
        raise _differs("longspan itself", folder)
    for row in check_folder(folder)[0]:
        refused = row.difference is None and config.get("model_type") in LAYERED
        if not row.same and not refused and not (mixed_window and row.length <= frequencies.trained_length):
            raise _differs(row.engine, folder, row.told)


def transformers_reading(folder: Path, length: int, *, layers: str | None = None) -> Served:
    """What transformers rotates a text of `length` tokens with: its own config and rotary module, run once.

    `layers` is the kind of layers that is asked about, where each has its own settings.
    """
    transformers = importlib.import_module("transformers")
    module = importlib.import_module(
        f"transformers.models.{'mellum.modeling_mellum' if layers else 'llama.modeling_llama'}"
    )
    seen = (torch.zeros(1), torch.tensor([[length - 1]]))  # the module chooses its set by the positions it sees
    with quiet(transformers.utils.logging):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if layers is None:
            rotary = module.LlamaRotaryEmbedding(config)
            rotary(*seen)
            return Served(omegas=rotary.inv_freq.double(), attention_factor=float(rotary.attention_scaling))
        rotary = module.MellumRotaryEmbedding(config)
        rotary(*seen, layers)
    heat = getattr(rotary, f"{layers}_attention_scaling")
    return Served(omegas=getattr(rotary, f"{layers}_inv_freq").double(), attention_factor=float(heat))


def _reading(
    engine: str,
    read: Callable[[dict[str, Any], int], Served],
    config: dict[str, Any],
    meant: Frequencies,
    length: int,
    *,
    exact: bool,
) -> Reading:
    nothing = Reading(
        engine=engine,
        length=length,
        same=False,
        difference=None,
        attention_factor=None,
        layers=config.get("layers", ""),
    )
    try:
        served = read(config, length)
    except ModelError as error:
        return replace(nothing, told=error.what)
    ours = served_omegas(meant.window(length))
    if served.omegas.shape != ours.shape:
        return replace(nothing, told=f"rotates {len(served.omegas)} pairs, not {len(ours)}")
    plain = meant.theta ** -(torch.arange(len(ours), dtype=torch.float64) / len(ours))
    difference = float(((served.omegas - ours).abs() / plain).max())
    alike = difference == 0 if exact else difference <= EQUAL
    scale = abs(served.attention_factor / meant.attention_factor - 1) <= EQUAL
    told = "" if alike and scale else ("other frequencies" if not alike else "another attention factor")
    heat = served.attention_factor
    return replace(nothing, same=alike and scale, difference=difference, attention_factor=heat, told=told)


def known_limits(folder: Path) -> list[str]:
    """What the files cannot make right by themselves, and whoever serves the folder must know."""
    config = read_layer_type(read_config(folder))
    meant, notes = read_rope(config), [] if can_prove() else ["transformers is not installed, and so not asked"]
    scaled = _kind(config) == "longrope" and meant.length > meant.trained_length
    if config.get("model_type") in LAYERED:
        notes.append(f"transformers 4 does not know the model type, and vLLM {NO_EXPERTS}")
    elif scaled:
        notes.append(
            f"serve with vLLM's --max-model-len {meant.length}: without it, it stops at {meant.trained_length} tokens"
        )
    if scaled:
        notes.append(
            f"SGLang rotates position {meant.trained_length} as position 0 in a batch that has none beyond it; "
            "no file can change that"
        )
    if meant.short_factors is not None:
        notes.append(
            f"a mixed window: a text that grows past {meant.trained_length} tokens changes all its rotations, so its "
            "KV cache is invalid from then on; vLLM serves the long set for every text"
        )
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        limit = read_plain(settings).get("model_max_length")
        if isinstance(limit, int) and limit < meant.length:
            notes.append(f"tokenizer_config.json caps texts at {limit} tokens (model_max_length)")
    if config.get("use_sliding_window"):
        notes.append("use_sliding_window is on: most layers see only the last tokens")
    return notes


def _kind(config: dict[str, Any]) -> str:
    """The rope type of a file."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _differs(engine: str, folder: Path, told: str = "") -> ModelError:
    return ModelError(
        "export.engine",
        f"{engine} would not rotate with the frequencies of training{f': {told}' if told else ''}",
        where=str(folder),
        fix="report this with the recipe; do not serve the folder",
    )
