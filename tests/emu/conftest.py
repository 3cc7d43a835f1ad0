"""Builds the module of emulated kernels once per session; `emulated` is that module."""

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulator"


def build() -> Path:
    """Configure and build with CMake and ninja; sessions that run at the same time take turns."""
    BUILD.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DLOWBIT_BUILD_EMULATOR=ON"]
    configure += [
        f"-DTORCH_DIR={Path(torch.__file__).parent}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", str(BUILD), "--target", "lowbit_emulated"]):
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    (library,) = (BUILD / "tests" / "emu").glob("lowbit_emulated*.so")
    return library


def load(library: Path):
    """Import the built module."""
    spec = importlib.util.spec_from_file_location("lowbit_emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated():
    """The module lowbit_emulated: one function per emulated kernel, and the exception Violation."""
    pytest.importorskip("pybind11")
    built = os.environ.get("LOWBIT_EMULATED")  # tests/mutants: a module built from other sources
    return load(Path(built) if built else build())
