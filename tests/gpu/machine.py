"""The wrapper kernels on a GPU, as the emulator's module has them, and both held against each other."""

import ctypes
from pathlib import Path

import numpy as np
import torch

# name -> which arguments are outputs (they are also inputs where the kernel reads them)
OUTPUTS = {
    "mma": [3], "ldmatrix": [4], "stmatrix": [3], "warp": [2], "cp_async": [2], "bits": [3], "memory": [1],
    "ticket": [1, 2, 3], "named_barrier": [0], "cp_async_mbarrier": [1], "tma_load": [6], "bulk": [1, 7],
    "wgmma": [3], "wgmma_half": [4], "barrier_life": [1], "setmaxnreg": [1],
}  # fmt: skip
# Rows of `bits` that are floats: a NaN's payload is the machine's own.
FLOAT_ROWS = (6, 7, 8, 10, 13, 14, 15)
HALF_ROWS = {11: "f16", 12: "bf16", 16: "f16", 17: "bf16"}


class Gpu:
    """One function per kernel, on numpy arrays, as the emulator's module has them (without the options)."""

    def __init__(self, library: Path, device: str = "cuda"):
        self.library, self.device = ctypes.CDLL(str(library)), device

    def has(self, name: str) -> bool:
        return hasattr(self.library, f"gpu_{name}")

    def __call__(self, name: str, *args: object) -> None:
        """Runs the kernel; output arrays are overwritten in place."""
        placed = [_Device(a, self.device) if isinstance(a, np.ndarray) else a for a in args]
        flat: list[object] = []
        for i, p in enumerate(placed):
            if name in ("tma_load", "bulk") and i == (0 if name == "tma_load" else 1):
                flat += [p.pointer, p.rows, p.row_bytes, p.pitch]
            elif (name, i) in (("wgmma", 1), ("wgmma_half", 2)):
                flat += [len(args[i]), p.pointer]
            elif name == "ticket" and i == 0:
                flat += [p.pointer, len(args[0])]
            else:
                flat.append(p.pointer if isinstance(p, _Device) else p)
        if name == "bits":
            flat.append(args[0].size)
        call = getattr(self.library, f"gpu_{name}")
        call.restype = ctypes.c_char_p
        if self.device == "cuda":
            torch.cuda.synchronize()
        error = call(*[ctypes.c_void_p(v.value) if isinstance(v, _Pointer) else _scalar(v) for v in flat])
        assert error is None, f"{name}: {error.decode()}"
        for i in OUTPUTS[name]:
            placed[i].fetch(args[i])


class _Pointer(int):
    @property
    def value(self) -> int:
        return int(self)


def _scalar(value: object) -> object:
    return ctypes.c_bool(value) if isinstance(value, bool | np.bool_) else ctypes.c_int(int(value))


class _Device:
    """A numpy array in GPU memory, with its row pitch; what lies between the rows is poison."""

    def __init__(self, array: np.ndarray, device: str):
        self.rows = array.shape[0]
        self.row_bytes = array[0].nbytes if array.ndim > 1 else array.itemsize
        self.pitch = array.strides[0]
        self.memory = torch.full((self.rows, self.pitch), 0xA5, dtype=torch.uint8, device=device)
        raw = np.ascontiguousarray(array).view(np.uint8).reshape(self.rows, self.row_bytes)
        self.memory[:, : self.row_bytes].copy_(torch.from_numpy(raw.copy()))
        self.pointer = _Pointer(self.memory.data_ptr())

    def fetch(self, array: np.ndarray) -> None:
        raw = self.memory[:, : self.row_bytes].cpu().numpy()
        array[...] = np.ascontiguousarray(raw).view(array.dtype).reshape(array.shape)


class Both:
    """Stands in for the emulator's module: every call also runs on the other machine, with the same bits."""

    def __init__(self, emulated: object, other: object):
        self.emulated, self.other, self.calls = emulated, other, 0

    def __getattr__(self, name: str) -> object:
        first = getattr(self.emulated, name)
        if name not in OUTPUTS or not self.other.has(name):
            return first

        def call(*args: object) -> object:
            *args, options = args
            copies = [_copy(a) for a in args]
            report = first(*args, options)  # a Violation ends the call here
            self.other(name, *copies)
            for i in OUTPUTS[name]:
                assert_same(name, args[i], copies[i])
            self.calls += 1
            return report

        return call


def _copy(a: object) -> object:
    if not isinstance(a, np.ndarray):
        return a
    if a.flags.c_contiguous:
        return a.copy()
    wide = np.zeros((a.shape[0], a.strides[0] // a.itemsize), a.dtype)  # the same pitch
    wide[:, : a.shape[1]] = a
    return wide[:, : a.shape[1]]


def _nan(row: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.isnan(row.view(dtype))


def assert_same(name: str, emulated: np.ndarray, gpu: np.ndarray) -> None:
    """Bit for bit, but for the payload of a NaN in the float rows of `bits`."""
    same = emulated.view(np.uint8).reshape(-1) == gpu.view(np.uint8).reshape(-1)
    if same.all():
        return
    different = (emulated != gpu).reshape(emulated.shape)
    if name == "bits":
        for row in FLOAT_ROWS:
            different[row] &= ~(_nan(emulated[row], np.float32) & _nan(gpu[row], np.float32))
        for row, kind in HALF_ROWS.items():
            different[row] = _halves_differ(emulated[row], gpu[row], kind)
    where = [tuple(int(i) for i in index) for index in np.argwhere(different)]
    assert not where, (
        f"{name}: {len(where)} of {different.size} elements differ, first at {where[0]}: "
        f"emulator {emulated[where[0]]!r}, GPU {gpu[where[0]]!r}"
    )


def _halves_differ(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    limit = 0x7C00 if kind == "f16" else 0x7F80  # beyond it, without the sign: NaN
    pair_a, pair_b = (np.ascontiguousarray(v).view(np.uint16).reshape(-1, 2) for v in (a, b))
    nan = ((pair_a & 0x7FFF) > limit) & ((pair_b & 0x7FFF) > limit)
    return ((pair_a != pair_b) & ~nan).any(1)
