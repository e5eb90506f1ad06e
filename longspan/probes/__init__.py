"""Generated tasks: what is planted in a text, the question, the answer; training and evaluation both draw from here."""

from longspan.probes._assemble import Branch, Context, evaluation_context, training_row
from longspan.probes._weave import inside
from longspan.probes._words import Split, coined, names, strings
from longspan.probes.base import Encode, FilledProbe, Item, PlantedProbe, Probe, WovenProbe

__all__ = [
    "Branch",
    "Context",
    "Encode",
    "FilledProbe",
    "Item",
    "PlantedProbe",
    "Probe",
    "Split",
    "WovenProbe",
    "coined",
    "evaluation_context",
    "inside",
    "names",
    "strings",
    "training_row",
]
