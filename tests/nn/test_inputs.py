"""What every quantised layer takes and refuses, as `nn.Linear` does."""

import pytest
import torch
from lowbit.nn import Fp4Linear, Int4Linear, Int8Linear, StaticInt4Linear, WeightOnlyLinear
from torch import nn

KINDS = [Int4Linear, Int8Linear, WeightOnlyLinear, Fp4Linear, StaticInt4Linear]


def convert(kind, source):
    return kind.from_linear(source, *[torch.ones(source.in_features)] * (kind is StaticInt4Linear))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("k,others", [(64, (0, 56, 57, 63, 65, 128)), (37, (33, 36, 38, 40)), (3, (2, 4, 8))])
def test_an_input_of_another_width_is_refused(kind, k, others, device):
    # 57 .. 63 and 33 .. 40 fill the same tiles as 64 and 37: no kernel can tell
    layer = convert(kind, nn.Linear(k, 16)).to(device)
    assert layer(torch.randn(2, k, device=device)).shape == (2, 16)
    for width in others:
        with pytest.raises(RuntimeError, match=rf"^x: expected \[\.\.\., {k}\], got \[2, {width}\]"):
            layer(torch.randn(2, width, device=device))
    with pytest.raises(RuntimeError, match=rf"^x: expected \[\.\.\., {k}\], got \[\]"):
        layer(torch.tensor(1.0, device=device))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_layer_without_values_or_of_a_dtype_of_no_kernel_is_refused(kind):
    with pytest.raises(ValueError, match=r"^linear: expected a weight with values, got .*meta"):
        convert(kind, nn.Linear(16, 8, device="meta"))
    for dtype in (torch.float64, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match=rf"^dtype: expected .*float16 or bfloat16, got {dtype}"):
            convert(kind, nn.Linear(16, 8).to(dtype))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_autocast_sets_the_dtype_as_for_a_float_layer(kind):
    source = nn.Linear(64, 16)
    layer, x = convert(kind, source), torch.randn(3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == source(x).dtype == torch.bfloat16
    assert torch.equal(y, layer(x.bfloat16()))
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).float().square().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_vmap_and_its_gradient_are_those_of_the_batch(kind):
    layer, x = convert(kind, nn.Linear(64, 16)), torch.randn(5, 3, 64)
    # not bit for bit: the float layers' tiles sum in another order from 6 rows on
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    x.requires_grad_()
    alone = torch.autograd.grad(layer(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(torch.vmap(layer)(x).sum(), x)[0], alone)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("k,n", [(0, 8), (16, 0), (0, 0)])
def test_a_layer_without_inputs_or_outputs(kind, k, n):
    layer = convert(kind, nn.Linear(k, n))
    assert torch.equal(layer(torch.zeros(2, k)), layer.bias.expand(2, n))
    if kind in (Int4Linear, WeightOnlyLinear) and k == 0:
        with pytest.raises(ValueError, match=r"^group_size: expected None .*inputs, got 32"):
            kind.from_linear(nn.Linear(k, n), group_size=32)
