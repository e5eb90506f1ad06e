"""Exact attention: the float64 reference, the kernels, and the merge of partial results."""
