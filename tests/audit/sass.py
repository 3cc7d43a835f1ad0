"""From nvdisasm's JSON to counts: opcodes, loops, widths of memory accesses, local memory, calls."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

BYTES_PER_INSTRUCTION = 16  # sm_70 and later

TENSOR = {"IMMA", "HMMA", "BMMA", "DMMA", "QMMA", "OMMA", "IGMMA", "HGMMA", "QGMMA", "BGMMA"}
LOCAL = {"LDL", "STL"}
MEMORY = {"LDG", "STG", "LDS", "STS", "LDGSTS", "LDSM", "STSM", "LD", "ST", "RED", "ATOMG", "ATOM"}
# What occupies the integer and logic pipes once per warp; IMAD runs on the FMA pipe, but takes an issue slot
# too. Uniform instructions (U...) and plain moves are not in it.
INTEGER = {
    *("IADD3", "IADD", "VIADD", "IABS", "IMAD", "IMAD32I", "LEA", "IDP", "IMNMX", "VIMNMX", "VIADDMNMX"),
    *("LOP3", "LOP", "SHF", "SHL", "SHR", "PRMT", "SGXT", "BMSK", "FLO", "POPC", "BREV"),
    *("ISETP", "SEL", "I2I", "I2IP", "I2F", "I2FP", "F2I", "F2IP"),
}


@dataclass(frozen=True)
class Instruction:
    """One line of SASS. `target` is the index of the instruction that it branches to, if it does."""

    opcode: str
    operands: str = ""
    predicate: str = ""
    target: int | None = None

    @property
    def name(self) -> str:
        """The opcode without modifiers: LDG of LDG.E.128.CONSTANT."""
        return self.opcode.split(".")[0]

    @property
    def is_tensor(self) -> bool:
        return self.name in TENSOR  # not HFMA2.MMA, which is an add of halves

    @property
    def is_move(self) -> bool:
        return self.name == "MOV" or self.opcode.startswith("IMAD.MOV")

    @property
    def is_integer(self) -> bool:
        return self.name in INTEGER and not self.is_move

    @property
    def bits(self) -> int | None:
        """Width of a memory access per lane: 8 to 128."""
        if self.name not in MEMORY:
            return None
        parts = self.opcode.split(".")
        if self.name in ("LDSM", "STSM"):
            return 32 * next((int(p) for p in parts[2:] if p in ("2", "4")), 1)
        for part in parts[1:]:
            if re.fullmatch(r"[US]?(8|16)", part):
                return int(part.lstrip("US"))
            if part in ("64", "128", "256"):
                return int(part)
        return 32


class Code:
    """Counts over a list of instructions."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def opcodes(self) -> Counter[str]:
        """With modifiers."""
        return Counter(i.opcode for i in self.instructions)

    @cached_property
    def names(self) -> Counter[str]:
        """Without modifiers."""
        return Counter(i.name for i in self.instructions)

    @property
    def tensor(self) -> int:
        return sum(i.is_tensor for i in self.instructions)

    @property
    def integer(self) -> int:
        return sum(i.is_integer for i in self.instructions)

    @property
    def moves(self) -> int:
        return sum(i.is_move for i in self.instructions)

    @property
    def local(self) -> int:
        """Loads from and stores to local memory."""
        return sum(i.name in LOCAL for i in self.instructions)

    @property
    def calls(self) -> list[str]:
        """Callees: helpers that ptxas links in, such as a division's slow path or an emulated mma. A call of
        a bare address is how it rejoins a warp on sm_80.
        """
        called = [i.operands for i in self.instructions if i.name == "CALL"]
        return [name for name in called if not name.startswith("0x")]

    @property
    def integer_per_tensor(self) -> float:
        return self.integer / self.tensor if self.tensor else 0.0

    def widths(self, name: str) -> Counter[int]:
        """Bits per lane -> how many instructions of that name."""
        return Counter(i.bits for i in self.instructions if i.name == name and i.bits)


@dataclass(frozen=True)
class Loop(Code):
    """The instructions from the target of a backward branch to the branch."""

    begin: int
    end: int  # inclusive
    instructions: tuple[Instruction, ...] = field(repr=False)


@dataclass(frozen=True)
class Kernel(Code):
    """One kernel for one architecture."""

    name: str  # demangled
    mangled: str
    arch: str
    registers: int
    shared: int  # static, bytes; from sm_90 on the toolkit's number holds the system's 1024, ours does not
    stack: int  # bytes
    instructions: tuple[Instruction, ...] = field(repr=False)

    @cached_property
    def loops(self) -> list[Loop]:
        found = []
        for end, i in enumerate(self.instructions):
            if i.name == "BRA" and i.target is not None and i.target < end:
                found.append(Loop(i.target, end, self.instructions[i.target : end + 1]))
        return found

    @cached_property
    def main_loop(self) -> Loop | None:
        """Of the innermost loops that hold tensor instructions, the one with most of them."""
        with_tensor = [loop for loop in self.loops if loop.tensor]
        innermost = [
            loop
            for loop in with_tensor
            if not any(
                o is not loop
                and loop.begin <= o.begin
                and o.end <= loop.end
                and (o.begin, o.end) != (loop.begin, loop.end)
                for o in with_tensor
            )
        ]
        return max(innermost, key=lambda loop: loop.tensor, default=None)


def _target(opcode: str, operands: str) -> int | None:
    if opcode.split(".")[0] != "BRA":
        return None
    hit = re.search(r"(?:^|,|\()\s*`?\(?(0x[0-9a-f]+)\)?$", operands)
    return int(hit.group(1), 16) // BYTES_PER_INSTRUCTION if hit else None


def _instruction(opcode: str, operands: str = "", predicate: str = "", **_: object) -> Instruction:
    if predicate == "@!PT":  # never executed: ptxas puts three of them before an LDGSTS on sm_80
        opcode, operands = "NOP", ""
    return Instruction(opcode, operands, predicate, _target(opcode, operands))


def parse(
    document: list, arch: str, usage: dict[str, dict[str, int]], names: dict[str, str]
) -> Iterable[Kernel]:
    """The functions of `nvdisasm -json` output; `usage` is by mangled name: REG, SHARED, STACK."""
    for function in document[1]:
        mangled = function["function-name"]
        code = tuple(_instruction(**i) for i in function["sass-instructions"])
        use = usage.get(mangled, {})
        yield Kernel(
            names.get(mangled, mangled),
            mangled,
            arch,
            use.get("REG", -1),
            use.get("SHARED", -1) - (1024 if int(re.sub(r"\D", "", arch)) >= 90 else 0),
            use.get("STACK", -1),
            code,
        )
