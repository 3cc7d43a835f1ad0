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

from .catalogue import MUTANTS, TESTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build/mutants"


def _prepare() -> None:
    """A copy of the sources and a configured build of it."""
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(WORK / "csrc", ignore_errors=True)
    shutil.copytree(ROOT / "csrc", WORK / "csrc")  # keeps the times: what did not change is not built again
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
        f"-DTORCH_DIR={Path(torch.__file__).parent}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _build() -> bool:
    command = ["cmake", "--build", str(WORK / "build"), "--target", "lowbit"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _tests_pass(family: str) -> bool:
    """Whether the family's tests pass on the library just built; one failure is enough to stop."""
    environment = os.environ | {"LOWBIT_LIBRARY": str(WORK / "build/liblowbit.so")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS[family]]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
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
        if not _build():
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
    if not _build():
        raise SystemExit("the unchanged sources do not build")
    for family in chosen:
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
