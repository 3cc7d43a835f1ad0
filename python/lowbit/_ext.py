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
    names = ("lowbit_isas", "lowbit_active_isa", "lowbit_set_isa", "lowbit_cuda_archs", "lowbit_cuda_device",
             "lowbit_explain_gemm", "lowbit_explain_fp_gemm")  # fmt: skip
    for name in names:
        getattr(library, name).restype = ctypes.c_char_p
    library.lowbit_lend_tickets.restype = ctypes.c_int64
    library.lowbit_lend_tickets.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
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


def lend_tickets(words: torch.Tensor | None) -> int:
    """Lend int32 zeros on a card to the CUDA calls of this thread, which then clear none themselves; None
    takes them back. Returns how many words were asked for since the last such call.
    """
    if words is None:
        return _library.lowbit_lend_tickets(None, 0, -1)
    card = -1 if words.device.index is None else words.device.index
    return _library.lowbit_lend_tickets(words.data_ptr(), words.numel(), card)


def cuda_archs() -> list[str]:
    """Architectures of the CUDA kernels in this build, such as ["80", "90a"]; empty without kernels."""
    return [arch for arch in _library.lowbit_cuda_archs().decode().split(",") if arch]


def cuda_device(index: int) -> dict[str, int]:
    """What the kernels see of a card: sm, multiprocessors, shared_bytes. RuntimeError if it is too old."""
    answer = _library.lowbit_cuda_device(index).decode()
    if answer.startswith("error: "):
        raise RuntimeError(answer.removeprefix("error: "))
    return dict(zip(("sm", "multiprocessors", "shared_bytes"), map(int, answer.split("\t")), strict=True))


def explain_gemm(
    m: int, n: int, k: int, weight: str, bits: int, sm: int, multiprocessors: int, shared_bytes: int
) -> str:
    """The kernel, tile and splits that a card runs for a linear layer. weight: int4, int4_group or int8;
    bits: of the activations.
    """
    kind = ("int4", "int4_group", "int8").index(weight)
    args = (m, n, k, kind, bits, sm, multiprocessors, shared_bytes)
    return _library.lowbit_explain_gemm(*args).decode()


def explain_fp_gemm(
    m: int, n: int, k: int, weight: str, grouped: bool, sm: int, multiprocessors: int, shared_bytes: int
) -> str:
    """The same for a weight-only layer. weight: e3m2, e2m3, e2m1, e3m0 or int4; activations: fp16 or bf16."""
    kind = ("e3m2", "e2m3", "e2m1", "e3m0", "int4").index(weight)
    args = (m, n, k, kind, int(grouped), sm, multiprocessors, shared_bytes)
    return _library.lowbit_explain_fp_gemm(*args).decode()
