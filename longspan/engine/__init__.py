"""Runs a decoder forward and backward at any length."""
