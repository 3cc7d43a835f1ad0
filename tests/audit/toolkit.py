"""Finds the compiled objects and runs NVIDIA's disassembler over them (PyPI or a toolkit on this machine)."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import lowbit
import pytest

from .sass import Kernel, parse


def build_folder() -> Path:
    """Of the library under test: objects are in its cuda/."""
    return Path(lowbit.build_info()["library"]).resolve().parent


def objects() -> list[Path]:
    """Every object with kernels: cuda/<family>/launch_sm80.o, launch_sm90.o."""
    return sorted((build_folder() / "cuda").glob("*/launch_sm*.o"))


@cache
def tool(name: str) -> str:
    """cuobjdump, nvdisasm or nvcc: beside torch in this environment, else CUDA_HOME, else PATH."""
    places = [str(bin) for folder in sys.path for bin in Path(folder).glob("nvidia/cu*/bin")]
    places += [f"{os.environ['CUDA_HOME']}/bin"] if "CUDA_HOME" in os.environ else []
    found = shutil.which(
        name, path=os.pathsep.join([*places, os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    )
    if not found:
        pytest.skip(f"{name} is not installed: pip install nvidia-cuda-{name}")
    return found


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def _demangle(names: list[str]) -> dict[str, str]:
    filt = shutil.which("c++filt")
    if not filt or not names:
        return {}
    out = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, out.splitlines(), strict=True))


def _usage(text: str) -> dict[str, dict[str, int]]:
    found = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", text)
    return {name: {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)} for name, line in found}


@cache
def read_object(path: Path) -> tuple[Kernel, ...]:
    """Every kernel of an object, for every architecture it holds."""
    kernels = []
    with tempfile.TemporaryDirectory() as temporary:
        run(tool("cuobjdump"), "-xelf", "all", path, cwd=Path(temporary))
        for cubin in sorted(Path(temporary).glob("*.cubin")):
            arch = re.search(r"\.(sm_\w+)\.cubin$", cubin.name).group(1)
            document = json.loads(run(tool("nvdisasm"), "-json", cubin))
            usage = _usage(run(tool("cuobjdump"), "-res-usage", cubin))
            names = _demangle([f["function-name"] for f in document[1]])
            kernels += parse(document, arch, usage, names)
    return tuple(kernels)


def kernels_of(paths: list[Path], pattern: str = "", arch: str = "") -> list[Kernel]:
    """Those whose demangled name holds the regular expression."""
    every = [k for path in paths for k in read_object(path)]
    return [k for k in every if re.search(pattern, k.name) and arch in ("", k.arch)]


def kernels(pattern: str = "", arch: str = "") -> list[Kernel]:
    """The library's kernels whose demangled name holds the regular expression. arch: sm_80, sm_90a or all."""
    if not lowbit.build_info()["cuda_archs"]:
        pytest.skip("the library under test has no CUDA kernels (make test builds it with them)")
    assert objects(), f"no cuda/*/launch_sm*.o in {build_folder()}"
    return kernels_of(objects(), pattern, arch)
