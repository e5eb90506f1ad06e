"""One recipe is one job: what a TOML file may say, and what its parts demand of each other."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from longspan.config import Settings, any_kind
from longspan.data.canaries import CanarySettings
from longspan.data.curricula.stages import Stages
from longspan.data.settings import DataSettings, Mix, MixPart
from longspan.engine.settings import EngineSettings
from longspan.model.settings import LoraSettings
from longspan.parallel.settings import MeshSettings, ParallelSettings
from longspan.pipeline.gatesettings import Gate
from longspan.pipeline.mistakes import explain
from longspan.pipeline.source import read_source
from longspan.rope.methods.searched import Searched
from longspan.search.settings import SearchSettings
from longspan.shape import ModelShape
from longspan.train.settings import TrainSettings
from longspan.utils.errors import ConfigError

if TYPE_CHECKING:
    from longspan.data.curricula.base import Curriculum as CurriculumChoice
    from longspan.eval.tasks.base import Task as TaskChoice
    from longspan.rope.frequencies import Method as RopeChoice
    from longspan.train.trackers.base import Tracker as TrackerChoice
else:  # the choices are the files of a folder, known at run time only
    CurriculumChoice = any_kind("longspan.data.curricula")
    RopeChoice = any_kind("longspan.rope.methods")
    TaskChoice = any_kind("longspan.eval.tasks")
    TrackerChoice = any_kind("longspan.train.trackers")

MOST_STAGES = 64  # also what parts the rows of a stage's repeats: they are drawn under keys beyond
Count = Annotated[int, Field(gt=0)]


class NewModel(Settings):
    """Sizes of a small model in Llama's format that is trained from random weights, with a tokenizer of its own.

    `vocabulary` counts the tokenizer's entries. The model's `trained_length` becomes the length of the first stage.
    """

    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    mlp_width: Count
    vocabulary: Annotated[int, Field(ge=257, le=1_000_000)]
    theta: Annotated[float, Field(gt=1.0)] = 10_000.0
    norm_epsilon: Annotated[float, Field(gt=0.0, lt=0.1)] = 1e-5
    tied: bool = True

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: rotation works on pairs")
        return self

    def shape(self, trained_length: int) -> ModelShape:
        """The decoder's shape when it is trained at `trained_length` tokens."""
        return ModelShape(
            family="llama",
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            vocabulary=self.vocabulary,
            norm_epsilon=self.norm_epsilon,
            tied=self.tied,
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            qk_norm=False,
            windows=(None,) * self.layers,
            trained_length=trained_length,
        )


class ModelChoice(Settings):
    """The model to start from: a Hugging Face `folder` on disk, or a `new` one."""

    folder: Path | None = None
    new: NewModel | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.folder is None) == (self.new is None):
            raise ValueError('give exactly one of folder = "…" and [model.new]')
        return self


class Stage(Settings):
    """One stretch of training at one length. `tokens` is rounded down to whole steps of `batch_tokens`.

    `rope` is the position method with which the model is trained at this `length`, or at the `reach` of the mix, where
    that is more; `mix` says what the rows hold,
    `curriculum` which lengths they have when; `canaries` are pairs planted in them to prove what the model saw; `mesh`
    spreads this stage in another way than the others; `gate` is what the model must show at its end.
    """

    length: Annotated[int, Field(ge=2)]
    tokens: Count
    batch_tokens: Count
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    rope: RopeChoice
    mix: Mix = (MixPart(share=1.0),)
    mesh: MeshSettings | None = None
    curriculum: CurriculumChoice = Stages()
    canaries: CanarySettings | None = None
    gate: Gate | None = None

    @property
    def rows_per_step(self) -> int:
        """Rows of `length` tokens that one optimizer step sees."""
        return self.batch_tokens // self.length

    @property
    def reach(self) -> int:
        """How many positions the model is trained for: the length, or more where positions jump."""
        return max(self.length, *(part.reach or 0 for part in self.mix))

    @property
    def steps(self) -> int:
        """Optimizer steps of this stage."""
        return self.tokens // self.batch_tokens

    @model_validator(mode="after")
    def _whole_rows_and_steps(self) -> Self:
        if self.batch_tokens % self.length:
            near = max(1, round(self.batch_tokens / self.length)) * self.length
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is no multiple of length {self.length}; {near} would be"
            )
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens {self.tokens} is less than one step of batch_tokens {self.batch_tokens}")
        for part in self.mix:
            if part.length is not None and self.length % part.length:
                raise ValueError(f"documents of {part.length} tokens do not fill rows of {self.length} in the mix")
            if part.reach is not None and part.reach <= (part.length or self.length):
                raise ValueError(f"reach {part.reach} of the mix is no more than the tokens of a document there")
        if self.reach > self.length and not self.curriculum.keeps_positions:
            raise ValueError(f"curriculum {self.curriculum.kind} counts positions anew: leave reach out of the mix")
        self.curriculum.check(length=self.length, mix=self.mix)
        if self.canaries is not None and any(part.probe is not None for part in self.mix):
            raise ValueError("canaries take no probes in the mix: they would be written over a probe's lines")
        if self.canaries is not None and self.reach > self.length:
            raise ValueError("canaries are planted at distances in tokens: leave reach out of the mix")
        if self.canaries is not None and self.gate is not None and self.gate.repeats:
            raise ValueError("canaries are planted so many times: a stage that has them is not repeated")
        return self


class EvalChoice(Settings):
    """What is measured before and after training, in this order.

    `kept` is how the keys and values of a context are kept for its questions: as they are, or as fp8 numbers, which
    takes half the memory, is not exact, and stands in every row.
    """

    tasks: tuple[TaskChoice, ...] = ()
    kept: Literal["exact", "fp8"] = "exact"


class ExportChoice(Settings):
    """How the trained model is written: the type of its weights on disk; with `mixed_window` also the factors of the
    original window: those that a search with `window` found (`window_result`, its search/found.json), or those of the
    last stage's `su`. A text that grows out of that window changes all its rotations.
    """

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    mixed_window: bool = False
    window_result: Path | None = None

    @model_validator(mode="after")
    def _window_is_asked_for(self) -> Self:
        if self.window_result is not None and not self.mixed_window:
            raise ValueError("window_result is written only with mixed_window = true")
        return self


class Recipe(Settings):
    """The whole job: where it starts, what it reads, how it trains, what it measures and where it writes.

    Paths in a recipe file are relative to that file; paths given on the command line are relative to where it runs.
    """

    name: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output: Path
    model: ModelChoice
    lora: LoraSettings | None = None
    data: DataSettings
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MOST_STAGES)]
    train: TrainSettings = TrainSettings()
    engine: EngineSettings = EngineSettings()
    parallel: ParallelSettings = ParallelSettings()
    eval: EvalChoice = EvalChoice()
    search: SearchSettings | None = None
    export: ExportChoice = ExportChoice()
    tracking: TrackerChoice | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        if self.lora is not None and self.model.new is not None:
            raise ValueError("lora adapts a model that is trained already; leave it out with [model.new]")
        if self.lora is not None and self.train.optimizer.weight_dtype != "float32":
            raise ValueError('adapters are float32: only train.optimizer.kind = "adamw" trains them')
        return self

    @classmethod
    def read(cls, path: Path | str) -> "Recipe":
        """Read a recipe file, TOML as people write it or the resolved JSON of a run folder.

        Every path in it becomes absolute. Raises `ConfigError` that names the key at fault and what to write there.
        """
        path = Path(path)
        return cls.from_plain(read_source(path), folder=path.resolve().parent, where=str(path))

    @classmethod
    def from_plain(cls, value: dict[str, Any], *, folder: Path, where: str) -> "Recipe":
        """Check plain JSON values as a recipe whose relative paths start at `folder`.

        Raises `ConfigError`; `where` names the source in its text.
        """
        try:
            return cls.model_validate_json(json.dumps(value)).rebased(folder)
        except ValidationError as error:
            raise explain(error, value, cls.model_json_schema(), where=where) from None

    def rebased(self, folder: Path) -> "Recipe":
        """The same recipe with every relative path made absolute, starting at `folder`, and what a search found read.

        Raises `ConfigError` for a stage whose `searched` file cannot be read.
        """
        value = _absolute(self.model_dump(), folder)
        for stage in value["stages"]:
            if stage["rope"]["kind"] == "searched":  # the file may change or go: a run keeps the settings themselves
                stage["rope"] = Searched(result=Path(stage["rope"]["result"])).method().model_dump(mode="json")
        return Recipe.model_validate_json(json.dumps(value))

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON values, every default written out; `from_plain` reads it back."""
        value: dict[str, Any] = self.model_dump(mode="json")
        return value

    @property
    def shaping(self) -> dict[str, Any]:
        """The part that decides the weights: two recipes that agree in it may share a run folder.

        Where things lie is no part of it, so that a job can be moved: hashes of the model and of the tokens stand
        for them (`Job.train_inputs`).
        """
        value = self.plain()
        value["model"] = {"new": value["model"]["new"]}
        value["data"].pop("tokenizer")
        for source in value["data"]["sources"]:
            for place in ("path", "hub", "files", "stream"):
                source.pop(place)
        value["data"].pop("curate")
        more = {} if self.lora is None else {"lora": value["lora"]}
        if self.engine.lossy_anchors:  # the engine's other settings change rounding alone
            more["engine"] = {"lossy_anchors": True}
        for stage in value["stages"]:
            stage.pop("mesh")  # the same rows and losses on any
            stage.pop("gate")  # its verdicts decide, and they lie in the run folder
        return {key: value[key] for key in ("seed", "model", "data", "stages")} | more | {"train": self.train.shaping}

    @property
    def asked(self) -> tuple[TaskChoice, ...]:
        """All tasks, those of gates first."""
        return (*(task for stage in self.stages if stage.gate for task in stage.gate.tasks), *self.eval.tasks)

    @property
    def filters(self) -> Any:
        """What the texts are filtered with, as JSON; where that is done changes nothing."""
        curate = self.plain()["data"]["curate"]
        return None if curate is None else curate["filters"]

    def check_paths(self) -> None:
        """Look whether everything that the recipe names exists, before long work.

        Texts may be missing where the output holds their tokens: a run folder is moved without them. Raises
        `ConfigError` that names the key and the path.
        """
        model, tokenizer = self.model.folder, self.data.tokenizer
        if model is not None and not (model / "config.json").is_file():
            what = "holds no config.json" if model.is_dir() else "is no folder"
            raise _unusable("model.folder", model, what, fix="name a Hugging Face model folder")
        if tokenizer is not None and not (tokenizer.is_file() or (tokenizer / "tokenizer.json").is_file()):
            raise _unusable("data.tokenizer", tokenizer, "does not exist", fix="name a tokenizer.json or its folder")
        for index, source in enumerate(self.data.sources):
            elsewhere = source.hub is not None or source.stream is not None or (self.output / "tokens").is_dir()
            if not elsewhere and not source.path.exists():
                raise _unusable(f"data.sources.{index}.path", source.path, "does not exist", fix="check the path")


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors and for documentation."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _unusable(key: str, path: Path, what: str, *, fix: str) -> ConfigError:
    return ConfigError("recipe.path", f"{key} {what}: {path}", where=f"recipe: {key}", fix=fix)


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return str((folder / value.expanduser()).resolve())
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_absolute(item, folder) for item in value]
    return value
