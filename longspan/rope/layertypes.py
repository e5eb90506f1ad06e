"""Rotary settings by layer type in a config.json, as transformers 5 has them: one dict for each kind of attention."""

from collections.abc import Mapping
from typing import Any

from longspan.rope.export import read_rope
from longspan.shape import OwnPositions
from longspan.utils.errors import ModelError

STRETCHED, LOCAL = "full_attention", "sliding_attention"
LAYERED = ("mellum",)  # model types whose files have these
DEFAULTS = {STRETCHED: {"rope_theta": 500_000.0}, LOCAL: {"rope_theta": 10_000.0}}  # of transformers' MellumConfig


def read_layer_type(config: Mapping[str, Any], kind: str = STRETCHED) -> dict[str, Any]:
    """The config of a model all of whose layers were of one kind; unchanged for a model type without layer types.

    Raises `ModelError` when the dict of that kind is missing, or stands beside a `rope_scaling`, which transformers
    then trips over.
    """
    if config.get("model_type") not in LAYERED:
        return dict(config)
    every = config.get("rope_parameters") or DEFAULTS
    if config.get("rope_scaling") or not isinstance(every.get(kind), dict):
        raise ModelError(
            "model.rope-nested",
            f"no rotary settings for {kind} layers, or rope_scaling beside them",
            where="config.json, key rope_parameters",
            fix=f"give {kind} a dict of its own in rope_parameters, and leave out rope_scaling",
        )
    return {**config, "rope_parameters": every[kind]}


def read_local(config: Mapping[str, Any]) -> OwnPositions:
    """The positions of sliding-window layers, which no stage changes: a theta, and a linear factor if there is one.

    Raises `ModelError` for other rope types there.
    """
    inner = read_layer_type(config, LOCAL)
    kind = inner["rope_parameters"].get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise ModelError(
            "model.rope-nested",
            f"sliding-window layers have rope type {kind!r}, whose settings depend on a length",
            where="config.json, key rope_parameters",
            fix="use a model whose sliding-window layers have rope type 'default' or 'linear'",
        )
    found = read_rope(inner)
    return OwnPositions(theta=found.theta, factor=found.factors[0])


def write_layer_types(rope: Mapping[str, Any], local: OwnPositions | None) -> dict[str, Any]:
    """What `config_rope` wrote, as the set of full-attention layers beside that of sliding-window layers.

    Keys outside the dicts, which would count for both kinds, are left out. vLLM and SGLang take each dict as they take
    the only one of other models (`longspan.rope.serving`).
    """
    kept = {key: value for key, value in rope.items() if key in ("max_position_embeddings", "head_dim")}
    types: dict[str, Any] = {STRETCHED: rope["rope_parameters"]}
    if local is not None:
        types[LOCAL] = {"rope_type": "default", "rope_theta": local.theta}
        if local.factor != 1.0:
            types[LOCAL] |= {"rope_type": "linear", "factor": local.factor}
    return {**kept, "rope_parameters": types}
