"""What tasks that score whole windows of text share: the walk over them, and a row a window, resumable."""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from longspan.eval.desk import Desk, Material
from longspan.eval.rows import Row, ids_sha256
from longspan.eval.tasks.base import Findings, Task
from longspan.eval.text import Documents, Ids, whole_windows
from longspan.probes import Context


class WindowTask(Task):
    """A measure of up to `windows` stretches of `length` tokens, each inside one document, spread evenly over all."""

    length: int = Field(ge=2)
    windows: int = Field(default=4, ge=1)

    @property
    @abstractmethod
    def measure(self) -> str:
        """A name that holds every setting that a score depends on."""

    @property
    @abstractmethod
    def reads(self) -> Sequence[int]:
        """Tokens of each text that the model reads for one stretch."""

    @abstractmethod
    def score(self, desk: Desk, tokens: Ids) -> dict[str, Any]:
        """What a row says of one stretch, as JSON values."""

    @property
    def apart(self) -> int:
        """How far apart stretches of one document begin at least."""
        return self.length

    def contexts(self, documents: Documents) -> Counter[int]:
        """All texts of all stretches."""
        places = len(self._places(documents))
        return Counter({tokens: places * count for tokens, count in Counter(self.reads).items()})

    def check(self, material: Material) -> None:
        """See that a document is long enough."""
        self._places(material.documents)

    def run(self, desk: Desk) -> Findings:
        """Every stretch in turn."""
        rows = []
        for document, start in self._places(desk.material.documents):
            rows.append(self._row(desk, document, start))
            desk.advance(sum(self.reads))
        return self.findings(rows)

    def rebuild(self, material: Material, place: Mapping[str, Any]) -> Context:
        """The stretch at this place."""
        return Context(tokens=material.documents.read(place["document"], place["start"], self.length), branches=())

    def _places(self, documents: Documents) -> list[tuple[int, int]]:
        return whole_windows(documents, self.length, windows=self.windows, stride=self.apart)

    def _row(self, desk: Desk, document: int, start: int) -> Row:
        """The row of one stretch: found, or made."""
        tokens = desk.material.documents.read(document, start, self.length)
        key = desk.key(self.measure, tokens)
        row = desk.rows.get(key)
        if row is None:
            desk.poll()
            begun = time.monotonic()
            found = self.score(desk, tokens)
            row = {
                "key": key,
                "task": self.kind,
                "model": desk.model_id,
                "length": self.length,
                "cluster": f"document {document}",
                "context": ids_sha256(tokens),
                "spec": {
                    **self.spec(document=document, start=start),
                    "seed": desk.material.seed,
                    "text": desk.material.text_id,
                },
                **desk.facts,
                "offset_tokens": start,
                **found,
                "seconds": time.monotonic() - begun,
            }
            desk.rows.append(row)
        return row
