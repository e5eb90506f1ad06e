"""What a search found, by the file that it wrote."""

import json
from pathlib import Path
from typing import Literal, cast

from pydantic import ValidationError

from longspan.config import kind_class
from longspan.rope.frequencies import Frequencies, Method, RopeBase
from longspan.utils.errors import ConfigError
from longspan.utils.files import read_json


class Searched(Method):
    """The settings in the file `result`, a search/found.json. A recipe that is read holds them in its place."""

    kind: Literal["searched"] = "searched"
    result: Path

    def method(self) -> Method:
        """The settings as a method. Raises `ConfigError` when the file is missing or no result of a search."""
        value = read_json(self.result, error=ConfigError, code="rope.searched")
        try:
            rope = dict(value["rope"])
            kind = str(rope["kind"])
            found = kind_class("longspan.rope.methods", kind)
            if found is Searched:
                raise ValueError("it names another file")
            return cast(Method, found.model_validate_json(json.dumps(rope)))
        except (KeyError, TypeError, ValueError, ValidationError, ConfigError) as cause:
            raise ConfigError(
                "rope.searched",
                f"{self.result.name} is no result of a search",
                where=str(self.result),
                fix="name the search/found.json of a run folder",
            ) from cause

    def frequencies(self, base: RopeBase, length: int) -> Frequencies:
        """Those of the settings found."""
        return self.method().frequencies(base, length)
