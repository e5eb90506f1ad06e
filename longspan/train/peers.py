"""The ranks that share one folder of checkpoints: what one of them finds out, or fails at, all learn."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from longspan.parallel.dist import World
from longspan.utils.errors import CheckpointError, LongspanError, ModelError, StorageError

T = TypeVar("T")
PATIENCE_SECONDS = 1800.0  # a rank with a slow disk is not lost; one that died is noticed at once
KINDS = {kind.__name__: kind for kind in (CheckpointError, ModelError, StorageError)}


class Peers:
    """All ranks of a run, or this process alone; every rank makes one at the same point and asks it in the same order.

    They talk over a gloo group of their own, so a thread that saves does not meet the exchanges of training. What
    travels is JSON.
    """

    def __init__(self, world: World | None = None) -> None:
        self._world = world
        self.rank = 0 if world is None else world.launch.rank
        self.ranks = 1 if world is None else world.launch.ranks
        self.group: distributed.ProcessGroup | None = None  # None for one rank
        if world is not None and self.ranks > 1:
            patience = max(PATIENCE_SECONDS, world.deadline_seconds)
            self.group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=patience))

    @property
    def deadline_seconds(self) -> float | None:
        """How long peers are waited for when the run has failed already; None when there are none."""
        return None if self._world is None or self.group is None else self._world.deadline_seconds

    def agree(self, work: Callable[[], T]) -> list[T]:
        """Do this rank's part, and return what all ranks returned, as JSON reads it, in their order.

        If any failed, all raise what the lowest of them raised, its rank named by the others. Raises `parallel.lost`
        when a rank does not come.
        """
        if self.group is None:
            return [work()]
        own: Exception | None = None
        answer: dict[str, Any] = {}
        try:
            answer["value"] = work()
        except Exception as error:  # noqa: BLE001 - it is raised below, on every rank
            own, answer = error, {"error": _told(error)}
        answers = self._exchange(answer)
        failed = next((rank for rank, answer in enumerate(answers) if "error" in answer), None)
        if failed is None:
            return [answer["value"] for answer in answers]
        if failed == self.rank and own is not None:
            raise own
        raise _retold(answers[failed]["error"], rank=failed) from own

    def lead(self, work: Callable[[], T]) -> T:
        """Let rank 0 do the work, and return on all ranks what it returned, as JSON reads it; raises as `agree`."""
        nothing: Any = None  # what the others return is not looked at
        answers: list[T] = self.agree(work if self.rank == 0 else lambda: nothing)
        return answers[0]

    def _exchange(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        try:
            sizes = [int(size) for size in self._gather(torch.tensor([len(own)]))]
            padded = torch.zeros(max(sizes), dtype=torch.uint8)
            padded[: len(own)] = own
            texts = self._gather(padded)
        except RuntimeError as cause:
            assert self._world is not None, "one rank has nobody to lose"
            raise LongspanError(
                "parallel.lost",
                f"rank {self.rank} waited in vain at a checkpoint: {self._world.pulse.culprits()}",
                where=str(cause).partition("\n")[0],
                fix="look at the log of the rank that is named; the same command goes on from the last checkpoint",
            ) from cause
        return [json.loads(text[:size].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]

    def _gather(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.ranks)]
        distributed.all_gather(found, own, group=self.group)
        return found


ALONE = Peers()


def _told(error: Exception) -> dict[str, str]:
    if isinstance(error, LongspanError):
        kind = type(error).__name__
        return {"kind": kind, "code": error.code, "what": error.what, "where": error.where, "fix": error.fix}
    return {
        "kind": "LongspanError",
        "code": "checkpoint.rank",
        "what": f"{type(error).__name__}: {error}",
        "where": "",
        "fix": "look at the log of that rank",
    }


def _retold(told: dict[str, str], *, rank: int) -> LongspanError:
    kind = KINDS.get(told["kind"], LongspanError)
    return kind(told["code"], f"rank {rank}: {told['what']}", where=told["where"], fix=told["fix"])
