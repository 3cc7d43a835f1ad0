"""Gradients with respect to activations.

`hadamard` is linear, so its gradient is the transposed transform (H_K of Paley's first kind is not
symmetric). `dynamic_linear` rounds its input; its gradient takes the rounding as the identity
(straight-through) and returns grad_y @ W, sent back through the transposed Hadamard. Weights and scales are
frozen: they get no gradient. `fp_linear` rounds nothing but its result; its gradient is exact: grad_y @ W.
"""

import torch
from torch import Tensor

from ..reference.fp_gemm import dequantize_fp_weight
from ..reference.int_gemm import dequantize_weight


def _hadamard_setup(ctx, inputs, output) -> None:
    _, ctx.scale, ctx.block, ctx.transpose = inputs


def _hadamard_backward(ctx, grad: Tensor):
    return torch.ops.lowbit.hadamard(grad, ctx.scale, ctx.block, not ctx.transpose), None, None, None


def _dynamic_linear_setup(ctx, inputs, output) -> None:
    x, weight, w_scale, group_scale, bias, _bits, _clip, ctx.block, _shift, _residual = inputs
    ctx.k = x.shape[-1]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(weight, w_scale, group_scale)


def _grad_residual(ctx, grad: Tensor, at: int) -> Tensor | None:
    """Of the last argument, number `at`; needs_input_grad is as long as the call was."""
    return grad if ctx.needs_input_grad[at:] == (True,) else None


def _dynamic_linear_backward(ctx, grad: Tensor):
    weight, w_scale, group_scale = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = (grad.float() @ dequantize_weight(weight, w_scale, group_scale, ctx.k)).to(grad.dtype)
        if ctx.block is not None and ctx.k:
            n = ctx.block or ctx.k
            grad_x = torch.ops.lowbit.hadamard(grad_x, n**-0.5, n, True)
    grad_bias = None
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return grad_x, None, None, None, grad_bias, None, None, None, None, _grad_residual(ctx, grad, 9)


def _fp_linear_setup(ctx, inputs, output) -> None:
    x, weight, ctx.format, w_scale, group_scale, bias, _residual = inputs
    ctx.k = x.shape[-1]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(weight, w_scale, group_scale)


def _fp_linear_backward(ctx, grad: Tensor):
    weight, w_scale, group_scale = ctx.saved_tensors
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        w = dequantize_fp_weight(weight, ctx.format, w_scale, group_scale, ctx.k)
        grad_x = (grad.float() @ w).to(grad.dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[5]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return grad_x, None, None, None, None, grad_bias, _grad_residual(ctx, grad, 6)


def register() -> None:
    """Attach the gradients to the ops; called once, on import."""
    torch.library.register_autograd("lowbit::hadamard", _hadamard_backward, setup_context=_hadamard_setup)
    torch.library.register_autograd(
        "lowbit::dynamic_linear", _dynamic_linear_backward, setup_context=_dynamic_linear_setup
    )
    torch.library.register_autograd(
        "lowbit::fp_linear", _fp_linear_backward, setup_context=_fp_linear_setup
    )
