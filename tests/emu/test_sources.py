"""One source, two compilers: nvcc takes the kernels for sm_80 and sm_90a; assembly stays in csrc/ptx."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    p
    for folder in ("csrc", "tests", "bench", "python")
    for p in (ROOT / folder).rglob("*")
    if p.suffix in (".h", ".cuh", ".cpp", ".cu")
]
ASSEMBLY = re.compile(r"\b(asm|__asm__|__asm)\b")


def code(path):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def test_assembly_only_in_ptx():
    strays = [str(p) for p in SOURCES if ASSEMBLY.search(code(p)) and p.parent != ROOT / "csrc/ptx"]
    assert not strays
    assert [p for p in SOURCES if ASSEMBLY.search(code(p))]  # the pattern finds something


def test_wrapper_headers_are_short():
    for path in (ROOT / "csrc/ptx").glob("*.h"):
        assert path.read_text().count("\n") <= 250, path


def test_every_wrapper_is_in_the_readme():
    readme = (ROOT / "csrc/ptx/README.md").read_text()
    for path in (ROOT / "csrc/ptx").glob("*.h"):
        assert f"`{path.name}`" in readme or path.name == "wgmma_operands.h", path.name


def test_emulator_has_no_cuda_header():
    for path in (ROOT / "csrc/emu").iterdir():
        assert not re.search(r"#\s*include\s*<cuda", path.read_text()), path


@pytest.mark.parametrize(
    "architecture,headers",
    [("80", ["example_kernel.cuh"]), ("90a", ["wrapper_kernels.cuh", "fault_kernels.cuh"])],
)
def test_nvcc_takes_the_kernels(tmp_path, architecture, headers):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc")
    text = "".join(f'#include "{ROOT}/tests/emu/{name}"\n' for name in headers)
    if architecture == "90a":  # templates: name one, so that it is compiled
        text += "template __global__ void lowbit::wrappers::wgmma_kernel<64, 4>(\n"
        text += "    const uint32_t*, const uint8_t*, int32_t*, bool, bool, int);\n"
        text += "template __global__ void lowbit::wrappers::wgmma_kernel<128, 4, lowbit::wrappers::Bf16>(\n"
        text += "    const uint32_t*, const uint8_t*, float*, bool, bool, int);\n"
    source = tmp_path / "kernels.cu"
    source.write_text(text)
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    cubin = str(tmp_path / "out.cubin")
    command = [nvcc, "-std=c++17", "-gencode", target, "-cubin", str(source), "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
