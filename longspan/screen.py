"""What people see on a terminal: errors, results, and the progress of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from longspan.utils.errors import LongspanError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from longspan.pipeline.doctor import Check
    from longspan.records import StepMetrics


def show_error(error: LongspanError) -> None:
    """What is wrong, where, and what to do, on standard error."""

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), error.what, (f" [{error.code}]", "dim")))
    if error.where:
        console.print(Text(f"  where: {error.where}"))
    if error.fix:
        console.print(Text.assemble("  do:    ", (error.fix, "bold")))


def show_result(result: dict[str, Any], *, to_stderr: bool) -> None:
    """The needle accuracy of a run by length, and every plain value a line."""

    console = Console(stderr=to_stderr, soft_wrap=True, highlight=False)
    before, after = (result.get(f"needle_{when}") or {} for when in ("before", "after"))
    if before or after:
        table = Table("length", "before", "after", title="needles found")
        for length in sorted({*before, *after}, key=int):
            cells = (f"{found[length]:.0%}" if length in found else "" for found in (before, after))
            table.add_row(f"{int(length):,}", *cells)
        console.print(table)
    for key, value in result.items():
        if isinstance(value, str | int | float):
            console.print(f"{key}: {f'{value:.4g}' if isinstance(value, float) else value}", markup=False)


def show_engines(found: dict[str, Any], *, to_stderr: bool) -> None:
    """What each engine makes of an exported folder."""
    table = Table("engine", "texts to", "frequencies", "attention factor", "")
    for row in found["engines"]:
        wide, heat = row["difference"], row["attention_factor"]
        differ = "refused" if wide is None else ("equal" if wide == 0 else f"differ by {wide:.1g}")
        who, scale = f"{row['engine']} {row['layers']}".strip(), "" if heat is None else f"{heat:.6g}"
        table.add_row(who, f"{row['length']:,}", differ, scale, "ok" if row["same"] else row["told"])
    console = Console(stderr=to_stderr, soft_wrap=True)
    console.print(table)
    for limit in found["limits"]:
        console.print(f"note: {limit}", markup=False, highlight=False)


def show_checks(checks: Iterable[Check], *, to_stderr: bool) -> None:
    """What the doctor found."""
    table = Table("", "check", "found")
    for check in checks:
        sign = {True: Text("ok", "green"), False: Text("no", "bold red"), None: Text("")}[check.ok]
        table.add_row(sign, check.name, Text(check.detail + (f"\n{check.fix}" if check.ok is False else "")))
    Console(stderr=to_stderr).print(table)


class Screen:
    """An observer that shows phases and bars on standard error: live on a terminal, plain lines elsewhere."""

    LINE_EVERY_SECONDS = 15.0

    def __init__(self) -> None:

        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("", visible=False, facts="")
        self._phase, self._next_line = "", 0.0

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, *, skipped: bool) -> None:
        """Name the phase on a line of its own, and begin its bar."""
        self._phase, self._next_line = name, 0.0
        self._console.print(f"{name}: done before" if skipped else name)
        self._progress.reset(self._bar, description=name, visible=False, total=None, facts="")

    def step(self, metrics: StepMetrics, *, step_tokens: int, total_tokens: int) -> None:
        """Show loss and speed of a training step."""
        speed = step_tokens / metrics.seconds if metrics.seconds > 0 else 0.0
        facts = f"length {metrics.length:,} · loss {metrics.loss:.3f} · {speed:,.0f} tokens/s"
        self._show(metrics.tokens, total=total_tokens, facts=facts)

    def progress(self, done: int, *, total: int, what: str) -> None:
        """Show how far a phase is."""
        self._show(done, total=total, facts=what)

    def tell(self, text: str) -> None:
        """Show a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show a warning."""

        self._console.print(Text.assemble(("warning: ", "bold yellow"), text))

    def _show(self, done: int, *, total: int, facts: str) -> None:

        self._progress.update(self._bar, completed=done, total=total, facts=facts, visible=True)
        now = time.monotonic()
        if self._progress.disable and (now >= self._next_line or done >= total):
            self._next_line = now + self.LINE_EVERY_SECONDS
            self._console.print(f"{self._phase}: {done / total:4.0%} {facts}")
