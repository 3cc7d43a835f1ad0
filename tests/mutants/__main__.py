"""python -m tests.mutants [family ...]: builds each mutant and demands that its tests fail.

Needs cmake and ninja. About half a minute per mutant on 2 cores; the build folder is kept, so that only what
a mutant touches is compiled.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from .catalogue import EMULATED, MUTANTS, TESTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build/mutants"


def _mirror(source: Path, target: Path) -> None:
    """Make target like source. Only what differs is written, so that only that is built again."""
    wanted = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    for old in [p for p in target.rglob("*") if p.is_file() and p.relative_to(target) not in wanted]:
        old.unlink()
    for name in wanted:
        new, content = target / name, (source / name).read_bytes()
        if not new.exists() or new.read_bytes() != content:
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(content)


def _prepare() -> None:
    """A copy of the sources and a configured build of it."""
    WORK.mkdir(parents=True, exist_ok=True)
    for folder in ("csrc", "cmake", "tests/emu"):
        _mirror(ROOT / folder, WORK / folder)
    shutil.copy2(ROOT / "CMakeLists.txt", WORK)
    command = [
        "cmake",
        "-S",
        str(WORK),
        "-B",
        str(WORK / "build"),
        "-G",
        "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
        "-DLOWBIT_CUDA=OFF",
        "-DLOWBIT_BUILD_EMULATOR=ON",
        f"-DLOWBIT_SIMDE_DIR={ROOT / 'build/simde' if (ROOT / 'build/simde').is_dir() else ''}",
        f"-DTORCH_DIR={Path(torch.__file__).parent}",
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _build(family: str) -> bool:
    target = "lowbit_emulated" if family in EMULATED else "lowbit"
    command = ["cmake", "--build", str(WORK / "build"), "--target", target]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _tests_pass(family: str) -> bool:
    """Whether the family's tests pass on what was just built; one failure is enough to stop."""
    environment = dict(os.environ)
    if family in EMULATED:
        (module,) = (WORK / "build/tests/emu").glob("lowbit_emulated*.so")
        environment["LOWBIT_EMULATED"] = str(module)
    else:
        environment["LOWBIT_LIBRARY"] = str(WORK / "build/liblowbit.so")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS[family]]
    try:
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    except subprocess.TimeoutExpired:  # a kernel that never ends is dead too
        return False
    if (
        result.returncode not in (0, 1) and result.returncode > 0
    ):  # a crash kills the mutant too, a usage error does not
        raise SystemExit(f"pytest did not run:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.returncode == 0


def _verdict(mutant: Mutant) -> str:
    path = WORK / "csrc" / mutant.file
    original = path.read_text()
    if original.count(mutant.old) != 1:
        return "stale: the line is not there exactly once"
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        if not _build(mutant.family):
            return "stale: it does not compile"
        return "SURVIVED" if _tests_pass(mutant.family) else "killed"
    finally:
        path.write_text(original)


def main() -> int:
    """0 if every mutant was killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("family", nargs="*", help=f"of {', '.join(TESTS)} (default: all)")
    chosen = parser.parse_args().family or list(TESTS)
    if unknown := set(chosen) - set(TESTS):
        parser.error(f"unknown family {', '.join(sorted(unknown))}, expected {', '.join(TESTS)}")
    _prepare()
    for family in chosen:
        if not _build(family):
            raise SystemExit(f"the unchanged sources of {family} do not build")
        if not _tests_pass(family):
            raise SystemExit(f"the tests of {family} fail on the unchanged sources")
    bad = 0
    for mutant in (m for m in MUTANTS if m.family in chosen):
        start = time.perf_counter()
        verdict = _verdict(mutant)
        bad += verdict != "killed"
        seconds = time.perf_counter() - start
        print(f"{verdict:9} {seconds:4.0f} s  {mutant.family}: {mutant.old}  ->  {mutant.new}", flush=True)
    print(f"{bad} of the mutants were not killed" if bad else "every mutant was killed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
