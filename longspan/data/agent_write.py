"""Long answers from a model that writes short ones: it plans paragraphs, then writes them one after the other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

MOST_STEPS = 50
LEAST_WORDS, MOST_WORDS = 100, 1_500  # of one paragraph; what the plan says beyond is no plan for one answer

PLAN = """\
Someone asks for the following text:

{instruction}

Do not write it yet. Plan it as a list of paragraphs in their order, one a line, each in exactly this form:

Paragraph 1 - Main Point: what this paragraph says, in detail - Word Count: 400

Give every paragraph between 200 and 1000 words, and plan as many as the request needs. Answer with the list alone."""

STEP = """\
Someone asks for the following text:

{instruction}

This is the plan:

{plan}

This is what is written so far:

{text}

Write the next paragraph of the plan and nothing else, about as long as it says. Do not repeat what is written, and do
not bring the text to an end before the plan does:

{step}"""


class Ask(Protocol):
    """A model: a prompt, and how its answer begins already, to the rest of the answer."""

    def __call__(self, prompt: str, prefix: str = "") -> str:
        """The answer behind `prefix`."""


LINE = re.compile(r"^\W*Paragraph\s+\d+\s*[-–:]\s*Main Point:\s*(.+?)\s*[-–]\s*Word Count:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of one instruction: the text, or why there is none."""

    text: str = ""
    reason: str = ""
    steps: int = 0

    @property
    def words(self) -> int:
        """Words of the text, told apart by spaces."""
        return len(self.text.split())


def planned_steps(plan: str) -> list[str]:
    """The lines of a plan that are paragraphs of a sensible length."""
    found = []
    for line in plan.splitlines():
        match = LINE.match(line)
        if match and LEAST_WORDS <= int(match[2]) <= MOST_WORDS:
            found.append(line.strip())
    return found


def agent_write(instruction: str, ask: Ask) -> Written:
    """Write one long answer with a model that `ask` reaches.

    Every step sees the instruction, the whole plan and all that is written. An item is given up, with a reason, when
    there is no plan (`no-plan`), when it has more than 50 paragraphs (`plan-long`), or when a step comes back empty
    (`empty-step`) or says again what stands there already (`repeated-step`).
    Source: Bai and others 2024, arXiv:2408.07055, section 3.
    """
    steps = planned_steps(ask(PLAN.format(instruction=instruction)))
    if not steps:
        return Written(reason="no-plan")
    if len(steps) > MOST_STEPS:
        return Written(reason="plan-long", steps=len(steps))
    parts: list[str] = []
    for part in _parts(instruction, steps, ask, parts):
        if not part:
            return Written(reason="empty-step", steps=len(parts))
        if part in parts:
            return Written(reason="repeated-step", steps=len(parts))
        parts.append(part)
    return Written(text="\n\n".join(parts), steps=len(steps))


def _parts(instruction: str, steps: list[str], ask: Ask, parts: list[str]) -> Iterator[str]:
    plan = "\n".join(steps)
    for step in steps:
        yield ask(STEP.format(instruction=instruction, plan=plan, text="\n\n".join(parts), step=step)).strip()
