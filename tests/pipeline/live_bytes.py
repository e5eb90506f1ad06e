"""The bytes of live tensors while something runs. No pytest here: ranks load it too."""

import weakref
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the storage of every tensor that an operation takes or gives, as it grows and shrinks, to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._known: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        if tensor.is_meta or isinstance(tensor, DTensor):  # sizes, and bytes that lie in another tensor
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = weakref.ref(storage)
            weakref.finalize(storage, self._known.pop, key, None)
            self.measure()

    def measure(self) -> None:
        """Storages may have been resized: FSDP frees and takes those of its parameters in that way."""
        alive = [storage for reference in list(self._known.values()) if (storage := reference()) is not None]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out
