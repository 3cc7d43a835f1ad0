"""Builds the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer and runs them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitize"


@pytest.fixture(scope="module")
def binaries() -> Path:
    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    run(
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(BUILD),
        "-G",
        "Ninja",
        f"-DTORCH_DIR={Path(torch.__file__).parent}",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
        "-DLOWBIT_BUILD_TESTS=ON",
        "-DLOWBIT_SANITIZE=address,undefined",
    )
    run("cmake", "--build", str(BUILD), "--target", "test_kernels", "test_numeric", "test_tickets")
    return BUILD / "tests" / "cpp"


@pytest.mark.parametrize("name", ["test_numeric", "test_kernels", "test_tickets"])
def test_binary(binaries: Path, name: str) -> None:
    env = {
        **os.environ,
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    done = subprocess.run([binaries / name], capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.endswith("0 failures\n")
