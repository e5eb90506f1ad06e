"""The tensors of a checkpoint in safetensors files: each rank writes its share, any number of ranks reads them back.

PyTorch Distributed Checkpoint plans who writes what and who reads what; its storage that pickles is not used, and it is
given tensors only.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from longspan.model.tensorfile import Held, file_bytes, write_tensors
from longspan.train.manifest import damaged, unreadable
from longspan.train.peers import Peers
from longspan.utils.errors import LongspanError

WEIGHTS, OPTIMIZER = "model", "optimizer"
State = Mapping[str, Mapping[str, Tensor]]  # of `WEIGHTS` and `OPTIMIZER`: tensors by names that are unique in both
Records = dict[str, dict[str, Any]]  # size in bytes and sha256 by file name


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without its gradient."""
    found = tensor.detach()
    return found.to_local() if isinstance(found, DTensor) else found


def state_bytes(state: State) -> int:
    """Bytes of the files that hold a state, written by one rank; more ranks add their headers."""
    return sum(file_bytes({name: Held(tensor) for name, tensor in tensors.items()}, None) for tensors in state.values())


def form(tensor: Tensor) -> str:
    """Type and whole shape of a tensor, as `SavedTensors.forms` tells it."""
    return _form(tensor.dtype, tensor.shape)


def write_share(folder: Path, state: State, *, held: Mapping[str, Tensor], peers: Peers) -> Records:
    """Write this rank's share of a state durably; every rank calls this.

    `state` tells shapes and how they are cut, `held` has the numbers: the local part of every tensor, on any device.
    Ranks that hold the same numbers share the work. Raises `StorageError` and `ModelError` for this rank's files, and
    `checkpoint.rank` on all ranks when the plan fails.
    """
    if peers.group is None:
        own = {kind: {name: held[name] for name in tensors} for kind, tensors in state.items()}
        return {f"{kind}.safetensors": _written(folder / f"{kind}.safetensors", own[kind]) for kind in own}
    writer = _ShareWriter(folder, {name: kind for kind, tensors in state.items() for name in tensors}, held, peers)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    tensors = {name: tensor.detach() for tensors in state.values() for name, tensor in tensors.items()}
    try:
        save(tensors, storage_writer=writer, planner=planner, process_group=peers.group)
    except CheckpointException as failure:  # raised on all ranks alike
        rank, (cause, _) = min(failure.failures.items())
        raise LongspanError(
            "checkpoint.rank",
            f"rank {rank} could not plan the checkpoint: {type(cause).__name__}: {cause}",
            where=str(folder),
            fix="look at the log of that rank",
        ) from failure
    if writer.error is not None:
        raise writer.error
    return writer.records


class _ShareWriter(HuggingFaceStorageWriter):
    """Writes what the plan gives to this rank, tensor by tensor, hashed on the way.

    The library's own `write_data` makes the bytes of the whole file in memory first, and one that fails has to send its
    exception to rank 0.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, str], held: Mapping[str, Tensor], peers: Peers) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._kinds, self._held, self._peers = folder, kinds, held, peers
        self.records: Records = {}
        self.error: Exception | None = None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:  # noqa: ARG002
        try:
            self._write(plan)
        except Exception as error:  # noqa: BLE001 - raised by `write_share`, once all ranks are here
            self.error = error
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    def _write(self, plan: SavePlan) -> None:
        shares: dict[str, dict[str, Any]] = {}
        for item in plan.items:
            assert item.tensor_data is not None, "only tensors are saved"
            name, chunk = item.index.fqn, item.tensor_data.chunk
            assert chunk.sizes == self._held[name].shape, f"{name} is one run of rows on every rank"
            if chunk.sizes.numel():
                shares.setdefault(self._kinds[name], {})[name] = list(chunk.offsets)
        for kind, offsets in shares.items():
            path = self._folder / f"{kind}-{self._peers.rank + 1:05}-of-{self._peers.ranks:05}.safetensors"
            places = {name: {"saved_offsets": offset} for name, offset in offsets.items()}
            metadata = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0"}
            self.records[path.name] = _written(path, {name: self._held[name] for name in offsets}, metadata)


def _written(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    digest = write_tensors(path, {name: Held(t) for name, t in tensors.items()}, dtype=None, metadata=metadata)
    return {"bytes": path.stat().st_size, "sha256": digest}


class _Listed(FileSystem):
    """Shows a reader the files that a manifest lists, whatever else lies beside them."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = [str(file) for file in files]

    def ls(self, path: Any) -> list[str]:  # noqa: ARG002
        return self._files


class SavedTensors:
    """Tensors in the files of one kind, however many ranks wrote them. Raises `CheckpointError` for what is no file of
    tensors, or leaves some numbers out, and `StorageError` when the disk does not answer.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._reader = HuggingFaceStorageReader(str(folder))
        self._reader.fs = _Listed(folder / name for name in sorted(names))
        try:
            self._metadata = self._reader.read_metadata()
        except OSError as error:
            raise unreadable(folder, error) from error
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise damaged(f"a file is no file of tensors ({type(error).__name__}: {error})", folder) from error
        self.forms: dict[str, str] = {}  # type and whole shape by name
        for name, found in self._metadata.state_dict_metadata.items():
            assert isinstance(found, TensorStorageMetadata), "this reader knows nothing else"
            there = sum(chunk.sizes.numel() for chunk in found.chunks)
            if there != found.size.numel():
                raise damaged(f"{there} of {found.size.numel()} numbers of {name} are there", folder)
            self.forms[name] = _form(found.properties.dtype, found.size)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the saved numbers into tensors of the same names, types and shapes, each rank into what it holds."""
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        # Every rank plans for itself: what it has to read depends on the files and on what it holds.
        planner.set_up_planner({name: t.detach() for name, t in tensors.items()}, self._metadata, is_coordinator=True)
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        try:
            self._reader.read_data(planner.create_local_plan(), planner).wait()
        except OSError as error:
            raise unreadable(self._folder, error) from error


def _form(dtype: Any, shape: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
