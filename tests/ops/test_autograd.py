"""Gradients with respect to the activation: exact for the transform, straight-through for the quantised
layer.
"""

import numpy as np
import pytest
import torch

from tests.oracle import codec, compare
from tests.oracle import hadamard as had

from .support import OPS
from .test_dynamic_linear import Case, make


@pytest.mark.parametrize("n,block", [(64, None), (576, None), (576, 64), (96, 12), (1, None)])
@pytest.mark.parametrize("transpose", [False, True])
def test_hadamard_gradient_is_the_transpose(n, block, transpose, isa):
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(n), requires_grad=True)
    g = torch.randn(3, n, generator=torch.Generator().manual_seed(n + 1))
    OPS.hadamard(x, 0.3, block, transpose).backward(g)
    compare.exact(x.grad, had.transform_fp32(g.numpy(), 0.3, block, not transpose))


def test_hadamard_gradient_by_differences():
    """On integers the op is linear without rounding, so a difference is the derivative."""
    x = torch.from_numpy(
        np.random.default_rng(0).integers(-5, 6, (2, 12)).astype(np.float32)
    ).requires_grad_()
    weight = torch.from_numpy(np.random.default_rng(1).integers(-5, 6, (2, 12)).astype(np.float32))
    (OPS.hadamard(x, 0.5) * weight).sum().backward()
    with torch.no_grad():
        base = (OPS.hadamard(x, 0.5) * weight).sum()
        for index in np.ndindex(2, 12):
            moved = x.clone()
            moved[index] += 1
            assert ((OPS.hadamard(moved, 0.5) * weight).sum() - base).item() == x.grad[index].item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weight_bits,group", [(4, None), (4, 32), (8, None)])
@pytest.mark.parametrize("block,shift", [(None, False), (0, True), (32, False)])
def test_dynamic_linear_is_straight_through(dtype, weight_bits, group, block, shift):
    """dL/dx = (dL/dy @ W) through the transposed transform, as if nothing had been rounded."""
    case = Case(5, 24, 96, 8, weight_bits, group, dtype, block, 1.0, True, shift, "plain")
    args, _ = make(case)
    tiles, scale = args[1].numpy(), args[2].double().numpy()
    read = codec.read_int4_tiles if weight_bits == 4 else codec.read_int8_tiles
    w = read(tiles, 24, 96).astype(np.float64)
    if group:
        s = args[3].numpy().transpose(0, 2, 1).reshape(-1, 96 // group)[:24]
        w = w * np.repeat(s, group, 1)
    w = w * scale[:, None]
    x = args[0].clone().requires_grad_()
    g = torch.randn(5, 24, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    residual = torch.zeros(5, 24, dtype=x.dtype, requires_grad=True)
    OPS.dynamic_linear(x, *args[1:], residual=residual).backward(g)
    assert torch.equal(residual.grad, g)
    grad = g.double().numpy() @ w
    if block is not None:
        grad = had.transform(grad, (block or 96) ** -0.5, block or None, transpose=True)
    assert x.grad.dtype == x.dtype
    # the same mathematics in torch, in the gradient's dtype, with every step rounded
    base = g @ torch.from_numpy(w).to(x.dtype)
    if block is not None:
        base = OPS.hadamard(base, (block or 96) ** -0.5, block or None, True)
    compare.relative(x.grad, base, grad)


@pytest.mark.parametrize("bias", [False, True])
def test_dynamic_linear_called_with_defaults(bias):
    """Torch drops trailing arguments that equal their defaults before autograd sees them."""
    args, _ = make(Case(3, 16, 32, 8, 4, None, "float32", None, 1.0, bias, False, "plain"))
    x, tiles, w_scale = args[:3]
    x.requires_grad_()
    calls = [args] if bias else [args, args[:3]]
    grads = []
    for call in calls:
        x.grad = None
        OPS.dynamic_linear(*call).sum().backward()
        grads.append(x.grad.clone())
    w = codec.read_int4_tiles(tiles.numpy(), 16, 32) * w_scale.double().numpy()[:, None]
    for grad in grads:
        compare.bounded(grad, np.tile(w.sum(0), (3, 1)), np.tile(np.abs(w).sum(0), (3, 1)), 32, "float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_gets_its_gradient(dtype):
    args, _ = make(Case(6, 16, 32, 8, 4, None, "float32", None, 1.0, True, False, "plain"))
    args[4] = args[4].to(dtype).requires_grad_()
    g = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    args[0] = args[0].reshape(2, 3, 32)
    OPS.dynamic_linear(*args).backward(g)
    assert args[4].grad.dtype == dtype
    want, size = g.double().sum((0, 1)).numpy(), g.double().abs().sum((0, 1)).numpy()
    compare.bounded(args[4].grad, want, size, 6, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("args", [(), (0.5,), (0.5, 16), (0.5, 16, True)])
def test_hadamard_called_with_defaults(args):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    OPS.hadamard(x, *args).sum().backward()
    scale, block = args[0] if args else 1.0, args[1] if len(args) > 1 else None
    compare.exact(x.grad, had.transform_fp32(np.ones((3, 64), dtype=np.float32), scale, block))


def test_no_gradient_is_asked_of_codes():
    args, _ = make(Case(2, 16, 32, 8, 4, None, "float32", None, 1.0, False, False, "plain"))
    assert not OPS.dynamic_linear(*args).requires_grad
    x = args[0].clone().requires_grad_()
    q, _ = OPS.quantize_int8(x)
    assert not q.requires_grad


def test_lora_shape_of_training():
    """A trainable branch before and after a frozen quantised layer receives gradients."""
    args, _ = make(Case(4, 16, 32, 8, 4, None, "float32", None, 1.0, True, False, "plain"))
    before = torch.nn.Linear(32, 32)
    after = torch.nn.Linear(16, 3)
    after(OPS.dynamic_linear(before(args[0]), *args[1:])).square().mean().backward()
    for p in (*before.parameters(), *after.parameters()):
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
