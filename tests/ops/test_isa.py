"""Choosing the instruction set: by environment at start, at run time, and clear words where it cannot be had.
"""

import os
import subprocess
import sys

import lowbit.ops
import pytest

from .support import CPU_ONLY, FP_ISAS

pytestmark = CPU_ONLY

PROGRAM = """
import torch, lowbit, hashlib
x = torch.linspace(-3, 3, 20 * 96).reshape(20, 96)
q, s = torch.ops.lowbit.quantize_int4(x, 0.9)
w = torch.ops.lowbit.prepack_int4_weight(q[:17].contiguous())
parts = [q, s, torch.ops.lowbit.hadamard(x, 0.125), torch.ops.lowbit.int4_linear(q, s, w, torch.ones(17)),
         torch.ops.lowbit.dynamic_linear(x, w, torch.ones(17)), *torch.ops.lowbit.kv4_quantize(x)]
digest = hashlib.sha256(b"".join(p.contiguous().numpy().tobytes() for p in parts)).hexdigest()
print(lowbit.ops.isa(), digest)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "LOWBIT_FORCE_ISA"} | environment
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )


def test_forced_by_environment_and_equal_everywhere():
    digests = {}
    for name in FP_ISAS:
        result = run(PROGRAM, LOWBIT_FORCE_ISA=name)
        assert result.returncode == 0, result.stderr
        active, digests[name] = result.stdout.split()
        assert active == name
    assert len(set(digests.values())) == 1, digests


def test_unforced_takes_the_best_supported():
    result = run(PROGRAM)
    assert result.returncode == 0, result.stderr
    names = [isa["name"] for isa in lowbit.ops.isas() if isa["supported"]]
    assert result.stdout.split()[0] == names[-1]  # listed from least to best
    assert not result.stdout.split()[0].endswith("_simde")


def test_unknown_name_is_refused_with_the_known_ones():
    result = run(PROGRAM, LOWBIT_FORCE_ISA="sse9")
    assert result.returncode != 0
    assert "LOWBIT_FORCE_ISA" in result.stderr and "sse9" in result.stderr
    for isa in lowbit.ops.isas():
        assert isa["name"] in result.stderr


def test_unsupported_name_says_what_the_cpu_lacks():
    missing = [isa for isa in lowbit.ops.isas() if not isa["supported"]]
    if not missing:
        pytest.skip("this CPU has every instruction set of the build")
    before = lowbit.ops.isa()
    for isa in missing:
        with pytest.raises(ValueError, match=f"{isa['features']}.*{isa['name']}"):
            lowbit.ops.set_isa(isa["name"])
    assert lowbit.ops.isa() == before


def test_set_isa_refuses_and_keeps():
    before = lowbit.ops.isa()
    with pytest.raises(ValueError, match=r"isa: expected one of .*scalar.*, got 'mmx'"):
        lowbit.ops.set_isa("mmx")
    assert lowbit.ops.isa() == before


def test_scalar_is_always_there():
    assert "scalar" in FP_ISAS


def test_checked_mode_refuses_nan():
    program = """
import torch, lowbit
x = torch.ones(3, 16); x[1, 5] = float("inf")
w, s = torch.full((1, 2, 64), 0x88, dtype=torch.uint8), torch.ones(4)
for op, args in (("quantize_int4", (x,)), ("quantize_int8", (x,)), ("hadamard_quantize", (x, 8)),
                 ("kv4_quantize", (x,)), ("dynamic_linear", (x, w, s))):
    try:
        getattr(torch.ops.lowbit, op)(*args)
        print(op, "passed")
    except RuntimeError as error:
        assert f"{op}: x has NaN or infinity in row 1" in str(error), error
"""
    result = run(program, LOWBIT_CHECKED="1")
    assert result.returncode == 0 and result.stdout == "", result.stdout + result.stderr
    result = run(program)
    assert result.stdout.split("\n")[0] == "quantize_int4 passed", result.stderr
