"""Rotary positions to and from a Hugging Face config.json, in a form that every serving engine reads alike."""

import math
import struct
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.rope.methods.base import MOST_FACTOR, STILL, AttentionFactor, Theta, with_factors
from longspan.rope.methods.default import Default
from longspan.rope.methods.dynamic import Dynamic
from longspan.rope.methods.linear import Linear
from longspan.rope.methods.llama3 import Llama3
from longspan.rope.methods.longrope import su_attention_factor
from longspan.rope.methods.proportional import Proportional
from longspan.rope.methods.yarn import Yarn
from longspan.utils.errors import ModelError

DEFAULT_THETAS = {"smollm3": 2_000_000.0}  # by model type; 10,000 for the others

KINDS = ("default", "dynamic", "linear", "llama3", "longrope", "proportional", "su", "yarn")

Length = Annotated[int, Field(ge=2)]
PairFactor = Annotated[float, Field(ge=1 / MOST_FACTOR, le=STILL)]


def default_theta(model_type: str | None) -> float:
    """The theta that transformers, and engines through it, assume when a file names none."""
    return DEFAULT_THETAS.get(model_type or "", 10_000.0)


def config_rope(frequencies: Frequencies, *, head_dim: int, mixed_window: bool = False) -> dict[str, Any]:
    """The keys to merge into config.json, so that transformers 4 and 5, vLLM and SGLang build these frequencies.

    A plain base is written as `default`. Anything else is written as `longrope` with equal short and long factors and
    explicit attention factors, so that no engine's switch by length can change what was trained. Factors are rounded
    to float32, in which engines and training (`rotate.served_omegas`) use them. Keys of the old file that are not
    among these stay; all that matter are replaced.
    With `mixed_window` the short factors are those of the original window. Then engines switch by length, each at
    another moment, and a KV cache that grows past N0 is invalid. Raises `ModelError` when there are none.
    """
    if mixed_window and frequencies.short_factors is None:
        raise _refused(
            "export.no-window",
            "a mixed window needs factors of the original window, and these positions have none",
            fix='train with rope = { kind = "su", … } in the last stage, or leave out export.mixed_window',
        )
    assert frequencies.rotary_dim <= head_dim, "a head is never shorter than its rotated part"
    partial = {} if frequencies.rotary_dim == head_dim else _partial(frequencies.rotary_dim, head_dim)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": frequencies.theta, **partial}
    plain = frequencies.attention_factor == 1.0 and all(factor == 1.0 for factor in frequencies.factors)
    if not plain:
        factors = [_float32(factor) for factor in frequencies.factors]
        short = frequencies.short_factors if mixed_window and frequencies.short_factors else factors
        rope |= {
            "rope_type": "longrope",
            "factor": max(1.0, frequencies.length / frequencies.trained_length),
            "original_max_position_embeddings": frequencies.trained_length,
            "attention_factor": frequencies.attention_factor,  # transformers reads this
            "short_mscale": frequencies.attention_factor,  # vLLM and SGLang read these two
            "long_mscale": frequencies.attention_factor,
            "short_factor": [_float32(factor) for factor in short],
            "long_factor": factors,
        }
    return {
        "rope_theta": frequencies.theta,
        "max_position_embeddings": frequencies.length,
        # A plain base is native to its whole length: N0 here would mislead whoever adds YaRN on top of it.
        "original_max_position_embeddings": frequencies.length if plain else frequencies.trained_length,
        "head_dim": head_dim,
        **partial,
        "rope_scaling": None if plain else dict(rope),
        "rope_parameters": rope,
    }


def read_rope(config: dict[str, Any]) -> Frequencies:
    """The frequencies that a model was trained with, from its config.json of transformers 4 or 5.

    `rope_scaling` wins over `rope_parameters`, the theta inside over the one beside, the top-level
    `original_max_position_embeddings` over the one inside, as in transformers 5. The result's `length` is
    `max_position_embeddings`; its `trained_length` is the original length where a scaling has one (yarn, llama3,
    longrope), else `max_position_embeddings`. LongRoPE's short and long factors, and dynamic scaling, are taken at
    `max_position_embeddings`.
    Raises `ModelError` when a value is missing or impossible, for rope types of other families, and for rotary
    settings that differ from layer to layer.
    """
    try:
        return _read(_Config.model_validate(config))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "rope_scaling"
        raise _refused("model.rope-value", f"{key}: {first['msg']}", fix="correct the value in config.json") from error


class _File(BaseModel):
    """Part of a file written by others: its numbers are checked, keys of no interest are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class _Scaling(_File):
    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: float | None = Field(default=None, gt=0, le=1)
    factor: float | None = Field(default=None, gt=0)
    original_max_position_embeddings: Length | None = None
    attention_factor: AttentionFactor | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: list[PairFactor] | None = None
    long_factor: list[PairFactor] | None = None

    @property
    def kind(self) -> str:
        """The rope type, under its new or its old name."""
        return self.rope_type or self.type or "default"


class _Config(_File):
    model_type: str | None = None
    max_position_embeddings: Length
    head_dim: int | None = Field(default=None, gt=0)
    hidden_size: int | None = Field(default=None, gt=0)
    num_attention_heads: int | None = Field(default=None, gt=0)
    rope_theta: Theta | None = None
    partial_rotary_factor: float | None = Field(default=None, gt=0, le=1)
    original_max_position_embeddings: Length | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    def scaling(self) -> _Scaling:
        """The dict that counts: transformers takes `rope_scaling` whole when it is there and not empty."""
        found = self.rope_scaling or self.rope_parameters or {}
        nested = [key for key, value in found.items() if isinstance(value, dict)]
        if nested:
            raise _refused(
                "model.rope-nested",
                f"rotary settings differ by layer type ({', '.join(nested)})",
                fix="use a model with one set of frequencies for all layers",
            )
        return _Scaling.model_validate(found)

    def rotary_dim(self, scaling: _Scaling) -> int:
        """d: the head, or the part of it that `partial_rotary_factor` names."""
        head_dim = self.head_dim
        if head_dim is None and self.hidden_size and self.num_attention_heads:
            head_dim = self.hidden_size // self.num_attention_heads
        if head_dim is None:
            raise _refused(
                "model.rope-value", "no head_dim, nor hidden_size with num_attention_heads", fix="add head_dim"
            )
        share = scaling.partial_rotary_factor or self.partial_rotary_factor or 1.0
        dim = head_dim if scaling.kind == "proportional" else int(head_dim * share)
        if dim < 2 or dim % 2:
            raise _refused("model.rope-value", f"rotary dim {dim} is not even and positive", fix="correct head_dim")
        return dim


def _read(config: _Config) -> Frequencies:
    scaling = config.scaling()
    kind = "longrope" if scaling.kind == "su" else scaling.kind  # how the first Phi-3 files call it
    length = original = config.max_position_embeddings
    if kind in ("yarn", "llama3", "longrope"):
        original = config.original_max_position_embeddings or scaling.original_max_position_embeddings or length
    base = RopeBase(
        rotary_dim=config.rotary_dim(scaling),
        theta=scaling.rope_theta or config.rope_theta or default_theta(config.model_type),
        trained_length=original,
    )
    match kind:
        case "default":
            return Default().frequencies(base, length)
        case "linear":
            return Linear(factor=_needed(scaling, "factor")).frequencies(base, length)
        case "dynamic":
            return Dynamic(factor=_needed(scaling, "factor")).frequencies(base, length)
        case "llama3":
            return Llama3(
                factor=_needed(scaling, "factor"),
                low_freq_factor=_needed(scaling, "low_freq_factor"),
                high_freq_factor=_needed(scaling, "high_freq_factor"),
            ).frequencies(base, length)
        case "yarn":
            return _yarn(scaling).frequencies(base, length)
        case "longrope":
            return _longrope(scaling, base, length)
        case "proportional":
            share = scaling.partial_rotary_factor or config.partial_rotary_factor or 1.0
            return Proportional(share=share, factor=scaling.factor or 1.0).frequencies(base, length)
    raise _refused(
        "model.rope-type",
        f"rope type {kind!r} is not supported (have: {', '.join(KINDS)})",
        fix="use a model with one of these",
    )


def _yarn(scaling: _Scaling) -> Yarn:
    """Zeros and nulls mean the default here, one `mscale` alone counts for nothing, and `factor` may be null."""
    if scaling.factor is None and "factor" not in scaling.model_fields_set:
        _needed(scaling, "factor")
    both = bool(scaling.mscale and scaling.mscale_all_dim) and scaling.attention_factor is None
    return Yarn(
        factor=scaling.factor,
        beta_fast=scaling.beta_fast or 32.0,
        beta_slow=scaling.beta_slow or 1.0,
        attention_factor=scaling.attention_factor,
        mscale=scaling.mscale if both else None,
        mscale_all_dim=scaling.mscale_all_dim if both else None,
        truncate=scaling.truncate,
    )


def _longrope(scaling: _Scaling, base: RopeBase, length: int) -> Frequencies:
    """Published factors are taken as they are, falling ones too: the model was trained with them."""
    pairs = base.rotary_dim // 2
    for name in ("short_factor", "long_factor"):
        if len(_needed(scaling, name)) != pairs:
            what = f"{name} has {len(_needed(scaling, name))} entries for {pairs} rotary pairs"
            raise _refused("model.rope-value", what, fix="give one factor a pair")
    factors = _needed(scaling, "long_factor" if length > base.trained_length else "short_factor")
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        factor = scaling.factor or length / base.trained_length
        attention_factor = su_attention_factor(factor, base.trained_length)
    found = with_factors(base, length, factors=factors, attention_factor=attention_factor)
    short = tuple(_needed(scaling, "short_factor"))
    mixed = length > base.trained_length and short != found.factors
    return replace(found, short_factors=short) if mixed else found


def _needed(scaling: _Scaling, key: str) -> Any:
    value = getattr(scaling, key)
    if value is None:
        raise _refused("model.rope-value", f"{key} is missing", fix=f"add {key} to the rotary settings")
    return value


def _partial(rotary_dim: int, head_dim: int) -> dict[str, float]:
    """The share of the head that is rotated, such that int(head_dim · share) is rotary_dim again."""
    share = rotary_dim / head_dim
    return {"partial_rotary_factor": share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1.0)}


def _float32(value: float) -> float:
    """The nearest float32, exactly, as a float64 whose decimals JSON carries without loss."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _refused(code: str, what: str, *, fix: str) -> ModelError:
    return ModelError(code, what, where="config.json, rotary positions", fix=fix)
