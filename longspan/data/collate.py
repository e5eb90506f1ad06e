"""Rows into the batch that the engine takes; apart from `rows`, so that preparing data needs no torch."""

from collections.abc import Sequence

import numpy as np
import torch

from longspan.batch import Batch
from longspan.data.rows import Row


def collate(rows: Sequence[Row]) -> Batch:
    """Stack rows of one length into tensors on the CPU."""
    return Batch(
        tokens=torch.from_numpy(np.stack([row.tokens for row in rows])),
        targets=torch.from_numpy(np.stack([row.targets for row in rows])),
        weights=torch.from_numpy(np.stack([row.weights for row in rows])),
        positions=torch.from_numpy(np.stack([row.positions for row in rows])),
        spans=tuple(row.spans for row in rows),
    )
