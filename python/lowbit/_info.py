"""What this installation can do, for `lowbit info` and bug reports."""

import os
from importlib.metadata import PackageNotFoundError, version

import torch

from . import _ext


def build_info() -> dict:
    """Versions, library, instruction sets and devices, with a note on everything that is off."""
    notes = []
    active = _ext.isa()
    isas = [
        {**row, "reason": "" if row["supported"] else f"this CPU lacks {row['features']}"}
        for row in _ext.isas()
    ]
    if forced := os.environ.get("LOWBIT_FORCE_ISA"):
        notes.append(f"LOWBIT_FORCE_ISA={forced} overrides the choice of instruction set")
    if not _ext.cuda_compiled():
        notes.append("no CUDA kernels are compiled in: every op runs on the CPU")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    if gpu == "none":
        build = torch.version.cuda
        notes.append(
            "no GPU: "
            + (f"torch is built for CUDA {build} but sees none" if build else "torch is a CPU build")
        )
    try:
        lowbit = version("lowbit")
    except PackageNotFoundError:
        lowbit = "0.0.0+source"
    return {
        "version": lowbit,
        "torch": torch.__version__,
        "library": str(_ext.library_path()),
        "isa": active,
        "isas": isas,
        "threads": torch.get_num_threads(),
        "cuda_compiled": _ext.cuda_compiled(),
        "gpu": gpu,
        "notes": notes,
    }
