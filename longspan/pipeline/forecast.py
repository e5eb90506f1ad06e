"""What an evaluation can find and about how long it takes, told before it runs."""

from collections import Counter
from collections.abc import Sequence

from longspan.eval.tasks.base import Task
from longspan.eval.text import Documents
from longspan.plan.flops import attention_forward_flops, linear_forward_flops
from longspan.plan.machine import Machine
from longspan.plan.seconds import CPU_PEAK, LINEAR_SHARE, UNKNOWN_PEAK, attention_share
from longspan.shape import ModelShape
from longspan.utils.stats import detectable, effective_trials

ALIKE = 0.1  # how alike the questions of one context are taken to be, before anything is known


def read_seconds(shape: ModelShape, contexts: Counter[int], machine: Machine) -> float:
    """About how long reading so many contexts of each length takes; questions are small beside them."""
    peak = machine.peak_flops or (CPU_PEAK if machine.shared else UNKNOWN_PEAK)
    return sum(
        count
        * (
            linear_forward_flops(shape, length) / (LINEAR_SHARE * peak)
            + attention_forward_flops(shape, (length,)) / (attention_share(shape.head_dim) * peak)
        )
        for length, count in contexts.items()
    )


def reading(tasks: Sequence[Task], documents: Documents) -> Counter[int]:
    """How many contexts of each length all tasks read together."""
    return sum((Counter(task.contexts(documents)) for task in tasks), Counter[int]())


def forecast(tasks: Sequence[Task], documents: Documents, shape: ModelShape, machine: Machine) -> list[str]:
    """The smallest difference of two models that each rate can show, rates of one size on a line, and the time."""
    alike: dict[tuple[int, int], list[str]] = {}
    for part, size in (entry for task in tasks for entry in task.asked().items()):
        alike.setdefault(size, []).append(part)
    lines = []
    for (questions, contexts), parts in alike.items():
        worth = effective_trials([(0.0, questions / contexts)] * contexts, ALIKE)
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        lines.append(
            f"{parts[0]}{more}: {questions:,} questions on {contexts:,} contexts show "
            f"{100 * min(1.0, detectable(worth)):.0f} points of difference or more"
        )
    every = reading(tasks, documents)
    seconds = read_seconds(shape, every, machine)
    tokens = sum(length * count for length, count in every.items())
    lines.append(f"{tokens:,} tokens in {sum(every.values()):,} contexts: about {seconds:,.0f} s of reading")
    return lines
