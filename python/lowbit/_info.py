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
    archs, gpus = _ext.cuda_archs(), _gpus()
    if not archs:
        notes.append(
            "no CUDA kernels are compiled in: every op runs on the CPU; "
            "`LOWBIT_CUDA=ON pip install .` builds them, and brings the compiler"
        )
    if not gpus:
        build = torch.version.cuda
        notes.append(
            "no GPU: "
            + (f"torch is built for CUDA {build} but sees none" if build else "torch is a CPU build")
        )
    notes += [f"cuda:{gpu['index']} is not used: {gpu['reason']}" for gpu in gpus if gpu["reason"] and archs]
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
        "cuda_archs": archs,
        "gpus": gpus,
        "notes": notes,
    }


def _gpus() -> list[dict]:
    """The cards that torch sees. `kernels` names the code that runs there, `reason` says why not."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = {"index": index, "name": torch.cuda.get_device_name(index), "kernels": "", "reason": ""}
        try:
            gpu |= _ext.cuda_device(index)
            gpu["kernels"] = kernels_for(gpu["sm"], _ext.cuda_archs())
        except RuntimeError as error:
            gpu["reason"] = str(error)
        found.append(gpu)
    return found


def kernels_for(sm: int, archs: list[str]) -> str:
    """The compiled code that a card of compute capability `sm` (86 for 8.6) runs."""
    if sm == 90 and "90a" in archs:
        return "sm_90a"
    fits = [int(a) for a in archs if a.isdigit() and int(a) // 10 == sm // 10 and int(a) <= sm]
    return f"sm_{max(fits)}" if fits else "PTX of compute_80, compiled by the driver at the first call"
