"""What vLLM and SGLang make of a config.json: their published rotary formulas, to check an export with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from longspan.rope.export import default_theta
from longspan.utils.errors import ModelError

NO_EXPERTS = "stops when it loads a Mellum without layers of experts"


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """Frequencies in radians per token, as float32 values widened, and the factor of cos and sin."""

    omegas: Float[Tensor, " pairs"]
    attention_factor: float


@dataclass(frozen=True, kw_only=True)
class _Rope:
    """What both engines take from a file, through transformers 5: one dict, theta and N0 settled."""

    kind: str
    keys: dict[str, Any]
    theta: float
    dim: int
    longest: int  # max_position_embeddings

    @property
    def original(self) -> int:
        return int(self.keys.get("original_max_position_embeddings") or self.longest)

    def powers(self) -> Tensor:
        """theta^(2i/d) in float32, as engines form it."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float) / self.dim
        powers: Tensor = self.theta**exponents
        return powers


def vllm(config: dict[str, Any], length: int) -> Served:
    """What vLLM 0.33 rotates with when it is started for texts of up to `length` tokens (`--max-model-len`).

    LongRoPE's set is chosen once, at the start; its attention factor is `long_mscale` or the formula over
    max_position_embeddings / N0, never `attention_factor`. `dynamic` scales nothing. Raises `ModelError`
    (`export.engine`) for what vLLM refuses.
    """
    if config.get("model_type") == "mellum":
        raise _refused("vLLM", NO_EXPERTS)
    rope = _settled(config)

    def dynamic() -> Served:
        return _plain(rope)

    return _served(rope, "vLLM", dynamic, length, _yarn_vllm)


def sglang(config: dict[str, Any], length: int) -> Served:
    """What SGLang 0.5 rotates a batch with whose longest text has `length` tokens.

    LongRoPE's set is chosen batch by batch, the long one once a position exceeds N0; the attention factor is as in
    vLLM. `yarn` ignores `attention_factor`. `dynamic` is a fixed base, theta·(f² − f + 1)^(d/(d − 2)).
    Raises `ModelError` (`export.engine`) for what SGLang refuses.
    """
    rope = _settled(config)

    def dynamic() -> Served:
        factor = float(rope.keys["factor"])
        theta = rope.theta * (factor**2 - factor + 1) ** (rope.dim / (rope.dim - 2))
        return _plain(rope, theta=theta)

    switch = length - 1 if rope.kind == "longrope" else length  # its last position must exceed N0, not its length
    return _served(rope, "SGLang", dynamic, switch, _yarn_sglang)


ENGINES: dict[str, Callable[[dict[str, Any], int], Served]] = {"vLLM": vllm, "SGLang": sglang}


def _settled(config: dict[str, Any]) -> _Rope:
    keys = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if config.get("original_max_position_embeddings"):
        keys["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    share = keys.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return _Rope(
        kind=keys.get("rope_type") or keys.get("type") or "default",
        keys=keys,
        theta=float(keys.get("rope_theta") or config.get("rope_theta") or default_theta(config.get("model_type"))),
        dim=int(head_dim * share),
        longest=int(config["max_position_embeddings"]),
    )


def _served(
    rope: _Rope,
    engine: str,
    dynamic: Callable[[], Served],
    length: int,
    yarn_factor: Callable[[dict[str, Any]], float],
) -> Served:
    kinds: dict[str, Callable[[], Served]] = {
        "default": lambda: _plain(rope),
        "llama3": lambda: _llama3(rope),
        "longrope": lambda: _longrope(rope, long=length > rope.original),
        "yarn": lambda: _yarn(rope, yarn_factor(rope.keys)),
        "dynamic": dynamic,
        "linear": lambda: _linear(rope, engine),
    }
    if rope.kind not in kinds:
        raise _refused(engine, f"does not serve the rope type {rope.kind!r} for this family")
    try:
        return kinds[rope.kind]()
    except KeyError as missing:
        raise _refused(engine, f"stops at the missing key {missing}") from missing


def _plain(rope: _Rope, *, theta: float | None = None) -> Served:
    powers = rope.powers() if theta is None else theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float) / rope.dim)
    return Served(omegas=(1.0 / powers).double(), attention_factor=1.0)


def _linear(rope: _Rope, engine: str) -> Served:
    if not isinstance(rope.keys["factor"], float):
        raise _refused(engine, "takes a linear factor only when it is written as a float, such as 4.0")
    return Served(omegas=(1.0 / rope.powers()).double() / float(rope.keys["factor"]), attention_factor=1.0)


def _longrope(rope: _Rope, *, long: bool) -> Served:
    which = "long" if long else "short"
    factors = torch.tensor(rope.keys[f"{which}_factor"], dtype=torch.float32)
    scale = rope.longest / rope.original
    formula = math.sqrt(1 + math.log(scale) / math.log(rope.original)) if scale > 1 else 1.0
    mscale = rope.keys.get(f"{which}_mscale")
    return Served(
        omegas=(1.0 / (factors * rope.powers())).double(),
        attention_factor=formula if mscale is None else float(mscale),
    )


def _llama3(rope: _Rope) -> Served:
    plain = 1.0 / rope.powers()
    factor, low, high = (float(rope.keys[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    waves = 2 * math.pi / plain
    kept = ((rope.original / waves - low) / (high - low)).clamp(0, 1)
    omegas = torch.where(waves < rope.original / high, plain, (1 - kept) * plain / factor + kept * plain)
    omegas = torch.where(waves > rope.original / low, plain / factor, omegas)
    return Served(omegas=omegas.double(), attention_factor=1.0)


def _yarn(rope: _Rope, attention_factor: float) -> Served:
    def pair(turns: float) -> float:
        return rope.dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.keys.get("beta_fast") or 32), pair(rope.keys.get("beta_slow") or 1)
    if rope.keys.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high += 0.001 if low == high else 0
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float) - low) / (high - low)).clamp(0, 1)
    powers = rope.powers()
    omegas = ramp / (float(rope.keys["factor"]) * powers) + (1 - ramp) / powers
    return Served(omegas=omegas.double(), attention_factor=attention_factor)


def _yarn_vllm(keys: dict[str, Any]) -> float:
    explicit = keys.get("attention_factor")
    return float(explicit) if explicit is not None else _yarn_formula(keys)


def _yarn_sglang(keys: dict[str, Any]) -> float:
    return _yarn_formula(keys) * float(keys.get("attn_factor", 1.0))


def _yarn_formula(keys: dict[str, Any]) -> float:
    factor, mscale, all_dim = (float(keys.get(key) or 0) for key in ("factor", "mscale", "mscale_all_dim"))
    if factor <= 1:
        return 1.0
    if mscale and all_dim:
        return (0.1 * mscale * math.log(factor) + 1) / (0.1 * all_dim * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def _refused(engine: str, what: str) -> ModelError:
    return ModelError(
        "export.engine",
        f"{engine} {what}",
        where="config.json, rotary positions",
        fix="export the model with longspan, which writes what every engine reads alike",
    )
