"""In which order a stage sees which lengths, one rule a file."""
