"""Documents that are too short or too long."""

from typing import Literal, Self

from pydantic import Field, model_validator

from longspan.data.filters.base import Filter, Judge, Tools, Verdict


class Length(Filter):
    """Keeps documents of at least `least_characters` and, unless None, at most `most_characters`."""

    kind: Literal["length"] = "length"
    least_characters: int = Field(default=500, ge=1)
    most_characters: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something_fits(self) -> Self:
        if self.most_characters is not None and self.most_characters < self.least_characters:
            raise ValueError(f"no document has {self.least_characters} and at most {self.most_characters} characters")
        return self

    def judge(self, _: Tools) -> Judge:
        """By the number of characters, spaces at both ends left out."""

        def judged(_id: str, text: str) -> Verdict:
            count = len(text.strip())
            if count < self.least_characters:
                return Verdict(text=None, reason="too-short")
            if self.most_characters is not None and count > self.most_characters:
                return Verdict(text=None, reason="too-long")
            return Verdict(text=text)

        return judged
