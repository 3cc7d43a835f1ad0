"""The emulator against the GPU: every test of the wrappers (tests/emu) once more, with each kernel run on
both machines and the outputs compared bit for bit, and random rounds beyond them.

Without a GPU the other machine is the emulator under another seed, which proves this harness and no more.
"""

import os
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.emu import lane_tables as tables
from tests.emu import test_wrappers, test_wrappers_sm90
from tests.emu.conftest import build, load

from .machine import Both, Gpu

EMULATOR_ONLY = "test_float_mma_adds_as_a_tensor_core"  # a card may keep more bits: see the test below

for module in (test_wrappers, test_wrappers_sm90):
    tests = {name: f for name, f in vars(module).items() if name.startswith("test_")}
    globals().update({name: f for name, f in tests.items() if name != EMULATOR_ONLY})


class Again:
    """The emulator as the other machine."""

    def __init__(self, module: object):
        self.module = module

    def has(self, name: str) -> bool:
        return hasattr(self.module, name)

    def __call__(self, name: str, *args: object) -> None:
        getattr(self.module, name)(*args, {"seed": 99, "smem_base_mod": 256})


@pytest.fixture(scope="module")
def emulated():
    pytest.importorskip("pybind11")
    module = load(build())
    library = os.environ.get("LOWBIT_CONFORMANCE")
    if library and torch.cuda.is_available():
        return Both(module, Gpu(Path(library)))
    return Both(module, Again(module))


def bits(rng, shape):
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def test_random_fragments(emulated):
    """Registers full of random bits through every integer mma, and the byte and bit wrappers."""
    rng = np.random.default_rng(int(os.environ.get("LOWBIT_SEED", "0")))
    for turn in range(25):
        for kind in range(4):
            emulated.mma(kind, bits(rng, (32, 4)), bits(rng, (32, 2)), bits(rng, (32, 4)), 1 + turn % 3, {})
        emulated.warp(
            bits(rng, 32), rng.integers(0, 32, 32).astype(np.int32), np.zeros((12, 32), np.uint32), {}
        )
        emulated.bits(bits(rng, 256), bits(rng, 256), bits(rng, 256), np.zeros((18, 256), np.uint32), {})
        sizes = rng.integers(0, 17, 32).astype(np.int32)
        emulated.cp_async(bits(rng, (32, 4)).view(np.uint8), sizes, np.zeros((4, 32, 16), np.uint8), {})
    assert getattr(emulated, "calls", 0) >= 25 * 7


def test_random_wgmma(emulated):
    """Including full-range accumulators, so that sums wrap, and several wgmmas on one accumulator."""
    rng = np.random.default_rng(1)
    for n, steps in emulated.wgmma_shapes:
        for accumulate, repeat in ((False, 1), (True, 2)):
            a, tile = bits(rng, (steps, 128, 4)), bits(rng, (n, 8 * steps)).view(np.uint8)
            d = bits(rng, (128, n // 2)).view(np.int32)
            for swizzled in (False, True):
                emulated.wgmma(n, a, tile, d.copy(), swizzled, accumulate, repeat, {"smem_base_mod": 512})


def test_random_boxes(emulated):
    """TMA at random places, inside, over each edge and wholly outside."""
    rng = np.random.default_rng(2)
    for swizzle, width in ((0, 64), (1, 32), (2, 64), (3, 128)):
        matrix = bits(rng, (37, 64)).view(np.uint8)[:, :201]
        for _ in range(20):
            x, y = int(rng.integers(-150, 250)), int(rng.integers(-20, 45))
            emulated.tma_load(matrix, 16, width, swizzle, x, y, np.zeros(16 * width, np.uint8), {})


@pytest.mark.parametrize(("kind", "dtype"), [(4, np.float16), (5, ml_dtypes.bfloat16)])
def test_float_mma_within_the_bound_of_any_order(emulated, kind, dtype):
    """The order of a float sum is the hardware's: a bound for 17 terms in fp32, with truncation."""
    rng = np.random.default_rng(kind)
    module, other = emulated.emulated, emulated.other
    for _ in range(20):
        a, b = rng.standard_normal((16, 16)).astype(dtype), rng.standard_normal((8, 16)).astype(dtype)
        c = rng.standard_normal((16, 8)).astype(np.float32)
        exact = c + a.astype(np.float64) @ b.astype(np.float64).T
        size = np.abs(c) + np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)).T
        for machine in (lambda *v: module.mma(*v, {}), lambda *v: other("mma", *v)):
            error = np.abs(test_wrappers.float_mma(machine, kind, a, b, c) - exact)
            assert (error <= 34 * 2.0**-24 * size).all()


@pytest.mark.parametrize(("kind", "dtype", "least"), test_wrappers.HALVES)
def test_how_a_float_mma_adds(emulated, kind, dtype, least):
    """How many bits of a term the other machine keeps behind the largest, and how many products it adds at a
    time: said among pytest's warnings, and wrong only if it is nothing that is known of a tensor core.
    """
    wrong = {(bits, step): 0 for bits in range(22, 28) for step in (16, 8, 4)}
    for a, b, c in test_wrappers.far_apart(kind, dtype):
        got = test_wrappers.float_mma(lambda *v: emulated.other("mma", *v), kind, a, b, c)
        for bits, step in wrong:
            want = c
            for k in range(0, 16, step):
                part = slice(k, k + step)
                want = test_wrappers.tensor_core(a[:, part], b[:, part], want, least, bits)
            wrong[bits, step] += int((got != want).sum())
    fits = [f"{bits} bits, {step} products" for (bits, step), n in wrong.items() if not n]
    assert fits, f"elements that differ, by (bits, products): {wrong}"
    warnings.warn(f"float mma of {np.dtype(dtype)}: {' or '.join(fits)} at a time", stacklevel=1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_float_wgmma_within_the_bound_of_any_order(emulated, dtype):
    """As for mma, with 64 products."""
    rng = np.random.default_rng(3)
    module, other = emulated.emulated, emulated.other
    for n in (8, 64, 128, 256):
        a, b = rng.standard_normal((64, 64)).astype(dtype), rng.standard_normal((n, 64)).astype(dtype)
        c = rng.standard_normal((64, n)).astype(np.float32)
        pieces = [a.view(np.uint16)[:, 16 * s : 16 * s + 16] for s in range(4)]
        words = [tables.scatter(p, tables.wgmma_a_map(2)).view(np.uint32) for p in pieces]
        registers, tile = np.stack(words).reshape(4, 128, 4), b.view(np.uint8).reshape(n, 128)
        exact = c + a.astype(np.float64) @ b.astype(np.float64).T
        size = np.abs(c) + np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)).T
        for machine in (lambda *v: module.wgmma_half(*v, {}), lambda *v: other("wgmma_half", *v)):
            d = np.ascontiguousarray(tables.scatter(c, tables.wgmma_d_map(n)).reshape(128, n // 2))
            machine(dtype != np.float16, n, registers, tile, d, True, True, 1)
            error = np.abs(tables.gather(d, tables.wgmma_d_map(n), (64, n)) - exact)
            assert (error <= 2 * 65 * 2.0**-24 * size).all()
