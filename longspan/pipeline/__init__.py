"""Recipes, the run folder and the verbs: the one place that knows all parts and wires them."""
