"""Generated tasks: what is planted in a text, the question, the answer; training and evaluation both draw from here."""

from longspan.probes._assemble import Branch, Context, evaluation_context, training_row
from longspan.probes._words import Split
from longspan.probes.base import Encode, Item, Probe

__all__ = ["Branch", "Context", "Encode", "Item", "Probe", "Split", "evaluation_context", "training_row"]
