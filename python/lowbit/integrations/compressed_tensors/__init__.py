"""compressed-tensors checkpoints: write lowbit's models as them, and run them on lowbit's kernels.

The package compressed-tensors itself is not needed. docs/compressed-tensors.md says what maps exactly.
"""

from .convert import convert, export, load

__all__ = ["convert", "export", "load"]
