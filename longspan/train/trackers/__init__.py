"""Where a run's numbers may also be sent: one file a tracker, none by default."""
