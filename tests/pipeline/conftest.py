"""A job small enough to run whole in a test: a few thousand weights, a few pages of made-up text."""

import random
from pathlib import Path

import pytest

WORDS = (
    "the river ran past an old mill where seven grey stones stood and every morning a woman counted boats upon water "
    "before bread was sold near market bridge under rain or sun while children sang slow songs about winter"
)

MICRO = """\
name = "micro"
seed = 1
output = "run"
device = "cpu"

[model.new]
layers = 1
width = 16
heads = 2
kv_heads = 1
head_dim = 8
mlp_width = 32
vocabulary = 300

[data]
held_out = ["page-3.txt"]

[[data.sources]]
path = "texts"

[[stages]]
length = 64
tokens = 512
batch_tokens = 128
learning_rate = 1e-3
rope = { kind = "default" }

[[stages]]
length = 128
tokens = 1024
batch_tokens = 256
learning_rate = 1e-3
rope = { kind = "yarn" }
mix = [{ share = 0.5 }, { share = 0.5, probe = { kind = "key_value" }, items = 1 }]

[train]
micro_batch_tokens = 128
save_every_steps = 2

[[eval.tasks]]
kind = "grid"
probe = { kind = "needle" }
lengths = [128]
depths = 1
trials = 2

[[eval.tasks]]
kind = "position_loss"
length = 128
windows = 1
"""


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    """The recipe of the micro job, beside its texts."""
    draw = random.Random(0)
    (tmp_path / "texts").mkdir()
    for page in range(4):
        sentences = (" ".join(draw.choices(WORDS.split(), k=9)).capitalize() + "." for _ in range(120))
        (tmp_path / "texts" / f"page-{page}.txt").write_text("\n".join(sentences))
    path = tmp_path / "micro.toml"
    path.write_text(MICRO)
    return path
