"""Too little memory is no bug: it is told with what to make smaller."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from longspan.utils.errors import LongspanError

# The allocators of main memory raise a plain RuntimeError; these words of theirs tell it from a bug.
SIGNS = ("can't allocate memory", "not enough memory", "out of memory")


@contextlib.contextmanager
def memory_errors(where: Callable[[], str], *, fix: str) -> Iterator[None]:
    """Turn errors for want of memory into a `LongspanError` (`run.memory`); `where` is asked when it happens."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)):
            raise
        reason = (str(error).splitlines() or ["no memory is left"])[0]
        raise LongspanError("run.memory", f"the memory is too small: {reason}", where=where(), fix=fix) from error
