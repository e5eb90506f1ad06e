"""Position methods: one file each, its name is the `kind` in a recipe."""
