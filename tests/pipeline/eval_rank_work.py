"""A long context that ranks read together while one asks, as a rank does it. No pytest here."""

from collections import namedtuple
from unittest.mock import patch

import numpy as np
import torch

from longspan.engine.kept import Keep
from longspan.eval import context
from longspan.eval.context import DecoderReader
from longspan.model.decoder import Decoder
from longspan.pipeline.evalranks import answer, asking, spread_prefill
from longspan.rope.frequencies import Frequencies
from longspan.shape import ModelShape

Asked = namedtuple("Asked", ["question", "answer"])
ASKED = [([5, 3, 8], [1, 9]), ([2], [7, 4, 4])]


def decoder(windows=(None, None)):
    shape = ModelShape(
        family="llama", layers=2, width=24, heads=4, kv_heads=2, head_dim=8, mlp_width=40, vocabulary=53,
        norm_epsilon=1e-5, tied=False, qkv_bias=False, out_bias=False, mlp_bias=False, qk_norm=False, windows=windows,
        trained_length=64,
    )  # fmt: skip
    made = Decoder(
        shape, Frequencies(theta=1e4, factors=(1.0,) * 4, attention_factor=1.0, length=64, trained_length=64)
    )
    made.initialise(3)
    return made.eval()


def asked_of(reader, tokens):
    """Scores, replies and losses; a short context first, which one rank reads alone."""
    reader.read(tokens[:9], room_tokens=8).score([Asked([1], [2])])
    kept = reader.read(tokens, room_tokens=8)
    scores = kept.score([Asked(question, gold) for question, gold in ASKED])
    replies = kept.generate([question for question, _ in ASKED], max_new_tokens=[4, 2])
    return [[s.logprob for s in scores], [s.hit for s in scores]], replies, torch.from_numpy(reader.token_nll(tokens))


def evaluated(world, windows):
    """What the rank that leads found, together and alone; nothing from the others."""
    made, tokens = decoder(windows), np.random.default_rng(0).integers(0, 53, 61)
    with patch.object(context, "FAR_TOKENS", 20):
        if world.launch.rank:
            answer(made, Keep(), world, "before")
            return None
        far = spread_prefill(made, Keep(), world)
        with asking(far, world, "before"):
            reader = DecoderReader(made, far=far)
            return reader.check(), asked_of(reader, tokens), asked_of(DecoderReader(made), tokens)
