"""GPTQ (Frantar et al., arXiv 2210.17323): quantise by columns, spread each error over those to come."""

import torch
from torch import Tensor

from .rtn import check_hessian, check_weight, rtn
from .scheme import IntegerScheme, Scheme
from .weight import QuantizedWeight

BLOCK = 32  # columns per lazy update; divides every group size
_HEADROOM = 0.925


class Hessian:
    """Running H = 2/T * sum_t x_t x_t^T of a linear layer's inputs, fp32 [K, K]."""

    def __init__(self, k: int, device: torch.device | str = "cpu"):
        self.sum = torch.zeros(k, k, dtype=torch.float32, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """x: float [T, K]. Only the upper block triangle is computed; `matrix` mirrors it."""
        x = x.float()
        k, step = x.shape[1], 384
        for i in range(0, k, step):
            self.sum[i : i + step, i:].addmm_(x[:, i : i + step].T, x[:, i:])
        self.tokens += x.shape[0]

    def matrix(self) -> Tensor:
        """fp32 [K, K], symmetric. ValueError where nothing, or NaN or inf, was added."""
        if self.tokens == 0:
            raise ValueError("calibration: expected at least one token, got none")
        upper = self.sum.triu()
        h = (upper + upper.triu(1).T) * (2.0 / self.tokens)
        if not bool(torch.isfinite(h).all()):
            raise ValueError("calibration: expected finite activations, got NaN or inf")
        return h


def inverse_factor(h: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """The upper U with (H + damp I)^-1 = U^T U, fp32, and the mask of dead inputs (bool [K]).

    Dead inputs (zero diagonal) get 1 on the diagonal; damp is a share of the mean diagonal, raised tenfold
    until the factorisation succeeds. With J the reversal, J H J = L L^T gives U = J L^-1 J.
    """
    h = h.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    mean = float(h.diagonal().mean())
    for _ in range(8):
        damped = h.flip(0, 1).clone()
        damped.diagonal().add_(damp * mean)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            eye = torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
            return torch.linalg.solve_triangular(factor, eye, upper=False).flip(0, 1).float(), dead
        damp = 10 * damp if damp else 1e-8
    raise ValueError(f"calibration: expected a positive definite Hessian, got failure at damp {damp:g}")


def gptq(w: Tensor, h: Tensor, scheme: Scheme | None = None, damp: float = 0.01) -> QuantizedWeight:
    """Quantise w against the Hessian h of its inputs.

    w: float [N, K]; h: fp32 [K, K]; scheme: an `IntegerScheme` (4 bits without it) or a `FloatScheme`.
    Columns in the order of falling input energy (act-order), so that what the strong ones leave is spread
    over all others; with groups in their own order. Row scales are searched before the loop; that of a group
    when the loop reaches it, on the weights as updated so far; the search counts the error of column k by
    1 / u[k, k]^2, which is what it adds to the loss once the columns to come have made up for it. int8 is
    rounded to nearest: the compensation is below the noise. Updates reach beyond the current block of columns
    when the block is finished; the block's width changes the speed and not, beyond fp32 rounding, the result.
    """
    scheme = scheme or IntegerScheme()
    check_weight(w)
    check_hessian(h, w)
    if scheme == IntegerScheme(8) or w.shape[1] == 0:
        return rtn(w, scheme)
    group = scheme.group_size
    order = torch.arange(w.shape[1], device=w.device)
    if group is None:
        order = h.diagonal().argsort(descending=True, stable=True)
    u, dead = inverse_factor(h[order][:, order], damp)
    importance = u.diagonal() ** -2
    importance /= importance.mean()
    wt = w.float().T[order]  # [K, N]: a column of w is a contiguous row
    wt[dead] = 0
    # updates widen a group now and then: the headroom keeps an integer scale within its 16 steps
    scale = scheme.row_scale(wt.T.contiguous(), _HEADROOM, importance)
    values, group_scale = _spread(wt, u, scale, scheme, importance)
    return scheme.weight(values[order.argsort()].T, scale, group_scale)


def _spread(
    wt: Tensor, u: Tensor, scale: Tensor, scheme: Scheme, importance: Tensor
) -> tuple[Tensor, Tensor | None]:
    """(values on the grid [K, N], group scales) of wt [K, N], which is overwritten."""
    k, n = wt.shape
    group, grid = scheme.group_size, scheme.grid
    values = torch.empty(k, n, dtype=grid.dtype, device=wt.device)
    group_scales = []
    step, inverse = scale, 1.0 / scale
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        if group and start % group == 0:  # a group starts with a block: its columns are up to date
            columns = slice(start, start + group)
            s = scheme.group_scale(wt[columns].T.contiguous(), scale, importance[columns])
            group_scales.append(s)
            step = scale * scheme.group_factor(s)
            inverse = 1.0 / step
        block = wt[start:end]  # [BLOCK, N], a view: errors inside the block spread at once
        errors = torch.empty_like(block)
        factors = u[start:end]
        for i, column in enumerate(block):
            q = grid.round_(column * inverse)
            values[start + i] = q
            torch.addcmul(column, q, step, value=-1.0, out=errors[i]).div_(factors[i, start + i])
            # block[i + 1:] -= u[i, i + 1:]^T errors[i], as a product of rank one (faster than addr_)
            block[i + 1 :].addmm_(factors[i, start + i + 1 : end].unsqueeze(1), errors[i : i + 1], alpha=-1.0)
        wt[end:].addmm_(factors[:, end:].T, errors, alpha=-1.0)
    return values, torch.stack(group_scales, 1) if group else None
