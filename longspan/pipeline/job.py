"""One recipe at work in its run folder: what the verbs share."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from longspan.data.build import Stores
from longspan.data.tokenize import load_tokenizer
from longspan.model.decoder import Decoder
from longspan.model.lora import add_lora
from longspan.model.weights import load
from longspan.parallel.dist import World
from longspan.parallel.mesh import Mesh
from longspan.pipeline.evalrows import text_sha256
from longspan.pipeline.meshes import automatic, machine_of, meshes, ranks_of
from longspan.pipeline.observer import Observer, Stop
from longspan.pipeline.recipe import Recipe
from longspan.pipeline.rundir import RunFolder, versions
from longspan.pipeline.workloads import weight_dtype
from longspan.rope.frequencies import Frequencies, RopeBase
from longspan.rope.methods.default import Default
from longspan.shape import ModelShape
from longspan.train.checkpoint import Checkpoint, CheckpointStore
from longspan.train.peers import ALONE, Peers
from longspan.train.plan import StagePlan
from longspan.utils.errors import ConfigError, Interrupted, StorageError
from longspan.utils.files import read_json, sha256, write_json
from longspan.utils.values import canonical_sha256, differences


@dataclass(frozen=True)
class Job:
    """A recipe, its run folder, and who listens. Made by `opened`, which checks what can be checked at once."""

    recipe: Recipe
    folder: RunFolder
    observer: Observer
    stop: Stop
    world: World | None = None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, recipe: Recipe, *, observer: Observer, stop: Stop) -> Iterator["Job"]:
        """Hold the run folder of a recipe; of several ranks, the one that leads does, and the others follow.

        Raises `LongspanError` for everything about the model, the stages, the device, the tracker and the free space
        that is wrong already, before long work.
        """
        recipe.check_paths()
        with ranks_of(recipe) as world:
            job = cls(recipe, RunFolder(recipe.output), observer, stop, world)
            job.device, job.plans  # noqa: B018 - looked at for the errors that they raise
            if recipe.lora is not None:
                recipe.lora.check(job.start[0])
            recipe.train.optimizer.require()
            if not job.leads:
                yield job
                return
            if recipe.tracking is not None:
                recipe.tracking.require()
            with job.folder.opened(recipe):
                job.require_space()
                yield job

    @property
    def leads(self) -> bool:
        """Whether this process does what one must do for all, and speaks."""
        return self.world is None or self.world.launch.rank == 0

    def say(self, topic: str, word: str) -> None:
        """Tell the ranks that follow."""
        if self.world is not None:
            self.world.say(topic, word)

    def hear(self, topic: str) -> str:
        """Wait for what the leading rank says, as long as it takes."""
        assert self.world is not None, "only ranks that follow listen"
        return self.world.hear(topic, poll=self.poll)

    def meet(self, topic: str) -> None:
        """The ranks that follow go no further before the one that leads has come here."""
        self.say(topic, "go") if self.leads else self.hear(topic)

    def poll(self) -> None:
        """Raise `Interrupted` when the run was asked to stop."""
        if self.stop():
            raise Interrupted("everything done so far is saved")

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Tell how far the phase is, and stop here when the run was asked to."""
        self.observer.progress(done, total=total, what=what)
        self.poll()

    @cached_property
    def device(self) -> torch.device:
        """Where the model lives. Raises `ConfigError` when a GPU is asked for and there is none."""
        gpu = torch.cuda.is_available()
        if self.recipe.device == "cuda" and not gpu:
            raise ConfigError(
                "run.no-gpu", "there is no usable GPU", where="recipe: device", fix='set device = "auto" or "cpu"'
            )
        return torch.device("cuda" if gpu and self.recipe.device != "cpu" else "cpu")

    @cached_property
    def start(self) -> tuple[ModelShape, Frequencies]:
        """Shape and frequencies of the model before training. Raises `ModelError` for a folder that will not load."""
        new = self.recipe.model.new
        if new is not None:
            length = self.recipe.stages[0].length
            base = RopeBase(rotary_dim=new.head_dim, theta=new.theta, trained_length=length)
            return new.shape(length), Default().frequencies(base, length)
        assert self.recipe.model.folder is not None, "a model is new or comes from a folder"
        sizes_only = load(self.recipe.model.folder, device="meta")  # every check of the folder, no memory
        return sizes_only.shape, sizes_only.frequencies

    @cached_property
    def plans(self) -> tuple[StagePlan, ...]:
        """Every stage in whole steps and rows, with its frequencies."""
        own = self.start[1]
        base = RopeBase(
            rotary_dim=own.rotary_dim,
            theta=own.theta,
            trained_length=own.trained_length,
            factors=own.factors,
            attention_factor=own.attention_factor,
        )
        return tuple(
            self.recipe.train.plan(
                index=index,
                length=stage.length,
                steps=stage.steps,
                rows_per_step=stage.rows_per_step,
                learning_rate=stage.learning_rate,
                frequencies=stage.rope.frequencies(base, stage.reach),
                mesh=mesh,
            )
            for index, (stage, mesh) in enumerate(zip(self.recipe.stages, self.meshes, strict=True))
        )

    @cached_property
    def meshes(self) -> tuple[Mesh, ...]:
        """How each stage is spread over the ranks. Raises `parallel.mesh` for what does not fit them."""
        if self.world is None:
            return meshes(self.recipe, ranks=1, automatic=lambda _: Mesh())
        if not self.leads:  # another machine may have other memory
            return tuple(Mesh(**mesh) for mesh in json.loads(self.hear("meshes")))
        machine = machine_of(self.world, self.device, folder=self.folder.path)
        launch, device = self.world.launch, self.world.device
        choose = partial(
            automatic, self.recipe, self.start[0], machine, launch=(launch.ranks, launch.local_ranks), device=device
        )
        found = meshes(self.recipe, ranks=launch.ranks, automatic=choose)
        self.say("meshes", json.dumps([asdict(mesh) for mesh in found]))
        return found

    def verdict(self, number: int) -> str | None:
        """What the gate said after the stage trained as `number`, repeats counted; None before it has spoken."""
        path = self.folder.gate(number)
        return str(read_json(path, error=ConfigError, code="run.gate")["verdict"]) if path.exists() else None

    @property
    def round_stages(self) -> tuple[int, ...]:
        """The stages in the order of training, each as often as its gate has sent it back, and once more."""
        found: list[int] = []
        for stage in range(len(self.recipe.stages)):
            found.append(stage)
            while self.verdict(len(found) - 1) == "repeat":
                found.append(stage)
        return tuple(found)

    @property
    def rounds(self) -> tuple[StagePlan, ...]:
        """The plans of `round_stages`, each with its place there as index."""
        return tuple(replace(self.plans[stage], index=number) for number, stage in enumerate(self.round_stages))

    @property
    def total_tokens(self) -> int:
        """What the whole training will see, as far as gates have spoken."""
        return sum(plan.steps * plan.tokens_per_step for plan in self.rounds)

    @cached_property
    def base_identity(self) -> str:
        """Hash of the model that is started from: its sizes when new, else its config and weight files.

        File hashes are kept in the run folder beside sizes and times, so that large weights are read once.
        """
        model = self.recipe.model.folder
        if model is None:
            return canonical_sha256(self.recipe.plain()["model"])
        files = sorted([model / "config.json", *model.glob("*.safetensors")])
        seen = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        known = self.folder.path / "base.json"
        if known.exists():
            kept = read_json(known, error=ConfigError, code="run.base")
            if kept["seen"] == seen:
                return str(kept["sha256"])
        identity = canonical_sha256({file.name: sha256(file) for file in files})
        write_json(known, {"seen": seen, "sha256": identity})
        return identity

    def base(self, *, unread: bool = False) -> Decoder:
        """The decoder before training, on the device; what is new of it depends on the seed alone.

        Adapters are on it if the recipe asks for them, and change nothing yet. With `unread` the weights of a model
        folder stay in their files, for `longspan.model.weights.Unread` to bring.
        """
        model = self.recipe.model.folder
        if model is not None:
            device = "meta" if unread else str(self.device)
            decoder = load(model, device=device, dtype=weight_dtype(self.recipe, self.device))
        else:
            decoder = Decoder(*self.start)
            decoder.initialise(self.recipe.seed)
            decoder = decoder.to(self.device, weight_dtype(self.recipe, self.device))
        if self.recipe.lora is not None:
            add_lora(decoder, self.recipe.lora, self.recipe.seed)
            for weight in decoder.parameters():
                if weight.requires_grad:
                    weight.data = weight.data.float()
        if model is None or self.recipe.data.tokenizer is not None:
            decoder.source = self.folder.path  # its tokenizer files are the ones that belong to this run
        return decoder

    def require_space(self) -> None:
        """Raise `StorageError` unless what is still to be written of checkpoints and export will fit."""
        lora, weights, train = self.recipe.lora, self.start[0].parameters, self.folder.mark("train")
        trained = weights if lora is None else lora.trained_parameters(self.start[0])
        need_bytes, optimizer = 0, self.recipe.train.optimizer
        if train is None or not train.done:
            kept = self.recipe.train.keep_checkpoints + 1  # and one being written
            need_bytes += max(
                0, round(kept * optimizer.checkpoint_bytes * trained) - _size_bytes(self.folder.checkpoints)
            )
        if not self.folder.export.exists():
            need_bytes += weights * getattr(torch, self.recipe.export.dtype).itemsize
            need_bytes += 0 if lora is None else trained * torch.float32.itemsize
        free_bytes = shutil.disk_usage(self.folder.path).free
        if free_bytes < need_bytes:
            raise StorageError(
                "storage.space",
                f"checkpoints and export need {need_bytes:,} bytes more, and {free_bytes:,} are free",
                where=str(self.folder.path),
                fix="free some space, lower train.keep_checkpoints, or give this run an output on another disk",
            )

    def require_same(self) -> None:
        """Raise `ConfigError` when the checkpoints here were made from other texts or from another model."""
        known = self.folder.identity
        if not (known.exists() and self.folder.has_checkpoints() and self.folder.tokens.exists()):
            return
        changed = differences(read_json(known, error=ConfigError, code="run.identity"), self.train_inputs)
        if changed:
            raise ConfigError(
                "run.other-texts",
                "the texts, the tokenizer or the model are not those of the checkpoints in this run folder: "
                + "; ".join(changed),
                where=str(self.folder.path),
                fix="put back what was changed, or give this recipe another output",
            )

    def require_trained(self) -> None:
        """Raise `ConfigError` when training has not finished, or was of other texts or another model."""
        self.require_same()
        if not self.folder.tokens.exists() or not self.folder.done("train", self.train_inputs):
            raise ConfigError(
                "run.not-trained",
                "this run is not trained yet",
                where=str(self.folder.path),
                fix="longspan train, or longspan run, with the same recipe",
            )

    def newest(self) -> Checkpoint:
        """The newest whole checkpoint of a run that is marked as trained. Raises `ConfigError` when there is none."""
        checkpoint = self.checkpoints().latest()
        if checkpoint is None:
            raise ConfigError(
                "run.no-checkpoint",
                "the run is marked as trained, but holds no whole checkpoint",
                where=str(self.folder.checkpoints),
                fix="put the checkpoint back, or remove done/train.json in the run folder and train again",
            )
        return checkpoint

    def trained(self) -> tuple[Decoder, str]:
        """The decoder after training, and the hash of its weights.

        Raises `ConfigError` when the checkpoint of the last step is lost.
        """
        checkpoint, total = self.newest(), sum(plan.steps for plan in self.rounds)
        if checkpoint.progress.step != total:
            raise ConfigError(
                "run.lost-checkpoint",
                f"the newest whole checkpoint is of step {checkpoint.progress.step}, and training took {total} steps",
                where=str(self.folder.checkpoints),
                fix="remove done/train.json in the run folder and train again: it goes on from that step",
            )
        decoder = self.base()
        checkpoint.restore(decoder)
        return decoder, checkpoint.sha256

    def checkpoints(self, peers: Peers = ALONE) -> CheckpointStore:
        """The checkpoints of this run, for this process alone unless there are `peers`."""
        return CheckpointStore(
            self.folder.checkpoints,
            keep=self.recipe.train.keep_checkpoints,
            saving=self.recipe.train.save,
            identity=self.train_inputs,
            versions=versions(),
            warn=self.observer.warn,
            peers=peers,
        )

    def stores(self) -> Stores:
        """The texts as tokens. Raises `DataError` when they are missing or damaged."""
        return Stores.open(self.folder.tokens, verify=False)

    @property
    def given_tokenizer(self) -> Path | None:
        """The tokenizer.json of the recipe or the model; None when one is trained."""
        place = self.recipe.data.tokenizer or self.recipe.model.folder
        return place / "tokenizer.json" if place is not None and place.is_dir() else place

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this run."""
        return load_tokenizer(self.folder.tokenizer, vocabulary=self.start[0].vocabulary)

    @property
    def prepare_inputs(self) -> dict[str, Any]:
        """What the token stores, and the check of stages and tasks on them, depend on.

        Files stand with their sizes and times: when these change, the content decides what is built again.
        """
        recipe, plain, tokenizer = self.recipe, self.recipe.plain(), self.given_tokenizer
        places = [source.path for source in recipe.data.sources]
        if tokenizer is not None:
            places += [tokenizer, tokenizer.with_name("tokenizer_config.json")]
        return {
            "base": self.base_identity,
            "data": recipe.shaping["data"],
            "filters": recipe.filters,
            "files": [seen_files(place) for place in places],
            **{key: plain[key] for key in ("stages", "eval", "seed")},
        }

    @property
    def before_inputs(self) -> dict[str, Any]:
        """What the evaluation before training depends on; known once the texts are prepared."""
        return {"base": self.base_identity, **self._eval_inputs}

    @property
    def train_inputs(self) -> dict[str, Any]:
        """What the trained weights depend on, as JSON; checkpoints are refused when it differs.

        Known once the texts are prepared.
        """
        return {**self.recipe.shaping, "base": self.base_identity, "tokens": text_sha256(self.stores().train)}

    @property
    def after_inputs(self) -> dict[str, Any]:
        """What the evaluation after training depends on."""
        return {**self.train_inputs, **self._eval_inputs}

    @property
    def _eval_inputs(self) -> dict[str, Any]:
        return {"eval": self.recipe.plain()["eval"], "held_out": self.held_out_sha256, "seed": self.recipe.seed}

    @property
    def held_out_sha256(self) -> str:
        """Hash of the tokens that evaluation reads, and of their tokenizer."""
        return text_sha256(self.stores().held_out)

    @property
    def export_inputs(self) -> dict[str, Any]:
        """What the exported folder depends on."""
        return {**self.train_inputs, "export": self.recipe.plain()["export"]}


def seen_files(place: Path) -> list[tuple[str, int, int]]:
    """Relative name, bytes and time of change of every file at a place; links below it are not followed."""
    if place.is_file():
        files = [(place.name, place.stat())]
    else:
        below = sorted(Path(at, name) for at, _, names in os.walk(place) for name in names)
        files = [(file.relative_to(place).as_posix(), file.lstat()) for file in below]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
