"""Evaluation: tasks put to a decoder at many lengths, one row an answer, safe to kill and to go on with."""
