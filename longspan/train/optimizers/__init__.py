"""Optimizers that a recipe may choose: one file, one settings class; its name is the `kind`. Torch is in _ files."""
