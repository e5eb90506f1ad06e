"""Transformers as most people run it on one GPU: Llama in bf16 with gradient checkpointing and its own loss.

python benchmarks/peers/plain.py --tokens 32768 --layers 32
"""

from common import arguments, build, kernel, measure


def main() -> None:
    given = arguments(__doc__)
    model = build(given)

    def step(ids, positions):
        with kernel(given):
            loss = model(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
            loss.backward()
        return loss

    measure(f"transformers, {given.attention}", given, model, step, keep="checkpoints")


if __name__ == "__main__":
    main()
