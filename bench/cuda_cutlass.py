"""CUTLASS's integer GEMMs as peers, from the library that bench/cutlass builds (LOWBIT_CUTLASS names it)."""

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from .cuda_peers import Call, Peer
from .cuda_timing import copies_for
from .peers import Unavailable

KINDS = {  # the function in the library: the peer's name, bits of both operands
    "cutlass_s4_sm80": ("cutlass s4 (QuaRot)", 4),
    "cutlass_s8_sm80": ("cutlass s8 sm80", 8),
    "cutlass_s8_sm90": ("cutlass s8 sm90", 8),
}


class _Call(ctypes.Structure):
    """peers::Call of bench/cutlass/call.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "w", "x_scale", "w_scale", "sum", "y")),
        *((name, ctypes.c_int) for name in ("m", "n", "k")),
        ("stream", ctypes.c_void_p),
    ]


def _function(name: str) -> Any:
    path = os.environ.get("LOWBIT_CUTLASS", "")
    if not os.path.exists(path):
        raise Unavailable("cutlass: LOWBIT_CUTLASS names no library (built by `make gpu`)")
    library = ctypes.CDLL(path)
    if not hasattr(library, name):
        raise Unavailable(f"{KINDS[name][0]}: not compiled for this card")
    function = getattr(library, name)
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.POINTER(_Call)]
    return function


class Cutlass(Peer):
    """From codes to fp16, both scales applied, as our `gemm` rows. p: a `cuda_linear.Problem`."""

    def __init__(self, kind: str, p: Any):
        self.name, self.bits = KINDS[kind]
        self.function, self.p = _function(kind), p
        codes = p.packed ^ 0x88 if self.bits == 4 else p.int8  # offset 8 to two's complement
        self.weights = [codes.clone() for _ in range(copies_for(codes.numel(), p.device))]

    def bind(self, x: Tensor) -> list[Call]:
        p, ops = self.p, torch.ops.lowbit
        q, x_scale = (ops.quantize_int4 if self.bits == 4 else ops.quantize_int8)(x)
        if self.bits == 4:
            q = q ^ 0x88
        sums = torch.empty(len(x), p.n, dtype=torch.int32, device=p.device)
        y = torch.empty(len(x), p.n, dtype=torch.float16, device=p.device)

        def call(w: Tensor) -> Tensor:
            stream = torch.cuda.current_stream().cuda_stream if p.device == "cuda" else 0
            pointers = [t.data_ptr() for t in (q, w, x_scale, p.w_scale, sums, y)]
            error = self.function(_Call(*pointers, len(x), p.n, p.k, stream))
            if error is not None:
                raise Unavailable(f"{self.name}: {error.decode()}")
            return y

        return [lambda w=w: call(w) for w in self.weights]

    def check(self, x: Tensor, y: Tensor) -> None:
        rows, want = self.p.expected(x, self.bits, self.bits)
        if not torch.equal(y[rows], want):
            raise Unavailable(f"{self.name}: wrong at {tuple(x.shape)} x {self.p.n}")
