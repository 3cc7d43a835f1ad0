"""Builds liblowbit.so with CMake against the torch that is installed, found by path and never imported."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent


def torch_dir() -> Path:
    """The installed torch package. Under build isolation the running prefix is still the user's."""
    if given := os.environ.get("LOWBIT_TORCH_DIR"):
        roots = [Path(given).parent]
    else:
        schemes = [sysconfig.get_paths(), sysconfig.get_paths(vars={"base": sys.base_prefix})]
        roots = [Path(paths[key]) for paths in schemes for key in ("purelib", "platlib")]
        roots.append(Path(site.getusersitepackages()))
    for root in roots:
        if (root / "torch/include/torch/csrc/stable/library.h").exists():
            return root / "torch"
    raise SystemExit(
        f"lowbit: no torch >= 2.10 with headers in {roots[0]}.\n"
        "Install it first (pip install torch), or set LOWBIT_TORCH_DIR to the folder of the torch package."
    )


# The compiler that LOWBIT_CUDA=ON brings when the machine has none. What it builds needs driver 580 or later.
NVCC = "cuda-toolkit[nvcc,cudart,cccl]==13.0.*"


def cuda() -> str:
    """LOWBIT_CUDA: ON, OFF or AUTO (with kernels where there is an nvcc and torch is a CUDA build)."""
    choice = os.environ.get("LOWBIT_CUDA", "AUTO").upper()
    choice = {"1": "ON", "0": "OFF", "": "AUTO"}.get(choice, choice)
    if choice not in ("ON", "OFF", "AUTO"):
        raise SystemExit(f"lowbit: LOWBIT_CUDA is {choice}, expected ON, OFF or AUTO")
    return choice


def has_nvcc() -> bool:
    """Whether cmake/cuda.cmake will find an nvcc by itself."""
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    beside_torch = [str(folder) for folder in torch_dir().parent.glob("nvidia/cu*/bin")]
    places = [*homes, os.environ.get("PATH", ""), *beside_torch, "/usr/local/cuda/bin"]
    return bool(shutil.which("nvcc", path=os.pathsep.join(places)))


def nvcc_flags() -> list[str]:
    """-U forgets the compiler of the last build, which is gone if pip brought it; -D names this build's."""
    brought = [] if has_nvcc() else [p for s in sys.path for p in Path(s).glob("nvidia/cu*/bin/nvcc")]
    return ["-ULOWBIT_NVCC", "-ULOWBIT_CUDART", *(f"-DLOWBIT_NVCC={nvcc}" for nvcc in brought[:1])]


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"  # no CPython tag: the library is not a Python module

    def build_extension(self, ext: Extension) -> None:
        build = ROOT / "build" / f"cmake-{sysconfig.get_platform()}"
        ninja = shutil.which("ninja")  # named because an isolated build has a new one each time
        subprocess.check_call(
            [
                "cmake",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-G",
                "Ninja",
                f"-DTORCH_DIR={torch_dir()}",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DLOWBIT_CUDA={cuda()}",
                *([f"-DLOWBIT_CUDA_ARCHS={archs}"] if (archs := os.environ.get("LOWBIT_CUDA_ARCHS")) else []),
                *nvcc_flags(),
            ]
        )
        subprocess.check_call(["cmake", "--build", str(build), "--target", "lowbit"])
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / "liblowbit.so"), str(target))


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: the library needs no Python.h, so one wheel serves every CPython."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    setup_requires=[NVCC] if cuda() == "ON" and not has_nvcc() else [],  # pip installs it for the build only
    ext_modules=[Extension("lowbit.liblowbit", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
