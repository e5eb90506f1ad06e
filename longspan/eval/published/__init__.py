"""RULER's prompts byte for byte as its own generator makes them, flaws included, to compare with published tables.

Follows github.com/NVIDIA/RULER at c3f5e3b (Copyright (c) 2024 NVIDIA CORPORATION, Apache License 2.0) in what is drawn
and in which order. What makes upstream loop for ever is an error here.
"""
