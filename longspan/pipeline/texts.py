"""The texts of a job on their way to tokens: where they are read from, the tokenizer, the form of conversations."""

from typing import Any

from tokenizers import Tokenizer

from longspan.data.build import is_held_out
from longspan.data.chat import ChatFormat
from longspan.data.curate import curated_settings
from longspan.data.settings import DataSettings
from longspan.data.sources import Quarantine, read_documents
from longspan.data.tokenize import END_OF_TEXT, load_tokenizer, train_tokenizer
from longspan.model.folder import read_plain
from longspan.pipeline.job import Job, seen_files
from longspan.utils.errors import ConfigError
from longspan.utils.files import read_json, write_atomic, write_json
from longspan.utils.values import canonical_sha256


def texts(job: Job) -> DataSettings:
    """Where the documents are read from: the recipe's sources, or what its filters have kept of them."""
    data = job.recipe.data
    return data if data.curate is None else curated_settings(job.folder.curated, data)


def only_tokens(job: Job) -> bool:
    """Whether the run folder was moved here without the texts that its tokens were made from.

    Raises `ConfigError` when these tokens are not of this recipe's data.
    """
    folder = job.folder
    if all(source.path.exists() for source in job.recipe.data.sources) or not folder.tokens.exists():
        return False
    made = read_json(folder.data, error=ConfigError, code="run.data").get("made_as") if folder.data.exists() else None
    if made != data_sha256(job):
        raise ConfigError(
            "run.texts-missing",
            "the texts are not here, and the tokens in the run folder are of other sources, filters or held-out names",
            where=str(folder.path),
            fix="bring the texts, or run the recipe that the tokens were made with",
        )
    return True


def data_sha256(job: Job) -> str:
    """Hash of what a recipe says about its data, and of the model, whose tokenizer it is."""
    return canonical_sha256([job.recipe.shaping["data"], job.recipe.filters, job.base_identity])


def curate_inputs(job: Job) -> dict[str, Any]:
    """What the curated documents depend on."""
    return {
        "data": job.recipe.shaping["data"],
        "filters": job.recipe.filters,
        "files": [seen_files(source.path) for source in job.recipe.data.sources],
        "base": job.base_identity,
    }


def make_tokenizer(job: Job) -> Tokenizer:
    """Put the tokenizer of this run into its folder: the recipe's, the model's, or one trained on the texts."""
    data, new, file = texts(job), job.recipe.model.new, job.given_tokenizer
    # What transformers needs beside a tokenizer.json in order to load it.
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if file is not None:
        tokenizer = load_tokenizer(file, vocabulary=job.start[0].vocabulary)
        content = file.read_bytes()
        beside = file.with_name("tokenizer_config.json")
        if beside.exists():
            settings = read_plain(beside)
        template = file.with_name("chat_template.jinja")
        if template.exists():  # where newer versions of transformers write it
            settings["chat_template"] = template.read_text(encoding="utf-8")
    else:
        assert new is not None, "a model is new or comes from a folder"
        documents = read_documents(data.sources, max_document_bytes=data.max_document_bytes, quarantine=Quarantine())
        training = (document.text for document in documents if not is_held_out(document.id, data))
        tokenizer = train_tokenizer(training, vocabulary=new.vocabulary)
        content = tokenizer.to_str(pretty=True).encode()
        settings["eos_token"] = END_OF_TEXT
    write_atomic(job.folder.tokenizer, content)
    write_json(job.folder.tokenizer_config, settings)
    return tokenizer


def chat_format(job: Job) -> ChatFormat | None:
    """How conversations are written; None when no source has any. Raises `DataError` without a usable template."""
    if all(source.documents != "chats" for source in job.recipe.data.sources):
        return None
    return ChatFormat(job.tokenizer(), read_plain(job.folder.tokenizer_config))
