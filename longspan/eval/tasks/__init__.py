"""Evaluations that a recipe may ask for: one file, one settings class; its name is the `kind`."""
