"""Finds and loads liblowbit.so, and asks it what it holds. Nothing else."""

import ctypes
import os
from pathlib import Path

import torch


def library_path() -> Path:
    """LOWBIT_LIBRARY (tests use it), else the file beside this module."""
    return Path(os.environ.get("LOWBIT_LIBRARY") or Path(__file__).with_name("liblowbit.so"))


def _load() -> ctypes.CDLL:
    path = library_path()
    if not path.exists():
        raise ImportError(
            f"lowbit: no library at {path}; build it with `pip install .` in the source checkout"
        )
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    for name in ("lowbit_isas", "lowbit_active_isa", "lowbit_set_isa"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


_library = _load()


def isas() -> list[dict]:
    """Instruction sets of the CPU kernels: name, supported (bool), features (what the CPU must have)."""
    rows = [line.split("\t") for line in _library.lowbit_isas().decode().splitlines()]
    return [{"name": name, "supported": ok == "1", "features": features} for name, ok, features in rows]


def isa() -> str:
    """Name of the instruction set in use."""
    name = _library.lowbit_active_isa().decode()
    if name.startswith("error: "):
        raise RuntimeError(name.removeprefix("error: "))
    return name


def set_isa(name: str) -> None:
    """Switch the CPU kernels of the whole process to an instruction set; ValueError if it cannot run."""
    if error := _library.lowbit_set_isa(name.encode()):
        raise ValueError(error.decode().replace("LOWBIT_FORCE_ISA", "isa"))


def cuda_compiled() -> bool:
    """Whether this build holds CUDA kernels."""
    return bool(_library.lowbit_cuda_compiled())
