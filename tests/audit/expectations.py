"""What the machine code of each kernel must look like. A family adds its rows; every kernel needs one.

A row is checked against every kernel whose demangled name holds `kernel`, for that architecture. The main
loop is the innermost loop with most tensor instructions.
"""

import itertools
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Expect:
    """Numbers are upper bounds, but for `instances` and widths."""

    kernel: str  # regular expression
    arch: str  # sm_80 or sm_90a
    instances: int  # how many kernels the row is about: the visible table of what is compiled
    tensor: str = ""  # the only tensor opcode of the main loop; "": the kernel has no tensor instruction
    registers: int = 255
    shared: int = 0  # static bytes; kernels use dynamic shared memory
    local: int = 0  # accesses to local memory in the whole kernel; in the main loop there is never one
    loop_widths: dict[str, int] = field(default_factory=dict)  # name -> bits of each such access in the loop
    widths: dict[str, int] = field(default_factory=dict)  # name -> bits: there are some, and none is narrower
    integer_per_tensor: float | None = None  # in the main loop
    per_tensor: dict[str, float] = field(default_factory=dict)  # opcode or name -> count for a tensor one
    calls: str = r"div|sqrt|rcp"  # callees allowed outside the main loop: slow paths of rare values


def _int_gemm() -> list[Expect]:
    """Tile x weights (0 int4, 1 int4 with group scales, 2 int8, 3 FP4): integer instructions per tensor
    instruction.

    The floor is in csrc/kernels/int_gemm/README.md. A conditional call to the next instruction ("0x") is how
    ptxas rejoins a warp.
    """
    rows = []

    def row(kernel: str, arch: str, tensor: str, integer: float, grouped: bool) -> None:
        widths = {"LDGSTS": 128} if "mma<" in kernel and "wgmma" not in kernel else {}
        rows.append(
            Expect(
                kernel,
                arch,
                1,
                tensor,
                180 if "wgmma" not in kernel else 168,
                loop_widths=widths | ({} if grouped else {"LDS": 128}),
                integer_per_tensor=integer,
                calls="^0x",
            )
        )

    mma = {
        "Large": (3.0, 6.0, 1.8, 5.5),
        "Middle": (2.4, 4.0, 2.0, 5.7),
        "Small": (9.0, 16.0, 7.0, 22.5),
    }
    for tile, integers in mma.items():
        for weight, integer in enumerate(integers):
            kernel = rf"gemm_mma<.*kMma{tile},.*Weight\){weight}.*Codes\)0"
            row(kernel, "sm_80", "IMMA.16832.S8.S8", integer, weight == 1)
            if tile == "Small":
                row(kernel, "sm_90a", "IMMA.16832.S8.S8", integer, weight == 1)
    for tile, integer in {"Large": 2.8, "Middle": 2.8, "Small": 13.5}.items():
        row(rf"gemm_mma<.*kMma{tile},.*Codes\)1", "sm_80", "IMMA.16864.S4.S4", integer, False)
    # with addends the largest tile has a kernel of its own, which FP4 weights never need
    integers = (14.0, 29.0, 8.0, 36.0)
    tiles = [(tile, integers) for tile in ("Large.*false", "Middle.*true", "Small.*true")]
    for tile, most in [*tiles, ("Large.*true", (18.0, 34.0, 8.0))]:
        tokens = {"L": 256, "M": 128, "S": 64}[tile[0]]
        for weight, integer in enumerate(most):
            name, adds = tile.split(".*")
            kernel = rf"gemm_wgmma<.*kWgmma{name}.*Weight\){weight}, {adds}"
            row(kernel, "sm_90a", f"IGMMA.64x{tokens}x32.S8.S8", integer, weight == 1)
    return rows


def _rows() -> list[Expect]:
    """Quantiser, transform, KV cache: no tensor instruction, no local memory, registers for the occupancy
    that their READMEs count on. Rows that start on 16 bytes are loaded so; the slower paths are in the same
    kernels. warpsync: a check in front of bar.warp.sync inside a loop, never called by a converged warp.
    """
    rows = []
    calls = r"div|rcp|warpsync"
    for arch in ("sm_80", "sm_90a"):
        for kernel, registers in {"1, true": 32, "2, true": 64, "4, true": 64}.items():
            name = rf"quantize::quantize_kernel<{kernel}>"
            rows.append(Expect(name, arch, 1, registers=registers, widths={"LDG": 128}, calls=calls))
        rows.append(Expect(r"quantize::quantize_kernel<2, false>", arch, 1, registers=64, calls=calls))
        for kernel, registers in {"1, true": 40, "2, true": 64, "4, true": 64}.items():
            name = rf"quantize::quantize_fp4_kernel<{kernel}>"
            # the exponents of a chunk are two words, the scale that may be given is one
            rows.append(Expect(name, arch, 1, registers=registers, widths={"LDG": 32}, calls=calls))
        rows.append(Expect(r"quantize::quantize_fp4_kernel<2, false>", arch, 1, registers=64, calls=calls))
        rows.append(Expect(r"quantize::convert_codes_kernel", arch, 1, registers=64, calls=calls))
        for mix, registers in enumerate((64, 64, 128, 128)):  # none, K <= 28, K <= 60, table
            name = rf"hadamard_kernel<true, .*Mix\){mix},"
            rows.append(Expect(name, arch, 2, registers=registers, calls=calls))
        rows.append(Expect(r"hadamard_kernel<false, .*Mix\)3,", arch, 2, registers=128, calls=calls))
        # At most 512 threads, of which 512 fit a multiprocessor. Narrow loads of rare cases (an index into a
        # row that shared memory does not hold) stand beside the wide ones.
        for kernel, most in {"1, true": 48, "2, true": 96, "4, true": 112, "2, false": 112}.items():
            for kinds, floats in (("012", "false"), ("12", "true")):  # floats leave gates and norms alone
                name = rf"fused_rows_kernel<.*Kind\)[{kinds}], {kernel}, {floats}>"
                rows.append(Expect(name, arch, len(kinds), registers=most, calls=calls + "|sqrt"))
        rows.append(Expect(r"kv4_(de)?quantize_kernel", arch, 2, registers=64, calls=calls))
        rows.append(Expect(r"kv4_append_kernel", arch, 1, registers=64, calls=r"div|rcp|sqrt|sync"))
    return rows


# Integer instructions per weight, all of the main loop (decoding, addresses and the loop itself):
# format -> for fp16 (small, middle tile), for bf16.
_FP_INTEGERS = {
    "e3m2": ((2.0, 2.4), (1.7, 2.1)),
    "e2m3": ((2.0, 2.4), (2.0, 2.4)),
    "e2m1": ((1.8, 2.1), (2.15, 2.5)),
    "e3m0": ((2.4, 2.75), (2.4, 2.75)),
    "int4": ((1.3, 1.6), (1.3, 1.6)),
}


_FP_WGMMA_INTEGERS = {
    "e3m2": (2.3, 2.0),
    "e2m3": (2.3, 2.3),
    "e2m1": (2.0, 2.4),
    "e3m0": (2.6, 2.6),
    "int4": (1.5, 1.5),
}


def _fp_gemm() -> list[Expect]:
    """Weights x activations x tile x groups. A lane has 4 weights per tensor instruction in the small tile, 1
    in the middle one. Floats in fp16 are not multiplied at all; bf16 takes one instruction for a pair, and so
    does int4 (fp16: a subtraction). Group scales cost some instructions, for E8M0 and for fp16, of which a
    launch executes one kind.
    """
    rows = []
    for arch, (w, format), bf16, middle, grouped in itertools.product(
        ("sm_80", "sm_90a"), enumerate(_FP_INTEGERS), (False, True), (False, True), (False, True)
    ):
        tile, per_tensor = ("kMiddle", 1) if middle else ("kSmall", 4)
        pairs = per_tensor / 2 if bf16 or format == "int4" else 0
        rows.append(
            Expect(
                rf"fp_gemm::gemm<.*{tile},.*Weight\){w}, .*Half\){int(bf16)}, {str(grouped).lower()}>",
                arch,
                1,
                "HMMA.16816.F32.BF16" if bf16 else "HMMA.16816.F32",
                registers=(255 if grouped else 192) if middle else 128,
                loop_widths={"LDGSTS": 128, "LDSM": 128} | ({} if grouped else {"LDS": 128}),
                integer_per_tensor=per_tensor * (_FP_INTEGERS[format][bf16][middle] + 0.5 * grouped),
                per_tensor={"HFMA2": pairs, "HMUL2": pairs * bf16, "FMUL": 0.0},
                calls="^0x",
            )
        )
    # wgmma: a lane has 8 weights per tensor instruction. Group scales multiply pairs: once, and fp16 weights
    # but for int4 once more to their own size; bf16 takes the scale in two parts.
    for (w, format), bf16, grouped in itertools.product(
        enumerate(_FP_INTEGERS), (False, True), (False, True)
    ):
        pairs = 4 * (bf16 or format == "int4") + grouped * (8 if bf16 or format != "int4" else 4)
        rows.append(
            Expect(
                rf"fp_gemm::gemm_wgmma<.*Weight\){w}, .*Half\){int(bf16)}, {str(grouped).lower()}>",
                "sm_90a",
                1,
                "HGMMA.64x128x16.F32.BF16" if bf16 else "HGMMA.64x128x16.F32",
                registers=128,
                loop_widths={} if grouped else {"LDS": 128},
                integer_per_tensor=8 * (_FP_WGMMA_INTEGERS[format][bf16] + 0.9 * grouped),
                per_tensor={"HFMA2": pairs, "HMUL2": pairs, "FMUL": 0.0},
                calls="^0x",
            )
        )
    for arch in ("sm_80", "sm_90a"):
        for name, instances in (("dequantize", 10), ("finish", 2), ("encode", 5)):
            rows.append(Expect(rf"fp_gemm::{name}_kernel<", arch, instances, registers=64, calls="rem|div"))
    return rows


def _attention() -> list[Expect]:
    """Head size x appending: the main loop weighs values. Codes are copied 16 bytes at a time (8 for heads of
    80); registers for the blocks of a multiprocessor that the README counts on. sync: how a warp that may
    have diverged shuffles, never called by a converged one.
    """
    rows = []
    for arch, head, append in itertools.product(("sm_80", "sm_90a"), (64, 80, 96, 128, 256), (False, True)):
        registers = 255 if head == 256 else 128 if append or head == 80 else 80
        rows.append(
            Expect(
                rf"kv4_attention_kernel<{head}, {str(append).lower()}>",
                arch,
                1,
                "HMMA.16816.F32",
                registers,
                loop_widths={"LDSM": 128},
                widths={"LDGSTS": 64 if head == 80 else 128},
                integer_per_tensor=5.5,
                calls=r"div|rcp|sqrt|sync|^0x",
            )
        )
    return rows


EXPECTATIONS: list[Expect] = [*_attention(), *_int_gemm(), *_fp_gemm(), *_rows()]
