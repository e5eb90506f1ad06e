"""Data sets of the Hugging Face hub: loaded once, at a pinned commit, as files that are read like any others."""

import importlib
import shutil
from collections.abc import Sequence
from typing import Any

from longspan.data.settings import SourceSettings
from longspan.utils.errors import ConfigError, DataError
from longspan.utils.files import storage_errors


def fetch_sources(sources: Sequence[SourceSettings]) -> None:
    """Load every source that names a data set on the hub and is not at its path yet; whole or not at all.

    Raises `ConfigError` when `huggingface_hub` is missing, `DataError` when the data set cannot be loaded.
    """
    for source in sources:
        if source.hub is None or source.path.exists():
            continue
        package = _package()
        name, commit = source.hub.split("@")
        loading = source.path.with_name(f".{source.path.name}.loading")  # kept after a stop: the loader goes on in it
        try:
            package.snapshot_download(
                repo_id=name,
                repo_type="dataset",
                revision=commit,
                allow_patterns=list(source.files),
                local_dir=loading,
            )
        except Exception as error:  # the client raises a dozen classes of several packages
            raise DataError(
                "data.hub",
                f"{source.hub} cannot be loaded: {type(error).__name__}: {error}",
                where=str(source.path),
                fix="check the name, the commit, the network and the hub login, then run the same command again",
            ) from error
        with storage_errors(source.path):
            shutil.rmtree(loading / ".cache", ignore_errors=True)  # the loader's own notes
            loading.rename(source.path)


def _package() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(
            "data.no-hub",
            "a source is on the Hugging Face hub, and huggingface_hub is not installed",
            where="recipe: data.sources",
            fix='pip install "longspan[hub]", or load the files yourself and leave hub out',
        ) from None
