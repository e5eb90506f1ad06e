"""What keeps a document out of the training text, one rule a file; each drop has a reason that is counted."""
