"""Faults planted on purpose: one-line changes of the kernels that the op tests must notice."""
