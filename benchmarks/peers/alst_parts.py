"""The public parts of ALST (arXiv:2506.13996) on one GPU: DeepSpeed's TiledMLP and its offload of checkpointed hidden
states, Liger's fused linear cross entropy, around transformers' Llama with gradient checkpointing.

    python benchmarks/peers/alst_parts.py --tokens 65536 --layers 32 --wheels FOLDER

On a CPU the loss is plain cross entropy (Liger's kernels need a GPU): good for trying the script, not for numbers.
"""

import math
import os

from common import arguments, build, kernel, measure


def tile_mlps() -> None:
    """Give every Llama MLP as many tiles as DeepSpeed's own documentation says: tokens over width, rounded up."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledMLP
    from transformers.models.llama.modeling_llama import LlamaMLP

    def inner(mlp, x):
        return mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))

    def forward(mlp, x):
        weights = [mlp.down_proj.weight, mlp.gate_proj.weight, mlp.up_proj.weight]
        return TiledMLP.apply(inner, mlp, x, math.ceil(x.shape[1] / x.shape[2]), weights)

    LlamaMLP.forward = forward


def loss_function(device: str):
    """Liger's cross entropy, which never holds whole logits: (head's weight, hidden, targets) to the mean loss."""
    if device == "cpu":
        from torch.nn import functional

        return lambda weight, hidden, targets: functional.cross_entropy((hidden @ weight.t()).float(), targets)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()


def offload(device: str):
    """DeepSpeed's context that sends every checkpointed input to the host, pinned, on streams of its own."""
    from contextlib import nullcontext

    if device == "cpu":
        return nullcontext()
    from deepspeed.runtime.activation_checkpointing import offload_activations

    return offload_activations.get_checkpoint_hidden_states_offloading_ctx_manager()


def main() -> None:
    given = arguments(__doc__)
    # DeepSpeed looks for a process group's variables when it is imported.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    tile_mlps()
    model, loss_of = build(given), loss_function(given.device)

    def step(ids, positions):
        with kernel(given), offload(given.device):
            hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            loss = loss_of(model.lm_head.weight, hidden[0, :-1], ids[0, 1:])
            del hidden
            loss.backward()
        return loss

    measure(f"ALST parts, {given.attention}", given, model, step, keep="checkpoints on the host")


if __name__ == "__main__":
    main()
