"""Reads the machine code of the compiled kernels: what ptxas made of them, without a GPU."""

from .sass import Instruction, Kernel, Loop, parse
from .toolkit import build_folder, kernels, kernels_of, objects, read_object

__all__ = [
    "Instruction",
    "Kernel",
    "Loop",
    "build_folder",
    "kernels",
    "kernels_of",
    "objects",
    "parse",
    "read_object",
]
