"""What sources bring from elsewhere: data sets of the hub or of `datasets`, once, as files."""

import importlib
import shutil
from collections.abc import Sequence
from typing import Any

from longspan.data.settings import SourceSettings
from longspan.data.streams import Progress, stream_rows
from longspan.utils.errors import ConfigError, DataError
from longspan.utils.files import storage_errors


def fetch_sources(sources: Sequence[SourceSettings], *, progress: Progress = lambda _done, _total: None) -> None:
    """Load every source that names a data set elsewhere and is not at its path yet; whole or not at all.

    `progress` hears of the rows of a stream, and may stop it by raising. Raises `ConfigError` when a package is
    missing, `DataError` when a data set cannot be loaded.
    """
    for source in sources:
        if source.stream is not None and not source.path.exists():
            stream_rows(source.stream, source.path, fields=(source.row_field,), progress=progress)
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
