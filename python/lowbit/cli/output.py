"""The commands' output: progress lines, files written whole or not at all, and where a result comes from."""

import argparse
import contextlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch


def say(line: str = "") -> None:
    """A line of progress, on stderr, where the bars are."""
    print(line, file=sys.stderr, flush=True)


def check_output(path: str | None, option: str) -> None:
    """Before the long work: can this file be written at its end?"""
    if path is None or path == "-":
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir():
        raise ValueError(f"{option} {path}: this is a directory, expected a file name")
    if not folder.is_dir():
        raise ValueError(f"{option} {path}: the directory {folder} does not exist")
    _check_writable(folder, f"{option} {path}")


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place on success, and is removed otherwise."""
    path = Path(path).absolute()
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place on success, and is removed otherwise. A link
    stays one, to the new directory.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    parent = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield parent / path.name
        if overwrite and path.exists():
            os.rename(path, parent / "replaced")
        elif path.is_dir():  # empty, check_directory saw to it
            path.rmdir()
        os.rename(parent / path.name, path)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def check_directory(path: str | Path, option: str, overwrite: bool, model: str | None = None) -> None:
    """Before the long work: can this directory, with those above it, be made at its end, and does the model
    outlive that?
    """
    path = Path(path)
    if model and Path(model).exists() and Path(model).resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{option} {path}: model {model} lies there; expected another directory")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option} {path}: this is a file, expected a directory name")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(f"{option} {path}: this directory is not empty; choose another or add --overwrite")
    above = path.absolute().parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise ValueError(f"{option} {path}: {above} is not a directory")
    _check_writable(above, f"{option} {path}")


def _check_writable(folder: Path, what: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{what}: the directory {folder} is not writable")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plain(value: Any) -> Any:
    """The value as JSON can hold it: dataclasses as dicts, numbers that are not finite as null."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(value: Any, out: str | None) -> None:
    """To a file, whole or not at all, or to the standard output for "-"."""
    if out is None:
        return
    text = json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if out == "-":
        sys.stdout.write(text)
        return
    with whole_file(out) as name:
        name.write_text(text, encoding="utf-8")


def show(line: str, args: argparse.Namespace) -> None:
    """A line of the result: on stdout, or on stderr where stdout carries the JSON."""
    print(line, file=sys.stderr if getattr(args, "json", None) == "-" else sys.stdout, flush=True)


# ---------------------------------------------------------------- where a result comes from


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def checkout() -> Path | None:
    """The source tree: the working directory, or where an editable install points."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (root / "csrc").is_dir() and (root / "python" / "lowbit").is_dir():
            return root
    return None


def git_commit() -> str | None:
    """The checkout's commit, with "+" if files that git knows were changed since; None outside of one."""
    root = checkout()
    if root is None or not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False
        ).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def provenance(device: torch.device) -> dict[str, Any]:
    """Device, versions, commit and time, for every JSON file."""
    import transformers

    import lowbit

    built = lowbit.build_info()
    where = {
        "type": device.type,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": built["isa"],
    }
    if device.type == "cuda":
        where["gpu"] = torch.cuda.get_device_name(device)
    return {
        "device": where,
        "versions": {
            "lowbit": built["version"],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
