"""Where the op tests run: on the CPU or, with `pytest --device cuda`, on a GPU with the same assertions.

Tests speak to `OPS` with CPU tensors and CPU weight tiles. On a GPU it is a proxy that carries the arguments
over with their strides, offset and surroundings, repacks the weight for the card, and brings results back.
It checks that no input was written to.
"""

import os
import re
from typing import Any

import lowbit.ops
import lowbit.reference as ref
import pytest
import torch
from lowbit.kv_cache import CUDA_HEADS
from torch import Tensor
from torch.utils._pytree import tree_map_only

DEVICE = os.environ.get(
    "LOWBIT_TEST_DEVICE", "cpu"
)  # cpu, cuda, cuda:1, or proxy: on the CPU, through the proxy
TORCH_DEVICE = "cpu" if DEVICE == "proxy" else DEVICE
ON_CPU = DEVICE == "cpu"
KEY = torch.device(TORCH_DEVICE).type.upper()
CPU_ONLY = pytest.mark.skipif(not ON_CPU, reason="about the CPU kernels or their tile layout")


def to_device(x: Tensor) -> Tensor:
    """The same values on the device, in a copy of the whole storage around them."""
    if x.requires_grad:
        return x.to(TORCH_DEVICE)
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    return whole.to(TORCH_DEVICE, copy=True).as_strided(x.shape, x.stride(), x.storage_offset())


def _storage(x: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def repack(tiles: Tensor, n: int) -> Tensor:
    """Weight tiles of the CPU kernels -> the layout of the device; anything else as it is."""
    if tiles.dim() != 3 or tiles.shape[0] != -(-n // 16) or tiles.device.type != "cpu":
        return tiles
    k = 8 * tiles.shape[1]
    if tiles.dtype == torch.uint8 and tiles.shape[2] == 64:
        return torch.ops.lowbit.prepack_int4_weight(ref.unprepack_int4_weight(tiles, n, k).to(TORCH_DEVICE))
    if tiles.dtype == torch.int8 and tiles.shape[2] == 128:
        return torch.ops.lowbit.prepack_int8_weight(ref.unprepack_int8_weight(tiles, n, k).to(TORCH_DEVICE))
    return tiles


def repack_fp(tiles: Tensor, fmt: str, n: int, k: int) -> Tensor:
    """Tiles of a weight-only layer likewise."""
    packed = ref.unprepack_fp_weight(tiles, fmt, n, k)
    return torch.ops.lowbit.prepack_fp_weight(packed.to(TORCH_DEVICE), fmt, k)


def repack_fp_group_scale(tiles: Tensor, n: int) -> Tensor:
    """And their group scales."""
    rows = ref.unprepack_fp_group_scale(tiles, n)
    return torch.ops.lowbit.prepack_fp_group_scale(rows.to(TORCH_DEVICE))


def repack_group_scale(tiles: Tensor, n: int) -> Tensor:
    """Group scales likewise."""
    if tiles.dim() != 3 or tiles.shape[0] != -(-n // 16) or tiles.dtype != torch.uint8:
        return tiles
    rows = tiles.transpose(1, 2).flatten(0, 1)[:n]
    return torch.ops.lowbit.prepack_group_scale(rows.contiguous().to(TORCH_DEVICE))


def place(name: str, args: tuple) -> tuple:
    """Arguments of an op on the device, from those on the CPU."""
    if ON_CPU:
        return args
    names = [a.name for a in getattr(torch.ops.lowbit, name).default._schema.arguments]
    placed = list(args)
    at = {key: i for i, key in enumerate(names) if i < len(args)}
    if name == "fp_linear" and len(args) >= 4:
        x, tiles, fmt, w_scale, scale = (*args, None)[:5]
        if tiles.dim() == 3 and tiles.device.type == "cpu":
            placed[1] = repack_fp(tiles, fmt, w_scale.numel(), x.shape[-1])
            if scale is not None:
                placed[4] = repack_fp_group_scale(scale, w_scale.numel())
    elif "weight" in at and "w_scale" in at and isinstance(args[at["w_scale"]], Tensor):
        n = args[at["w_scale"]].numel()
        for key, how in (("weight", repack), ("group_scale", repack_group_scale)):
            if key in at and isinstance(args[at[key]], Tensor):
                placed[at[key]] = how(args[at[key]], n)
    return tuple(
        to_device(p) if isinstance(p, Tensor) and (p is a or p.device.type == "cpu") else p
        for p, a in zip(placed, args, strict=True)
    )


def refused(name: str, args: tuple) -> str | None:
    """The sentence with which a card refuses arguments that the CPU takes (csrc/ops/*_cuda.cpp), or None."""
    if name == "fp_linear" and args[0].dtype == torch.float32:
        return "fp_linear: x has dtype float32, expected float16 or bfloat16 on CUDA"
    if name in ("kv4_append", "kv4_rope_append", "kv4_attention", "kv4_attend", "kv4_attend_quantize"):
        parts = 1 if name in ("kv4_append", "kv4_attention") else args[3] + 2 * args[4]
        d, largest = args[0].shape[-1] // parts, max(CUDA_HEADS)
        if d % 8 or d > largest:
            return f"{name}: the head size is {d}, expected a multiple of 8 up to {largest} on CUDA"
        if not name.endswith("append") and d not in CUDA_HEADS:
            return f"{name}: the head size is {d}, expected 64, 80, 96, 128 or 256 on CUDA"
    return None


class _Op:
    """One op of the proxy. Skips the test, with the op's sentence, where only a card refuses the call."""

    def __init__(self, name: str):
        self.name, self.op = name, getattr(torch.ops.lowbit, name)
        self.default = self.op.default
        self.schema = self.default._schema.arguments
        self.written = {
            i for i, a in enumerate(self.schema) if a.alias_info is not None and a.alias_info.is_write
        }

    def positional(self, args: tuple, kwargs: dict) -> tuple:
        """All arguments, those that are not given as their defaults."""
        rest = self.schema[len(args) :]
        assert kwargs.keys() <= {a.name for a in rest}, f"{self.name}: {', '.join(kwargs)}"
        return *args, *(kwargs.get(a.name, a.default_value) for a in rest)

    def taken_by_the_cpu(self, args: tuple) -> bool:
        try:
            self.op(*tree_map_only(Tensor, lambda t: t.detach().clone(), args))
        except RuntimeError:
            return False
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, Tensor) and a.is_meta for a in args):
            return self.op(*args, **kwargs)
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lowbit::{self.name}", KEY):
            pytest.skip(f"{self.name} has no {KEY} kernel")
        if kwargs:
            args = self.positional(args, kwargs)
        placed = place(self.name, args)
        inputs = [p for i, p in enumerate(placed) if isinstance(p, Tensor) and i not in self.written]
        before = [_storage(p).clone() for p in inputs]
        try:
            result = self.op(*placed)
        except RuntimeError as error:  # of an argument that is wrong everywhere: for the test
            sentence = re.search(rf"^.*{self.name}: .* on CUDA$", str(error), re.MULTILINE)
            if sentence and self.taken_by_the_cpu(args):
                pytest.skip(sentence.group())
            raise
        if DEVICE == "proxy" and (sentence := refused(self.name, args)):
            pytest.skip(sentence)
        for p, then in zip(inputs, before, strict=True):
            assert torch.equal(_storage(p), then), (
                f"{self.name} wrote to an input, or to the memory around it"
            )
        for i in self.written:  # bring the written arguments home, with what is around them
            _storage(args[i]).copy_(_storage(placed[i]))
        return tree_map_only(Tensor, lambda t: t.cpu(), result)


class _Proxy:
    """Stands in for torch.ops.lowbit."""

    def __getattr__(self, name: str) -> _Op:
        op = _Op(name)
        setattr(self, name, op)
        return op


OPS = torch.ops.lowbit if ON_CPU else _Proxy()
# every instruction set here: all differ for weight-only layers, all but those of bf16 for integer layers and
# causal attention, and those without tiles for everything
FP_ISAS = [isa["name"] for isa in lowbit.ops.isas() if isa["supported"]] if ON_CPU else [DEVICE]
GEMM_ISAS = [name for name in FP_ISAS if not name.startswith("avx512_bf16")]
ISAS = [name for name in GEMM_ISAS if not name.startswith("amx")]


def set_isa(name: str) -> None:
    """lowbit.ops.set_isa, where there is one to choose."""
    if ON_CPU:
        lowbit.ops.set_isa(name)
