"""PyTorch's own context parallelism around transformers' Llama with gradient checkpointing and Liger's cross entropy.

    torchrun --standalone --nproc-per-node 2 benchmarks/peers/torch_context.py --tokens 262144 --layers 4

What it can do differs between releases: kernels and key/value heads are tried on the warm-up row, best first, and the
line tells which were taken. On a CPU it cannot attend at all; `--device cpu` only tries the script, on one rank.
"""

from common import arguments, build, kernel, loss_function, measure, meet, targets_of

FAILURES = (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError, KeyError)


def without_masks() -> None:
    """A rank's tokens are two pieces of the row, which transformers takes for two documents; torch knows better."""
    from transformers.models.llama import modeling_llama

    modeling_llama.create_causal_mask = lambda *_, **__: None


def repeat_keys(wanted: bool) -> None:
    """Give SDPA a key/value head for every query head, as PyTorch's own trainer does, or leave them grouped."""
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *_, **__: not wanted


class Step:
    """One pass; the first call finds out which kernel and which heads this release takes."""

    def __init__(self, given, model, ranks) -> None:
        self._given, self._model, self._ranks = given, model, ranks
        self._loss_of = loss_function(given.device)
        kernels = [given.attention, *({"cudnn", "flash"} - {given.attention})]
        self._ways = [(name, repeated) for name in kernels for repeated in (False, True)]
        self.failed: dict[str, str] = {}
        self._mesh = None
        if ranks.count > 1:
            from torch.distributed.device_mesh import init_device_mesh

            self._mesh = init_device_mesh(given.device, (ranks.count,), mesh_dim_names=("context",))

    def __call__(self, ids, positions):
        while True:
            self._given.attention, repeated = self._ways[0]
            repeat_keys(repeated)
            try:
                return self._pass(ids, positions)
            except FAILURES as error:
                import torch

                if isinstance(error, torch.OutOfMemoryError) or len(self._ways) == 1:
                    raise
                self.failed[self.way] = f"{type(error).__name__}: {str(error)[:300]}"
                self._ways.pop(0)

    @property
    def way(self) -> str:
        """How attention runs, in words."""
        name, repeated = self._ways[0]
        return f"{name}, {'repeated' if repeated else 'grouped'} key/value heads"

    def _pass(self, ids, positions):
        from contextlib import nullcontext

        targets, buffers = targets_of(ids), [ids.clone(), positions.clone()]
        buffers.append(targets)
        context = nullcontext()
        if self._mesh is not None:
            from torch.distributed.tensor.experimental import context_parallel

            context = context_parallel(
                self._mesh, buffers=buffers, buffer_seq_dims=[1, 1, 1], no_restore_buffers=set(buffers)
            )
        tokens, places, targets = buffers
        with context, kernel(self._given):
            found = self._model.model(input_ids=tokens, position_ids=places, use_cache=False)
            weight = self._model.lm_head.weight
            loss = self._loss_of(weight, found.last_hidden_state[0], targets[0]) / (ids.shape[1] - 1)
            del found
            loss.backward()
        return self._ranks.add_up(self._model, loss)


def main() -> None:
    given = arguments(__doc__)
    without_masks()
    ranks = meet(given, scheme="torch context_parallel", axis="ring")
    model = build(given)
    step = Step(given, model, ranks)
    measure(
        "transformers with torch's context_parallel",
        given,
        model,
        step,
        keep="checkpoints",
        ranks=ranks,
        more=lambda: {"way": step.way, "ways_that_failed": step.failed},
    )


if __name__ == "__main__":
    main()
