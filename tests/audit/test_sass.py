"""The audit finds what is planted in planted.cu, and does not find it in the clean kernel."""

import re
from pathlib import Path

import pytest

from .sass import Instruction, Kernel
from .toolkit import kernels_of, run, tool

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "planted.o"
    gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ("80", "90a")]
    run(tool("nvcc"), "-std=c++17", "-O3", *gencode, "-c", HERE / "planted.cu", "-o", path)
    return path


@pytest.fixture
def one(planted):
    def find(name: str, arch: str = "sm_80") -> Kernel:
        (kernel,) = kernels_of([planted], rf"planted::{re.escape(name)}(?!\w)", arch)
        return kernel

    return find


def test_every_kernel_for_every_architecture(planted):
    names = {(k.name.split("(")[0].removeprefix("void "), k.arch) for k in kernels_of([planted])}
    want = {"clean", "s4", "local_array", "narrow<3>", "spilled"}
    assert names == {(f"planted::{n}", a) for n in want for a in ("sm_80", "sm_90a")}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_clean(one, arch):
    k = one("clean", arch)
    assert k.main_loop.opcodes["IMMA.16832.S8.S8"] == k.main_loop.tensor == k.tensor == 1
    assert k.local == 0 and k.stack == 0 and k.calls == []
    assert set(k.main_loop.widths("LDGSTS")) == {128} and set(k.main_loop.widths("LDS")) == {128}
    assert set(k.widths("STG")) == {128}
    assert 8 < k.registers < 64 and k.shared == 0
    assert k.main_loop.integer_per_tensor < 10


def test_native_s4(one):
    k = one("s4", "sm_80")
    assert k.main_loop.opcodes["IMMA.16864.S4.S4"] == 1 and not k.calls


def test_emulated_s4(one):
    k = one("s4", "sm_90a")
    assert any("mma_sub_byte" in name for name in k.calls)
    assert not k.opcodes["IMMA.16864.S4.S4"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_local_memory_in_the_main_loop(one, arch):
    k = one("local_array", arch)
    assert k.main_loop.local >= 6 and k.stack == 32


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_spills(one, arch):
    k = one("spilled", arch)
    assert k.local > 50 and k.stack > 100 and k.registers <= 32 and k.main_loop is None


def test_narrow_loads_and_integer_work(one):
    k = one("narrow<3>")
    assert k.main_loop.widths("LDG") == {32: 6}
    assert k.main_loop.integer_per_tensor >= 18  # 3 for each of 6 registers, and the addresses


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E.128.CONSTANT", 128), ("LDG.E", 32), ("LDG.E.64", 64), ("LDS.U.128", 128), ("LDS.U8", 8),
        ("LDGSTS.E.BYPASS.LTC128B.128", 128), ("LDGSTS.E.LTC128B", 32), ("STG.E.U16", 16),
        ("LDSM.16.M88.4", 128), ("LDSM.16.MT88.2", 64), ("LDSM.16.M88", 32), ("IMMA.16832.S8.S8", None),
    ],
)  # fmt: skip
def test_width(opcode, bits):
    assert Instruction(opcode).bits == bits


def test_main_loop_is_the_innermost_with_tensor_instructions():
    def kernel(*code: str) -> Kernel:
        def one(text: str) -> Instruction:
            opcode, _, target = text.partition(" ")
            return Instruction(opcode, target, "", int(target) if target else None)

        return Kernel("k", "k", "sm_80", 1, 0, 0, tuple(one(c) for c in code))

    # outer loop 0..7 with the k loop 2..4 in it, a spin 5..6 and the trap at the end
    k = kernel("MOV", "IMMA", "IMMA", "IADD3", "BRA 2", "SYNCS", "BRA 5", "BRA 0", "EXIT", "BRA 9")
    assert (k.main_loop.begin, k.main_loop.end) == (2, 4) and len(k.loops) == 3
    k = kernel("IMMA", "BRA 0", "IMMA", "IMMA", "BRA 2")  # a remainder of one, a body of two
    assert k.main_loop.begin == 2
    assert kernel("IMMA", "HFMA2.MMA", "BRA 1").main_loop is None
