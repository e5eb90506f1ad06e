"""What a job's evaluation reads: its held-out documents, its tokenizer, its seed."""

from longspan.data.tokenize import plain_encode
from longspan.eval.desk import Material
from longspan.pipeline.job import Job
from longspan.utils.errors import ConfigError


def material_of(job: Job) -> Material:
    """The material of the recipe's tasks. Raises `ConfigError` when there are tasks and no held-out text."""
    documents = job.stores().held_out
    if job.recipe.asked and not len(documents):
        raise ConfigError(
            "eval.no-text",
            "the evaluation needs held-out documents, and none is held out",
            where="recipe: data.held_out",
            fix='name documents to hold out, such as held_out = ["*.txt"], or set held_out_share',
        )
    tokenizer = job.tokenizer()
    return Material(
        documents=documents,
        encode=plain_encode(tokenizer),
        decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False),
        seed=job.recipe.seed,
        text_id=job.held_out_sha256,
        stop_ids=(documents.separator,),
    )
