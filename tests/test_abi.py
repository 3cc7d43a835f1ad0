"""One binary for every torch from 2.10 on: the library uses the stable ABI and links nothing else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import lowbit
import pytest

from tests import oldest_torch
from tests.audit import toolkit

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(lowbit.build_info()["library"])


def test_audit_says_stable_from_torch_2_10():
    tool = shutil.which("torch-abi-audit") or str(Path(sys.executable).with_name("torch-abi-audit"))
    if not Path(tool).exists():
        pytest.skip("torch-abi-audit is not installed")
    result = subprocess.run([tool, str(LIBRARY)], capture_output=True, text=True, check=False)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    assert re.search(r"^\s*Torch ABI:\s+STABLE$", text, re.MULTILINE), text
    assert re.search(r"^\s*Min torch:\s+2\.10\.0$", text, re.MULTILINE), text
    assert re.search(r"unstable=0\b", text), text


def dynamic(flag):
    readelf = shutil.which("readelf")
    if not readelf:
        pytest.skip("readelf is not installed")
    return subprocess.run(
        [readelf, flag, "-W", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout


def test_links_libtorch_cpu_and_the_c_library_only():
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", dynamic("-d")))
    assert needed - {"libtorch_cpu.so"} <= {
        "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2", "libgomp.so.1",
        "libdl.so.2", "librt.so.1", "libpthread.so.0",  # of CUDA's static runtime, where the C library is old
    }, needed  # fmt: skip
    assert "libtorch_cpu.so" in needed
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic("-d"))


def test_no_symbol_of_the_unstable_abi_is_imported():
    undefined = re.findall(r"\bUND (\S+)", dynamic("--dyn-syms"))
    wrong = [s for s in undefined if re.match(r"_ZN?K?(2at|3c10|5torch)", s)]
    assert not wrong


def test_only_the_documented_symbols_are_exported():
    symbols = re.findall(r"\bGLOBAL +DEFAULT +\d+ (\S+)", dynamic("--dyn-syms"))
    ours = [s for s in symbols if "lowbit" in s and not s.startswith("_Z")]
    assert {"lowbit_isas", "lowbit_active_isa", "lowbit_set_isa"} <= set(ours)
    assert not [s for s in symbols if s.startswith("_ZN6lowbit")]
    assert not [s for s in symbols if s.startswith(("cu", "__cuda"))], "CUDA's static runtime shows"


@pytest.fixture(scope="module")
def include() -> Path:
    try:
        return oldest_torch.headers(ROOT / "build/oldest")
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        pytest.skip(f"torch {oldest_torch.VERSION} cannot be fetched: {error}")


@pytest.mark.parametrize("source", sorted((ROOT / "csrc/ops").glob("*.cpp")), ids=lambda p: p.stem)
def test_the_oldest_torch_has_what_the_sources_name(source, include):
    """Newer headers carry names that older ones lack, whatever version they are told to target."""
    command = [shutil.which("c++") or "g++", "-std=c++17", "-fsyntax-only", f"-I{include}"]
    command.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    if source.stem.endswith("cuda"):
        cuda = Path(toolkit.tool("nvcc")).resolve().parents[1] / "include"
        command += ['-DLOWBIT_CUDA="80"', f"-I{cuda}"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
