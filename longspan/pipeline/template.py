"""The recipe that `longspan init` writes: a first plan for one model, with a word on every part."""

import json
import os
from pathlib import Path

from longspan.model.families.base import family_of
from longspan.model.folder import read_config
from longspan.rope.export import read_rope
from longspan.rope.layertypes import read_layer_type
from longspan.utils.errors import ConfigError
from longspan.utils.files import write_atomic

TEMPLATE = """\
# A job for longspan: take {name} from {trained:,} to {long:,} tokens.
# Paths are relative to this file. All keys: longspan schema. Run it: longspan run {file}

name = {name_text}
seed = 0
output = {output}                 # the run folder; the same command goes on where it stopped
device = "auto"                   # a GPU when there is one; "cpu" or "cuda" to insist

[model]
folder = {folder}

[data]
held_out_share = 0.05             # whole documents kept from training, for the evaluation
# held_out = ["*/chapter-9*.txt"] # … or by their ids: paths relative to the source

[[data.sources]]                  # a .txt, .jsonl or .parquet file, or a folder of them; give several if you like
path = "texts"

# One table a stage, from shorter to longer. Rows of `length` tokens, `batch_tokens` a step, `tokens` in all.
[[stages]]
length = {middle}
tokens = {middle_tokens}
batch_tokens = {batch}
learning_rate = 2e-5
rope = {{ kind = "yarn" }}          # the position method; also: theta_law, ntk, linear, llama3, longrope, …

[[stages]]
length = {long}
tokens = {long_tokens}
batch_tokens = {batch}
learning_rate = 2e-5
rope = {{ kind = "yarn" }}
mix = [                           # shares of the rows; a probe teaches the model to look far back
  {{ share = 0.9 }},
  {{ share = 0.1, probe = {{ kind = "key_value" }} }},
]

[train]                           # AdamW with warm-up and cosine
weight_decay = 0.1
micro_batch_tokens = {long}       # what one forward and backward pass takes at once
save_every_steps = 50

[[eval.tasks]]                    # measured before and after training, on held-out text
kind = "grid"
probe = {{ kind = "needle" }}
lengths = [{trained}, {middle}, {long}]
trials = 4

[[eval.tasks]]
kind = "position_loss"
length = {long}

[export]
dtype = "bfloat16"

# [tracking]
# kind = "trackio"                # or wandb, tensorboard; none unless asked for
"""


def write_recipe(model: Path, *, to: Path) -> Path:
    """Write a commented recipe for a Hugging Face model folder: two stages, to four times its trained length.

    Raises `ConfigError` when the file exists or is no .toml, `ModelError` when the folder holds no usable config.
    """
    if to.suffix != ".toml":
        raise ConfigError(
            "init.format", "a recipe's name ends in .toml", where=str(to), fix="longspan init … --to x.toml"
        )
    if to.exists():
        raise ConfigError("init.exists", "this file exists already", where=str(to), fix="name another with --to")
    config = read_config(model)
    family = family_of(config)
    trained = read_rope(read_layer_type({**config, **family.config(family.shape(config))})).length
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in model.resolve().name).strip("-") or "model"
    middle, long = 2 * trained, 4 * trained
    text = TEMPLATE.format(
        name=name,
        name_text=json.dumps(f"{name}-long"),
        file=to.name,
        output=json.dumps(f"runs/{name}-long"),
        folder=json.dumps(os.path.relpath(model.resolve(), to.resolve().parent)),
        trained=trained,
        middle=middle,
        long=long,
        batch=8 * long,
        middle_tokens=200 * 8 * long,
        long_tokens=100 * 8 * long,
    )
    write_atomic(to, text.encode())
    return to
