"""The compiled kernels against the rows of expectations.py, and what holds for all of them."""

import re
from collections import Counter

import pytest

from .expectations import EXPECTATIONS, Expect
from .sass import Code, Kernel
from .toolkit import build_folder, kernels, objects, run, tool


def check(e: Expect, k: Kernel) -> list[str]:
    """Sentences about what is not as expected."""
    wrong = []

    def want(ok: bool, sentence: str) -> None:
        if not ok:
            wrong.append(f"{k.name} for {k.arch}: {sentence}")

    def narrow(code: Code, table: dict[str, int], where: str) -> None:
        for name, bits in table.items():
            found = code.widths(name)
            want(bool(found), f"no {name} in {where}")
            want(
                min(found, default=bits) >= bits,
                f"{name} in {where} has widths {dict(found)}, expected {bits}",
            )

    want(k.registers <= e.registers, f"{k.registers} registers, expected at most {e.registers}")
    want(k.shared <= e.shared, f"{k.shared} bytes of static shared memory, expected at most {e.shared}")
    want(k.local <= e.local, f"{k.local} accesses to local memory, expected at most {e.local}")
    narrow(k, e.widths, "the kernel")
    callees = [c for c in k.calls if not re.search(e.calls, c)]
    want(not callees, f"calls {callees}")
    loop = k.main_loop
    if not e.tensor:
        want(k.tensor == 0, f"{k.tensor} tensor instructions, expected none")
    elif loop is None:
        want(False, f"no loop with a tensor instruction, expected {e.tensor}")
    else:
        found = Counter(i.opcode for i in loop.instructions if i.is_tensor)
        want(set(found) == {e.tensor}, f"main loop has {dict(found)}, expected {e.tensor}")
        want(loop.local == 0, f"{loop.local} accesses to local memory in the main loop")
        # "0x...": ptxas may leave a loop by a call to the code right behind it
        callees = [c for c in loop.calls if not c.startswith("0x")]
        want(not callees, f"main loop calls {callees}")
        narrow(loop, e.loop_widths, "the main loop")
        if e.integer_per_tensor is not None:
            want(
                loop.integer_per_tensor <= e.integer_per_tensor,
                f"{loop.integer_per_tensor:.2f} integer for a tensor one, at most {e.integer_per_tensor}",
            )
        for name, most in e.per_tensor.items():
            count = (loop.opcodes[name] if "." in name else loop.names[name]) / loop.tensor
            want(count <= most, f"{count:.2f} {name} for a tensor instruction, at most {most}")
    return wrong


@pytest.mark.parametrize("e", EXPECTATIONS, ids=lambda e: f"{e.kernel}-{e.arch}")
def test_row(e):
    found = kernels(e.kernel, e.arch)
    names = "\n".join(k.name for k in found)
    assert len(found) == e.instances, f"{len(found)} kernels, expected {e.instances}:\n{names}"
    wrong = [sentence for k in found for sentence in check(e, k)]
    assert not wrong, "\n".join(wrong)


def test_every_kernel_has_a_row():
    without = [
        f"{k.arch} {k.name}"
        for k in kernels()
        if not any(re.search(e.kernel, k.name) for e in EXPECTATIONS if e.arch == k.arch)
    ]
    assert not without, "\n".join(without)


def test_no_emulated_tensor_instruction():
    wrong = {k.name: k.calls for k in kernels() if any("mma" in c for c in k.calls)}
    assert not wrong


def test_no_local_memory_in_main_loops():
    wrong = {k.name: k.main_loop.local for k in kernels() if k.main_loop and k.main_loop.local}
    assert not wrong


def families() -> list[str]:
    return sorted({path.parent.name for path in objects()})


@pytest.mark.parametrize("family", families())
def test_architectures(family):
    """launch_sm90.cu is sm_90a only; launch_sm80.cu has PTX, and sm_90a unless the other has it all."""
    folder = build_folder() / "cuda" / family
    listed = {p.stem: run(tool("cuobjdump"), "-lelf", "-lptx", p) for p in folder.glob("launch_sm*.o")}
    archs = {name: set(re.findall(r"\.(sm_\w+)\.(?:cubin|ptx)", text)) for name, text in listed.items()}
    assert "sm_80" in archs["launch_sm80"] and ".ptx" in listed["launch_sm80"]
    if "launch_sm90" in archs:
        assert archs["launch_sm90"] == {"sm_90a"} and ".ptx" not in listed["launch_sm90"]
    assert ("sm_90a" in archs["launch_sm80"]) == (family != "int_gemm")


@pytest.mark.parametrize("family", families())
def test_the_compiler_had_nothing_to_say(family):
    folder = build_folder() / "cuda" / family
    said = [line for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    assert said, "no log of ptxas"
    assert not [line for line in said if re.search(r"warning|C75\d\d", line)]


@pytest.mark.parametrize("family", families())
def test_no_launch_function_is_merged_between_architectures(family):
    """A function template instantiated in launch_sm80.cu and again in launch_sm90.cu is one function to the
    linker: the card would get the other file's kernel. Such a helper must stand in an unnamed namespace.
    Seen in the objects as a merged (weak) function that refers to code of its own file.
    """
    for path in (build_folder() / "cuda" / family).glob("launch_sm*.o"):
        section, wrong = "", set()
        for line in run("readelf", "-rW", "--demangle", path).splitlines():
            if line.startswith("Relocation section"):
                section = line.split("'")[1]
            elif "_GLOBAL__N_" in section:  # in an unnamed namespace: the file's own name
                continue
            elif section.startswith(".rela.text._Z") and re.search(
                r"R_X86_64_\w+\s+[0-9a-f]+\s+\.text\b", line
            ):
                wrong.add(section.removeprefix(".rela.text."))
        assert not wrong, f"{path.name}: {sorted(wrong)}"
