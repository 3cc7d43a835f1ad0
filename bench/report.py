"""Tables, the description of the machine, and the JSON file of a run."""

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "lowbit", "torch", "transformers", "numpy", "onnxruntime", "openvino", "humming-kernels",
    "fast-hadamard-transform", "nvidia-cutlass",
)  # fmt: skip


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout, with a plus sign where files differ from it; None without git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict:
    """Device, versions and commit: what a number needs beside it to be kept."""
    import lowbit.ops

    return {
        "device": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": lowbit.ops.isa(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def print_environment(env: dict) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    gpu = f"{env['gpu']}, CUDA {env['cuda']}; " if env["gpu"] else ""
    print(gpu, end="")
    print(
        f"{env['device']}, {env['cores']} cores, {env['threads']} threads, isa {env['isa']}; {versions}; "
        f"commit {(env['commit'] or 'none')[:12]}; load {env['load_average_at_start']}"
    )


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns padded to their widest cell; the first is left-aligned."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def write_json(path: str, name: str, env: dict, result: dict) -> Path:
    """Write the run, whole or not at all; a bare name goes to bench/results/."""
    target = Path(path)
    if target.parent == Path("."):
        target = ROOT / "bench/results" / target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(target.suffix + ".part")
    temporary.write_text(json.dumps({"bench": name, "environment": env, **result}, indent=1) + "\n")
    temporary.replace(target)
    return target
