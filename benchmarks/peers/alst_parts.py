"""The public parts of ALST (arXiv:2506.13996): DeepSpeed's TiledMLP and its offload of checkpointed hidden states,
Liger's fused linear cross entropy, around transformers' Llama with gradient checkpointing. On several GPUs also
DeepSpeed's Ulysses, with all weights on each: ZeRO would save memory and take time.

    python benchmarks/peers/alst_parts.py --tokens 65536 --layers 32 --wheels FOLDER
    torchrun --standalone --nproc-per-node 2 benchmarks/peers/alst_parts.py --tokens 262144 --layers 4 --wheels FOLDER

On a CPU the loss is plain cross entropy (Liger's kernels need a GPU): good for trying the script, not for numbers.
"""

import math
import os

from common import arguments, build, kernel, loss_function, measure, meet, targets_of

ALONE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


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


def offload(device: str):
    """DeepSpeed's context that sends every checkpointed input to the host, pinned, on streams of its own."""
    from contextlib import nullcontext

    if device == "cpu":
        return nullcontext()
    from deepspeed.runtime.activation_checkpointing import offload_activations

    return offload_activations.get_checkpoint_hidden_states_offloading_ctx_manager()


def spread(model, ranks):
    """Let DeepSpeed's Ulysses stand in for the attention of transformers."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation="sdpa",
        sequence_parallel_size=ranks.count,
        micro_batch_size=1,
    )


def main() -> None:
    given = arguments(__doc__)
    # DeepSpeed looks for a process group's variables when it is imported.
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    tile_mlps()
    if os.environ["WORLD_SIZE"] != "1":
        import deepspeed

        if given.device == "cuda":
            import torch

            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed("nccl" if given.device == "cuda" else "gloo")
    ranks = meet(given, scheme="ulysses", axis="ulysses")
    model, loss_of = build(given), loss_function(given.device)
    if ranks.count > 1:
        spread(model, ranks)

    def step(ids, positions):
        targets = ranks.own(targets_of(ids))
        with kernel(given), offload(given.device):
            found = model.model(input_ids=ranks.own(ids), position_ids=ranks.own(positions), use_cache=False)
            loss = loss_of(model.lm_head.weight, found.last_hidden_state[0], targets[0]) / (ids.shape[1] - 1)
            del found
            loss.backward()
        return ranks.add_up(model, loss)

    measure(f"ALST parts, {given.attention}", given, model, step, keep="checkpoints on the host", ranks=ranks)


if __name__ == "__main__":
    main()
