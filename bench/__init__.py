"""Benchmarks: `python -m bench linear | hadamard | quantize`, each against its peers in one process."""
