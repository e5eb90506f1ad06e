"""Trains a decoder through stages of growing length and never loses a step: schedule, loop, checkpoints."""
