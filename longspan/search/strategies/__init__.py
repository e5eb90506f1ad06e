"""Ways to search: one file, one settings class; its name is the `kind`."""
