"""What the tests of the row kernels share: exact buffers, alignment, dtypes, readings of the counters."""

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def raw(nbytes: int, offset: int = 0, fill: int = 0xA5) -> np.ndarray:
    """Bytes at an address that is `offset` past a multiple of 128."""
    room = np.full(nbytes + 256, fill, np.uint8)
    start = -room.ctypes.data % 128 + offset
    return room[start : start + nbytes]


def stored(x: np.ndarray, stride: int | None = None, offset: int = 0) -> np.ndarray:
    """The rows of x [rows, k] `stride` elements apart as bytes, poison in between, ending with the last
    element.
    """
    rows, k = x.shape
    stride = k if stride is None else stride
    size = x.dtype.itemsize
    out = raw(((rows - 1) * stride + k) * size if rows and k else 0, offset)
    for r in range(rows if k else 0):
        out[r * stride * size : (r * stride + k) * size] = np.ascontiguousarray(x[r]).view(np.uint8)
    return out


def floats(v: np.ndarray, dtype: np.dtype, stride: int) -> np.ndarray:
    """fp32 [rows, k] rounded once to the dtype, as rows of `stride` bytes, zero past k."""
    out = np.zeros((len(v), stride), np.uint8)
    if v.size:
        with np.errstate(over="ignore"):
            held = np.ascontiguousarray(v.astype(dtype)).view(np.uint8)
        out[:, : held.shape[1]] = held
    return out


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Rows of very different sizes."""
    rng = np.random.default_rng((*shape, seed))
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-6, 7, (*shape[:-1], 1)))
    return x.astype(np.float32).astype(DTYPES[dtype])


def operand4(codes: np.ndarray, stride: int) -> np.ndarray:
    """int [rows, k] -> two's complement nibbles: byte 16c + t holds k = 32c + t and, above, 32c + 16 + t."""
    rows, k = codes.shape
    padded = np.zeros((rows, 2 * stride), np.int64)
    padded[:, :k] = codes
    out = np.zeros((rows, stride), np.uint8)
    for c in range(stride // 16):
        for t in range(16):
            low, high = padded[:, 32 * c + t] % 16, padded[:, 32 * c + 16 + t] % 16
            out[:, 16 * c + t] = low + 16 * high
    return out


def ratio(count: dict) -> float:
    """Sectors (or wavefronts) against the least that the bytes need."""
    return count["actual"] / count["ideal"]


def free_of_conflicts(report: dict) -> bool:
    """Every access to shared memory took the fewest wavefronts."""
    return all(c["actual"] == c["ideal"] for c in report["shared"].values())


def read_once(report: dict, name: str) -> bool:
    """Every byte of an input was read by exactly one thread."""
    count = report["buffers"][name]
    return count["read_min"] == count["read_max"] == 1


def written_once(report: dict, name: str) -> bool:
    """Every byte of an output was written exactly once."""
    count = report["buffers"][name]
    return count["write_min"] == count["write_max"] == 1
