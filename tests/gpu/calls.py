"""Every op that has a CUDA kernel, with the samples of tests/ops on the GPU (LOWBIT_TEST_DEVICE=cuda)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.ops.device import DEVICE, place
from tests.ops.samples import SAMPLES, call

NOT_IN_A_MODEL = ("prepack", "pack_int4", "unpack_int4")  # run when a weight is loaded; may look at values

Call = tuple[str, tuple, object]  # op, arguments, expected


def samples() -> Iterator[Call]:
    """(op, arguments on the CPU, what the oracle expects); empty without a GPU."""
    if not DEVICE.startswith("cuda") or not torch.cuda.is_available():
        return
    for n in SAMPLES:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"lowbit::{n}", "CUDA"):
            yield from ((n, args, want) for args, want in SAMPLES[n]())


def calls() -> list[Call]:
    """The same with the arguments on the GPU."""
    return [(n, place(n, args), want) for n, args, want in samples()]


def run(name: str, args: tuple) -> tuple[Tensor, ...]:
    """The op itself, not the proxy of tests/ops."""
    return call(name, args, torch.ops.lowbit)
