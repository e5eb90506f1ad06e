"""Where the weights of a model lie: whole on every rank, or cut over ranks by FSDP2 and whole while at work.

Whoever computes asks for a part to be at hand and hands back the gradients of the whole part; whoever updates sees
plain parameters: those that this rank keeps.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, UnshardHandle, fully_shard
from torch.distributed.tensor import DTensor

from longspan.parallel.dist import ALONE, Axis, World
from longspan.parallel.exchange import Pending, all_reduce_, reduce_rows
from longspan.parallel.mesh import Mesh
from longspan.parallel.pulse import Progress

Fill = Callable[[nn.Module], None]


def _there_already(part: nn.Module) -> None:
    """Nothing to fill."""


class Weights(ABC):
    """The parameters of a module, as one rank keeps them. `kept` holds those by name: plain, and of this rank alone."""

    kept: Mapping[str, nn.Parameter]

    def __init__(self, module: nn.Module, progress: Progress | None) -> None:
        self._names = {id(part): name for name, part in module.named_modules()}
        self._progress = progress

    def mark(self, phase: str) -> None:
        """A phase of a pass begins, or its "end": exchanges are named by it, and by the part that was at hand last."""
        if self._progress is not None:
            self._progress.phase, self._progress.part = "" if phase == "end" else phase, ""

    def _begin_part(self, part: nn.Module) -> None:
        if self._progress is not None:
            name = self._names[id(part)]
            number = name.rpartition(".")[2]
            self._progress.part = f"layer {number}" if number.isdecimal() else name

    @abstractmethod
    @contextmanager
    def at_hand(self, part: nn.Module, *, following: nn.Module | None = None) -> Iterator[None]:
        """Inside, the parameters of `part` are whole; those of `following` are on their way."""

    @abstractmethod
    def home(self, parameter: nn.Parameter) -> nn.Parameter:
        """What this rank keeps of a parameter of the module."""

    @abstractmethod
    def reduce(self, total: Tensor) -> Pending[Tensor]:
        """Begin to add up the gradient of a whole parameter over ranks; what comes is that of the part kept here."""

    @abstractmethod
    def add_up(self, x: Tensor) -> None:
        """The sum over all ranks of a number that each has a share of, in place."""

    @abstractmethod
    def add_up_parts(self, x: Tensor) -> None:
        """The sum of a number over the ranks that together keep one copy of the weights, in place."""

    @abstractmethod
    def spread(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor whose rows go with those kept of a parameter, as one part of the whole: a `DTensor` if it is cut."""

    @property
    def alone(self) -> bool:
        """Whether nobody else has a share in the gradients."""
        return False

    @abstractmethod
    def first_row(self, name: str) -> int:
        """Which row of the whole parameter is the first that is kept here."""


class Whole(Weights):
    """Every rank keeps all weights; gradients are added up over `axes`, and are the same bits everywhere."""

    def __init__(self, module: nn.Module, axes: Sequence[Axis] = ()) -> None:
        super().__init__(module, next((axis.world.progress for axis in axes if axis.world is not None), None))
        self.kept = dict(module.named_parameters())
        self._axes = [axis for axis in axes if axis.size > 1]

    @contextmanager
    def at_hand(self, part: nn.Module, *, following: nn.Module | None = None) -> Iterator[None]:  # noqa: ARG002
        """They always are."""
        self._begin_part(part)
        yield

    def home(self, parameter: nn.Parameter) -> nn.Parameter:
        """Itself."""
        return parameter

    def reduce(self, total: Tensor) -> Pending[Tensor]:
        """All of it, summed in place."""
        for axis in self._axes[:-1]:
            all_reduce_(total, axis, operation="sum of gradients").wait()
        return all_reduce_(total, self._axes[-1] if self._axes else ALONE, operation="sum of gradients")

    def add_up(self, x: Tensor) -> None:
        """Over every axis in turn."""
        for axis in self._axes:
            all_reduce_(x, axis, operation="sum over ranks").wait()

    def add_up_parts(self, x: Tensor) -> None:
        """One rank has it all."""

    def spread(self, name: str, tensor: Tensor) -> Tensor:  # noqa: ARG002
        """The tensor itself."""
        return tensor

    def first_row(self, name: str) -> int:  # noqa: ARG002
        """All rows are."""
        return 0

    @property
    def alone(self) -> bool:
        """Whether there is one rank."""
        return not self._axes


class Shards(Weights):
    """Each parameter is cut by rows over the ranks of shard x ring x ulysses, and copied over those of replicate.

    `parts` are gathered one at a time, matrices with their biases in `dtype` where it is given, norms in their own
    type. Every rank makes it, with the same parameters in place, or put there by `fill` just before a part is cut;
    afterwards they are `DTensor`s, and whole inside `at_hand` only. Rows may be fewer than ranks.
    Source: arXiv:2304.11277; PyTorch FSDP2.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: Iterable[nn.Module],
        *,
        world: World,
        mesh: Mesh,
        dtype: torch.dtype | None,
        fill: Fill = _there_already,
    ) -> None:
        super().__init__(module, world.progress)
        ranks = mesh.shard * mesh.context
        made = init_device_mesh(world.device.type, (mesh.replicate, ranks), mesh_dim_names=("copies", "rows"))
        at_copy, at_row = divmod(world.launch.rank, ranks)
        self._rows = world.axis(made, "rows", rank=at_row)
        self._copies = world.axis(made, "copies", rank=at_copy)
        placed = made if mesh.replicate > 1 else made["rows"]
        self._units: dict[nn.Module, list[FSDPModule]] = {}
        for part in parts:
            fill(part)
            self._units[part] = [_cut(unit, placed, None) for unit in part.modules() if _is_norm(unit)]
            if not _is_norm(part):
                self._units[part].append(_cut(part, placed, dtype))
        self._tensors: dict[str, DTensor] = {}
        self._homes: dict[nn.Parameter, nn.Parameter] = {}
        kept = {}
        for name, parameter in module.named_parameters():
            cut = parameter.data
            assert isinstance(cut, DTensor), f"{name} is in none of the parts"
            self._tensors[name] = cut
            kept[name] = nn.Parameter(cut.to_local(), requires_grad=parameter.requires_grad)
            self._homes[parameter] = kept[name]
        self.kept = kept
        self._coming: dict[nn.Module, list[UnshardHandle]] = {}

    @contextmanager
    def at_hand(self, part: nn.Module, *, following: nn.Module | None = None) -> Iterator[None]:
        """Wait for the part, and begin to gather the next one under the work on it."""
        self._begin_part(part)
        self._begin(part)
        with self._rows.within(self._rows.named("gather of weights"), waits=True):
            for handle in self._coming.pop(part):
                handle.wait()
        prefix = self._names[id(part)]
        for name, parameter in part.named_parameters():
            self._homes[parameter] = self.kept[f"{prefix}.{name}"]
        if following is not None and following is not part:
            self._begin(following)
        yield
        if following is not part:
            for unit in self._units[part]:
                unit.reshard()

    def _begin(self, part: nn.Module) -> None:
        if part not in self._coming:
            with self._rows.within(self._rows.named("gather of weights")):
                handles = [unit.unshard(async_op=True) for unit in self._units[part]]
            self._coming[part] = [handle for handle in handles if handle is not None]

    def home(self, parameter: nn.Parameter) -> nn.Parameter:
        """The rows of this rank."""
        return self._homes[parameter]

    def reduce(self, total: Tensor) -> Pending[Tensor]:
        """Everybody's own rows of the sum."""
        pending = reduce_rows(total, self._rows, operation="sum of gradients")
        if self._copies.size == 1:
            return pending
        return all_reduce_(pending.wait(), self._copies, operation="sum of gradients over copies")

    def add_up(self, x: Tensor) -> None:
        """Over the ranks of a copy, then over the copies."""
        for axis in (self._rows, self._copies):
            all_reduce_(x, axis, operation="sum over ranks").wait()

    def add_up_parts(self, x: Tensor) -> None:
        """Over the ranks of a copy."""
        all_reduce_(x, self._rows, operation="sum over ranks").wait()

    def spread(self, name: str, tensor: Tensor) -> DTensor:
        """A `DTensor` cut like the parameter: with its rows, and with columns of its own."""
        whole = self._tensors[name]
        shape = torch.Size((whole.shape[0], *tensor.shape[1:]))
        stride = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
        return DTensor.from_local(
            tensor, whole.device_mesh, whole.placements, run_check=False, shape=shape, stride=stride
        )

    def first_row(self, name: str) -> int:
        """Ranks have equally many rows, the last ones what is left."""
        rows = self._tensors[name].shape[0]
        return min(rows, self._rows.rank * -(-rows // self._rows.size))


def _is_norm(unit: nn.Module) -> bool:
    own = list(unit.parameters(recurse=False))
    return bool(own) and all(parameter.ndim == 1 for parameter in own)


def _cut(unit: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None) -> FSDPModule:
    policy = MixedPrecisionPolicy(param_dtype=dtype, cast_forward_inputs=False)
    cut: FSDPModule = fully_shard(unit, mesh=mesh, mp_policy=policy)
    return cut


def place_weights(
    module: nn.Module,
    parts: Iterable[nn.Module],
    *,
    world: World,
    mesh: Mesh,
    dtype: torch.dtype | None,
    fill: Fill = _there_already,
) -> Weights:
    """Cut the weights over shard x ring x ulysses if that is more than one rank; else keep them whole, with copies.

    `fill` gives a part its values: called just before it is cut, so that no rank ever holds more than one whole part.
    """
    if mesh.shard * mesh.context > 1:
        return Shards(module, parts, world=world, mesh=mesh, dtype=dtype, fill=fill)
    for part in parts:
        fill(part)
    return Whole(module, list(world.axes(mesh).values()))
