"""The comparator: every tolerance of the tests is decided here, and every check is `assert err <= tol`.

Tiers: `exact` (same bits), `bounded` (elementwise, derived from the data), `relative` (against the same
mathematics in plain low-precision torch). NaN, inf, wrong dtype or shape and empty results fail all three
unless said otherwise.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

# unit roundoff: half the distance from 1 to the next number
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# smallest positive number, below which rounding is absolute
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
SLACK = 2.0  # the c of the bound: second-order terms, and the roundings of the epilogue


def to_numpy(x: object) -> np.ndarray:
    """A torch tensor (bfloat16 too) or array as numpy, value for value."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().contiguous()
        if str(x.dtype) == "torch.bfloat16":
            bits = x.view(__import__("torch").int16)
            return bits.numpy().view(ml_dtypes.bfloat16)
        return x.numpy()
    return np.asarray(x)


@dataclass(frozen=True)
class Report:
    """The worst element of a comparison."""

    index: tuple[int, ...]
    actual: float
    expected: float
    error: float
    bound: float

    @property
    def percent(self) -> float:
        """Share of the error budget used."""
        if self.bound > 0:
            return 100 * self.error / self.bound
        return 0.0 if self.error == 0 else float("inf")

    def __str__(self) -> str:
        return (
            f"at {self.index}: got {self.actual!r}, expected {self.expected!r}, error {self.error:.3e}, "
            f"bound {self.bound:.3e} ({self.percent:.1f} % of the budget)"
        )


def gamma(terms: int, unit: float) -> float:
    """n u / (1 - n u), the growth of rounding errors over n operations (Higham)."""
    assert terms * unit < 1
    return terms * unit / (1 - terms * unit)


def _same_kind(actual: np.ndarray, expected: np.ndarray, allow_empty: bool) -> None:
    assert actual.shape == expected.shape, f"shape: got {actual.shape}, expected {expected.shape}"
    assert allow_empty or actual.size > 0, "nothing to compare: the result is empty"


def exact(actual: object, expected: object, allow_empty: bool = False, nan_equal: bool = False) -> None:
    """Same dtype, same shape, equal elements. A NaN fails, except where both are NaN and `nan_equal` is set.
    """
    a, e = to_numpy(actual), to_numpy(expected)
    assert a.dtype == e.dtype, f"dtype: got {a.dtype}, expected {e.dtype}"
    _same_kind(a, e, allow_empty)
    same = a == e
    if nan_equal:
        same |= (a != a) & (e != e)
    if not same.all():
        index = tuple(int(i) for i in np.argwhere(~same)[0])
        got, want = float(a[index]), float(e[index])
        report = Report(index, got, want, abs(got - want), 0.0)
        wrong = int(same.size - np.count_nonzero(same))
        raise AssertionError(f"{wrong} of {same.size} elements differ, first {report}")


def elementwise(
    actual: object, expected: np.ndarray, bound: np.ndarray, allow_empty: bool = False
) -> Report | None:
    """assert |actual - expected| <= bound everywhere; returns the element that used most of its bound."""
    a, e = to_numpy(actual).astype(np.float64), np.asarray(expected, dtype=np.float64)
    _same_kind(a, e, allow_empty)
    if not a.size:
        return None
    bound = np.broadcast_to(np.asarray(bound, dtype=np.float64), e.shape)
    with np.errstate(invalid="ignore"):
        error = np.abs(a - e)
    used = np.where(error == 0, 0.0, error / np.maximum(bound, 5e-324))
    used = np.where(np.isnan(used), np.inf, used)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(used), used.shape))
    report = Report(index, float(a[index]), float(e[index]), float(error[index]), float(bound[index]))
    assert np.isfinite(e).all(), f"the expected value is not finite: {report}"
    assert np.isfinite(a).all(), f"the result is not finite, {report}"
    assert (error <= bound).all(), (
        f"{int((~(error <= bound)).sum())} of {error.size} out of bound, worst {report}"
    )
    return report


def bounded(
    actual: object,
    expected64: np.ndarray,
    magnitude: np.ndarray,
    terms: int,
    dtype: str,
    compute: str = "float32",
    allow_empty: bool = False,
) -> Report | None:
    """|y - y64| <= c u_out |y64| + c gamma(terms) magnitude, magnitude = sum |a| |w| per element.

    dtype: expected dtype of `actual`; compute: the precision of the accumulation.
    """
    a = to_numpy(actual)
    assert str(a.dtype) == dtype, f"dtype: got {a.dtype}, expected {dtype}"
    y = np.asarray(expected64, dtype=np.float64)
    bound = SLACK * (
        UNIT[dtype] * np.abs(y) + gamma(terms, UNIT[compute]) * np.asarray(magnitude) + TINY[dtype]
    )
    return elementwise(a, y, bound, allow_empty)


def relative(actual: object, baseline: object, expected64: np.ndarray, factor: float = 2.0) -> Report:
    """Per row (last axis): max error <= factor x the baseline's max error + the rounding of the row's largest
    value.
    """
    a, b, e = to_numpy(actual), to_numpy(baseline), np.asarray(expected64, dtype=np.float64)
    assert a.dtype == b.dtype, f"dtype: got {a.dtype}, baseline {b.dtype}"
    assert b.shape == e.shape, f"shape: baseline {b.shape}, expected {e.shape}"
    assert np.isfinite(b.astype(np.float64)).all(), "the baseline is not finite"
    allowed = factor * np.abs(b.astype(np.float64) - e).max(-1, keepdims=True)
    floor = UNIT[str(a.dtype)] * np.abs(e).max(-1, keepdims=True)
    return elementwise(a, e, allowed + floor)


def cosine(actual: object, expected64: np.ndarray) -> float:
    """Companion, never a check of its own: the smallest cosine of a row with the expected row."""
    a, e = to_numpy(actual).astype(np.float64), np.asarray(expected64, dtype=np.float64)
    norm = np.linalg.norm(a, axis=-1) * np.linalg.norm(e, axis=-1)
    return float(((a * e).sum(-1) / norm).min())
