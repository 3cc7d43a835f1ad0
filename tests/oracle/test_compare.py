"""The comparator is tested before anything is compared: each of these faults must fail every tier."""

import ml_dtypes
import numpy as np
import pytest
import torch

from . import compare

M, N, K = 24, 40, 256


@pytest.fixture
def product():
    """(a, w, y64, magnitude) of a well-behaved product, y in float32."""
    rng = np.random.default_rng(5)
    a, w = rng.standard_normal((M, K)), rng.standard_normal((N, K))
    return a, w, a @ w.T, np.abs(a) @ np.abs(w).T


def _nan(y):
    y[3, 7] = np.nan


def _all_nan(y):
    y[:] = np.nan


def _inf(y):
    y[0, 0] = np.inf


def _negative_inf(y):
    y[-1, -1] = -np.inf


def _minus_ten_for_minus_twenty(y):
    y[np.unravel_index(np.argmin(y), y.shape)] /= 2


def _dead_row(y):
    y[11] = 0


def _dead_column(y):
    y[:, 5] = 0


def _four_percent(y):
    y *= 1.04


def _swapped_pair(y):
    y[2, [0, 1]] = y[2, [1, 0]]


def _negated(y):
    y[9, 9] = -y[9, 9]


FAULTS = [
    _nan,
    _all_nan,
    _inf,
    _negative_inf,
    _minus_ten_for_minus_twenty,
    _dead_row,
    _dead_column,
    _four_percent,
    _swapped_pair,
    _negated,
]


def _tiers(y64, magnitude):
    good = y64.astype(np.float32)
    return {
        "exact": lambda y: compare.exact(y, good),
        "bounded": lambda y: compare.bounded(y, y64, magnitude, K, "float32"),
        "relative": lambda y: compare.relative(y, good, y64),
    }


@pytest.mark.parametrize("tier", ["exact", "bounded", "relative"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__.strip("_"))
def test_fault_fails(product, tier, fault):
    _, _, y64, magnitude = product
    check = _tiers(y64, magnitude)[tier]
    y = y64.astype(np.float32)
    check(y.copy())  # sound before the fault
    fault(y)
    with pytest.raises(AssertionError):
        check(y)


@pytest.mark.parametrize("tier", ["exact", "bounded", "relative"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda y: y.astype(np.float64),
        lambda y: y.astype(ml_dtypes.bfloat16),
        lambda y: y[:0],
        lambda y: y[:, :-1],
        lambda y: y.reshape(-1),
        lambda y: y.T,
    ],
    ids=["float64", "bfloat16", "empty", "short", "flat", "transposed"],
)
def test_wrong_kind_fails(product, tier, wrong):
    _, _, y64, magnitude = product
    with pytest.raises(AssertionError):
        _tiers(y64, magnitude)[tier](wrong(y64.astype(np.float32)))


@pytest.mark.parametrize("tier", ["exact", "bounded", "relative"])
def test_empty_fails_unless_allowed(tier):
    empty = np.zeros((0, 4), dtype=np.float32)
    with pytest.raises((AssertionError, ValueError)):
        _tiers(empty.astype(np.float64), empty)[tier](empty)
    compare.exact(empty, empty, allow_empty=True)
    assert compare.bounded(empty, empty.astype(np.float64), empty, 4, "float32", allow_empty=True) is None


def test_minus_ten_against_minus_twenty():
    for check in _tiers(np.array([[-20.0]]), np.array([[20.0]])).values():
        with pytest.raises(AssertionError):
            check(np.array([[-10.0]], dtype=np.float32))


def test_nan_expected_needs_permission():
    a = np.array([np.nan, 1], dtype=np.float32)
    with pytest.raises(AssertionError):
        compare.exact(a, a)
    compare.exact(a, a, nan_equal=True)
    with pytest.raises(AssertionError):
        compare.exact(np.array([0, 1], dtype=np.float32), a, nan_equal=True)
    with pytest.raises(AssertionError):
        compare.bounded(a, a.astype(np.float64), np.ones(2), 4, "float32")
    with pytest.raises(AssertionError):
        compare.relative(a[None], a[None], a[None].astype(np.float64))


def test_report_names_index_values_bound_and_budget():
    y = np.zeros((2, 3), dtype=np.float32)
    y[1, 2] = 3
    with pytest.raises(
        AssertionError,
        match=r"at \(1, 2\): got 3.0, expected 1.0, error 2.000e\+00, bound 5.000e-01 "
        r"\(400.0 % of the budget\)",
    ):
        compare.elementwise(y, np.array([[0, 0, 0], [0, 0, 1.0]]), np.full((2, 3), 0.5))


def test_exact_report_counts():
    with pytest.raises(
        AssertionError, match=r"1 of 3 elements differ, first at \(1,\): got 5.0, expected 2.0"
    ):
        compare.exact(np.array([1, 5, 3]), np.array([1, 2, 3]))


def test_one_ulp_fails_the_exact_tier():
    y = np.ones(4, dtype=np.float32)
    with pytest.raises(AssertionError):
        compare.exact(np.nextafter(y, np.float32(2)), y)


def test_bounded_accepts_honest_rounding(product):
    a, w, y64, magnitude = product
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        y = (torch.from_numpy(a).float() @ torch.from_numpy(w).float().T).to(dtype)
        a32, w32 = a.astype(np.float32).astype(np.float64), w.astype(np.float32).astype(np.float64)
        report = compare.bounded(y, a32 @ w32.T, magnitude, K, str(dtype).removeprefix("torch."))
        assert 0 < report.percent <= 100
    assert compare.cosine(y64, y64) == pytest.approx(1)


def test_bound_is_not_loose(product):
    """Three times the output rounding of bf16 must already fail."""
    _, _, y64, magnitude = product
    y = (y64 * (1 + 3 * compare.UNIT["bfloat16"])).astype(ml_dtypes.bfloat16)
    with pytest.raises(AssertionError):
        compare.bounded(y, y64, magnitude, K, "bfloat16")


def test_bfloat16_tensor_is_read_value_for_value():
    x = torch.tensor([1.0, -2.5, 3e38, 1e-40]).bfloat16()
    assert compare.to_numpy(x).astype(np.float64).tolist() == x.double().tolist()
