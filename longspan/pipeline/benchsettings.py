"""What `longspan bench engine` may be asked for."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longspan.config import Settings
from longspan.engine.settings import EngineSettings, Gib, Tier

Count = Annotated[int, Field(gt=0)]


class BenchSettings(Settings):
    """One measurement: `steps` forward and backward passes of random weights over random tokens, after a short one.

    `shape` is a known shape (a mistyped one lists them) or a model folder, cut to `layers`. `keep`, `segment`, `tile`,
    `group`, `farthest` and `lossy_anchors` steer the engine as in a recipe; what is left out is chosen. `lora`: a rank.
    `skip_attention_compute` fills every buffer and runs no attention kernel: memory can be tried in a fraction of the
    time. `timeline` draws device memory over the last step. `host_gib` and `device_gib` stand for what the machine
    shows; `commit` is kept with the line. `anchors` is a folder for anchors on disk.
    """

    shape: str = "llama3-8b"
    tokens: Count = 65_536
    rows: Count = 1
    layers: Count | None = None
    keep: Literal["auto", "attention", "inputs", "everything"] = "auto"
    segment: Count | None = None
    tile: Annotated[int, Field(ge=16)] | None = None
    group: Count | None = None
    farthest: Tier = "host"
    lossy_anchors: bool = False
    weights: Literal["auto", "bfloat16", "float32"] = "auto"
    optimizer: Literal["none", "adamw", "adamw8"] = "none"
    update: Literal["after", "inside"] = "after"
    states: Literal["device", "host"] = "device"
    lora: Count | None = None
    steps: Count = 1
    warmup_tokens: Annotated[int, Field(ge=0)] = 4096
    skip_attention_compute: bool = False
    timeline: Path | None = None
    results: Path | None = None
    anchors: Path = Path("anchors")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    host_gib: Gib | None = None
    device_gib: Gib | None = None
    commit: str = ""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tokens % self.rows:
            raise ValueError(f"tokens {self.tokens} are no multiple of rows {self.rows}")
        if self.update == "inside" and self.optimizer == "none":
            raise ValueError('update = "inside" needs an optimizer')
        if self.keep == "everything" and (self.skip_attention_compute or self.update == "inside"):
            raise ValueError("autograd neither skips attention nor updates inside its pass: choose another keep")
        return self

    @property
    def engine(self) -> EngineSettings:
        """The engine's part, as a recipe would say it."""
        by_hand = self.keep == "auto" and (self.skip_attention_compute or self.update == "inside")
        return EngineSettings(
            keep="attention" if by_hand else self.keep,
            segment=self.segment,
            tile_tokens=self.tile,
            group=self.group,
            farthest=self.farthest,
            lossy_anchors=self.lossy_anchors,
            device_gib=self.device_gib,
            host_gib=self.host_gib,
        )
