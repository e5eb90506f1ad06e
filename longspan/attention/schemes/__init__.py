"""Schemes: how one attention is spread over ranks, one file each."""
