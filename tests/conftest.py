"""What every test shares: checked array shapes, one thread, fixed seeds.

The import hook must be in place before `longspan` is first imported, so it is installed while this file is read.
"""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Every array annotation of these packages is checked at each call, in tests only: `S` where `s` is meant is the bug
# of this field. An int is a float here, as it is for mypy.
install_import_hook(
    ["longspan.rope", "longspan.attention", "longspan.model", "longspan.engine"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# Time is no property of the code under test: a loaded machine must not fail an example.
settings.register_profile("longspan", deadline=None)
settings.load_profile("longspan")

# Small tensors gain nothing from threads, and one thread adds numbers up in one order.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, alone or in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
