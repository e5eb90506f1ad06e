"""Training over several ranks, as a rank runs it. No pytest here."""

from dataclasses import replace

from toy_training import batches, decoder, two_stages

from longspan.attention.functional import Cpu
from longspan.attention.schemes.local import Local
from longspan.attention.schemes.ring import Ring
from longspan.attention.schemes.ulysses import Ulysses
from longspan.engine.anchors import anchor_keys
from longspan.engine.run import Engine
from longspan.engine.settings import EngineChoice
from longspan.parallel.weights import place_weights
from longspan.train.loop import train
from longspan.train.settings import TrainSettings
from longspan.train.team import Team

PLAIN = Local(kernel=Cpu())


class Unsaved:
    """A store of checkpoints that keeps none."""

    def prepare(self, decoder, updater):
        """Nothing to prepare."""

    def latest(self):
        """None is ever there."""

    def save(self, progress, *, decoder, updater):
        """Nothing is saved."""


def trained(world, meshes, settings, stop_at=None):
    """Losses, norms and what this rank keeps after two stages, each on a mesh of its own."""
    model, seen, asked = decoder(), [], []
    stages = [
        replace(plan, rows_per_step=4, micro_rows=4 // mesh.data if "optimizer" in settings else 1, mesh=mesh)
        for plan, mesh in zip(two_stages(), meshes, strict=True)
    ]
    weights = place_weights(model, model.parts, world=world, mesh=meshes[0], dtype=None)

    def engine(plan):
        axes, mesh = world.axes(plan.mesh), plan.mesh
        scheme = PLAIN
        if mesh.ring > 1:
            scheme = Ring(ring=axes["ring"], local=PLAIN)
        if mesh.ulysses > 1:
            scheme = Ulysses(ulysses=axes["ulysses"], inner=scheme)
        bare = EngineChoice(segment=2)
        choice = EngineChoice(segment=2, anchors=("device",) * len(anchor_keys(2, keep=bare.keep, segment=2)))
        tokens = plan.micro_rows * plan.length
        return Engine(model, choice, tokens=tokens, scheme=scheme, weights=weights).forward_backward

    def stop():
        asked.append(1)
        return stop_at is not None and world.launch.rank == 1 and len(asked) > stop_at

    train(
        model,
        stages,
        settings=TrainSettings.model_validate(settings),
        batches=batches,
        checkpoints=Unsaved(),
        observe=seen.append,
        engine=engine,
        team=Team(stop=stop, weights=weights, world=world),
    )
    metrics = [(step.loss, step.gradient_norm, step.targets) for step in seen]
    return metrics, {name: (weights.first_row(name), weight.detach()) for name, weight in weights.kept.items()}
