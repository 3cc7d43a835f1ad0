"""StaticInt4Linear: what it computes, what it stores, what it refuses."""

import copy

import numpy as np
import pytest
import torch
from lowbit.nn import Int4Linear, StaticInt4Linear
from lowbit.quantizers import IntegerScheme, rtn
from torch import nn

from tests.oracle import codec, compare
from tests.oracle import hadamard as had

K, N = 96, 37
LOWEST = {4: -8, 8: -127}
HIGHEST = {4: 7, 8: 127}
OPTIONS = [
    dict(activation_bits=4),
    dict(activation_bits=8),
    dict(activation_bits=4, group_size=32, shift=True),
    dict(activation_bits=4, gathered=109, shift=True),
    dict(activation_bits=8, gathered=83, step=False),
    dict(activation_bits=4, input_hadamard=0, shift=True, group_size=64),
    dict(activation_bits=4, input_hadamard=12, gathered=101, rank=3),
    dict(activation_bits=4, step=False, shift=True, bias=False),
]


def build(activation_bits=4, group_size=None, input_hadamard=None, gathered=None, step=True, shift=False,
          rank=0, bias=True, dtype=torch.float32, seed=0):  # fmt: skip
    """A layer of random tensors."""
    g = torch.Generator().manual_seed(seed)
    k = gathered or K
    q = rtn(torch.randn(N, k, generator=g), IntegerScheme(4, group_size))
    index = None
    if gathered is not None:
        index = torch.randint(0, K, (k,), generator=g).sort().values.int()
    inverse = torch.rand(k, generator=g) * 4 + 1 if step else None
    return StaticInt4Linear.from_weight(
        q, K, torch.randn(N, generator=g).to(dtype) if bias else None, activation_bits, input_hadamard, index,
        inverse, torch.randn(k, generator=g) if shift else None,
        (torch.randn(N, rank, generator=g) * 0.1, torch.randn(rank, k, generator=g) * 0.1) if rank else None,
        dtype,
    )  # fmt: skip


def inputs(*shape, dtype=torch.float32):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(7))).to(dtype)


def expected(layer, x):
    """(what the layer computes, fp64, an allowance for codes on a tie), from its state dict alone."""
    state = {k: compare.to_numpy(v) for k, v in layer.state_dict().items()}
    v = compare.to_numpy(x).astype(np.float64)
    if layer.input_hadamard is not None:
        n = layer.input_hadamard or K
        v = had.transform(v, n**-0.5, n)
    if "input_index" in state:
        v = v[..., state["input_index"]]
    if "input_inverse_step" in state:
        v = v * state["input_inverse_step"]
    if "input_shift" in state:
        v = v - state["input_shift"]
    bits = layer.activation_bits
    codes = np.rint(np.clip(v, LOWEST[bits], HIGHEST[bits]))
    tie = np.abs(np.abs(v - np.floor(v)) - 0.5) <= 1e-4
    q = codec.unpack_nibbles(state["weight_packed"], layer.stored_features).astype(np.float64)
    if "weight_group_scale" in state:
        size = layer.group_size
        q = q * state["weight_group_scale"].astype(np.float64)[:, np.arange(q.shape[1]) // size]
    w = q * state["weight_scale"].astype(np.float64)
    if "low_rank_up" in state:
        w = w + state["low_rank_up"].astype(np.float64) @ state["low_rank_down"]
    y = codes @ w.T + state.get("bias", 0.0)
    slack = tie.astype(np.float64) @ np.abs(w).T + 1e-5 * (np.abs(codes) @ np.abs(w).T + np.abs(y)) + 1e-6
    return y, slack


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_what_the_stored_tensors_say(options, dtype):
    layer = build(**options, dtype=dtype)
    x = inputs(2, 5, K, dtype=dtype)
    want, slack = expected(layer, x)
    for _ in range(2):  # the second call finds tiles instead of codes
        got = layer(x)
        assert got.dtype == dtype
        rounding = 2.0**-8 if dtype == torch.bfloat16 else 0.0
        error = np.abs(compare.to_numpy(got).astype(np.float64) - want)
        assert (error <= slack + rounding * np.abs(want)).all()


def test_codes_clamp_at_both_ends():
    layer = build(activation_bits=4)
    layer.input_inverse_step.fill_(1.0)
    x = torch.full((2, K), 100.0)
    x[1] = -100.0
    codes = layer.quantize_input(x)
    assert (codes[0] == 0xFF).all() and (codes[1] == 0x00).all()  # 7 and -8, offset by 8
    eight = build(activation_bits=8)
    eight.input_inverse_step.fill_(10.0)
    codes = eight.quantize_input(x)
    assert codes.dtype == torch.int8 and (codes[0] == 127).all() and (codes[1] == -127).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("after_forward", [False, True])
def test_state_dict_round_trip(options, after_forward):
    layer = build(**options)
    x = inputs(4, K)
    want = layer(x)
    state = layer.state_dict()
    other = StaticInt4Linear(**layer.options())
    if after_forward:
        other(x)
    other.load_state_dict(state)
    other.validate()
    assert torch.equal(other(x), want)
    assert set(other.state_dict()) == set(state) == set(layer.tensors()) | ({"bias"} & set(state))
    for key, value in state.items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weight_is_the_effective_weight(options):
    """linear(x, weight) is the layer without rounding of the input, but for what shift and bias add."""
    layer = build(**options)
    x = inputs(9, K).double()
    v = x
    if layer.input_hadamard is not None:
        n = layer.input_hadamard or K
        v = torch.from_numpy(had.transform(x.numpy(), n**-0.5, n))
    v = v if layer.gathered is None else v[:, layer.input_index.long()]
    v = v * layer.input_inverse_step.double() if layer.input_step else v
    want = v @ layer.dequantize().double().T
    got = x @ layer.weight.double().T
    assert layer.weight.shape == (N, K)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_set_weight_rounds_in_integer_units(options):
    layer = build(**options)
    before = layer.bias.clone() if layer.bias is not None else None
    old = layer.dequantize()
    if layer.gathered is not None:
        target = layer.weight.data * 1.5  # only gathered inputs can be set
    else:
        target = torch.randn(N, K, generator=torch.Generator().manual_seed(3))
    stored = layer._to_stored(target)
    layer.set_weight(target)
    want = rtn(stored, IntegerScheme(4, layer.group_size))
    assert torch.equal(layer.codes().codes, want.codes)
    assert torch.equal(layer.dequantize(), want.dequantize())  # the compensation is gone
    error = (layer.weight - target).norm() / target.norm()
    assert error <= 0.25
    if layer.mean_shift and before is not None:
        change = (stored.float() - old) @ layer.input_shift
        torch.testing.assert_close(layer.bias.data, before + change, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"weight: expected \[37, 96\], got \[37, 95\]"):
        layer.set_weight(target[:, 1:])


def test_from_linear_is_near_the_linear():
    torch.manual_seed(0)
    linear = nn.Linear(K, N)
    x = inputs(64, K)
    step = x.abs().amax(0) / 127
    layer = StaticInt4Linear.from_linear(linear, step, activation_bits=8)
    want = linear(x)
    assert ((layer(x) - want).norm() / want.norm()).item() <= 0.15
    assert isinstance(layer, nn.Linear) and not any(p.requires_grad for p in layer.parameters())
    with pytest.raises(ValueError, match=r"step: expected \[96\], got \[95\]"):
        StaticInt4Linear.from_linear(linear, step[1:])


def test_static_codes_need_no_statistics_of_the_token():
    """A token's row does not depend on its scale as a dynamic layer's does: twice the input, other codes."""
    layer, x = build(activation_bits=4), inputs(1, K) * 0.2
    one, two = layer.quantize_input(x), layer.quantize_input(2 * x)
    assert not torch.equal(one, two)


def _damage(name, change):
    def edit(state):
        state[name] = change(state[name].clone())

    return name, edit


def _set(t, index, value):
    t[index] = value
    return t


DAMAGE = {
    "negative index": _damage("input_index", lambda t: _set(t, 3, -1)),
    "index too large": _damage("input_index", lambda t: _set(t, 3, K)),
    "zero step": _damage("input_inverse_step", lambda t: _set(t, 0, 0.0)),
    "negative step": _damage("input_inverse_step", lambda t: -t),
    "infinite step": _damage("input_inverse_step", lambda t: _set(t, 5, float("inf"))),
    "nan shift": _damage("input_shift", lambda t: _set(t, 5, float("nan"))),
    "nan down": _damage("low_rank_down", lambda t: _set(t, (0, 5), float("nan"))),
    "infinite up": _damage("low_rank_up", lambda t: _set(t, (5, 0), float("inf"))),
    "nan scale": _damage("weight_scale", lambda t: _set(t, (3, 0), float("nan"))),
    "other K": _damage("weight_meta", lambda t: _set(t, 3, K)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors_are_refused_by_name(damage):
    name, edit = DAMAGE[damage]
    source = build(gathered=109, shift=True, rank=2)
    state = source.state_dict()
    edit(state)
    layer = StaticInt4Linear(**source.options())
    layer.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"^model\.{name}: expected .*got "):
        layer.validate("model")


@pytest.mark.parametrize(
    "options,words",
    [
        (dict(activation_bits=5), "activation_bits: expected 4 or 8, got 5"),
        (dict(gathered=-1), "gathered: expected 0 or more, got -1"),
        (dict(rank=-2), "rank: expected 0 or more, got -2"),
        (dict(group_size=48), "group_size: expected None, 32, 64 or 128, got 48"),
        (dict(input_hadamard=5), "input_hadamard: expected None, 0 or a divisor of 96, got 5"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        StaticInt4Linear(K, N, **options)


def test_gradient_passes_through_to_the_input():
    layer = build(shift=True)
    x = inputs(3, K).requires_grad_()
    layer(x).sum().backward()
    want = layer.weight.detach().double().sum(0).expand(3, K)
    assert (x.grad.double() - want).abs().max() <= 1e-4 * want.abs().max()


def test_casts_and_copies_keep_the_codes():
    layer = build(gathered=109, shift=True)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    half = copy.deepcopy(layer).to(torch.bfloat16)
    for key, value in state.items():
        if key != "bias":
            assert torch.equal(half.state_dict()[key], value), key
    assert half(inputs(2, K, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(layer)(inputs(2, K)), layer(inputs(2, K)))
    assert layer(torch.empty(0, K)).shape == (0, N)


def test_compiles_in_one_graph():
    layer = build(gathered=109, shift=True, input_hadamard=0)
    x = inputs(4, K)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)
    torch._dynamo.reset()


def test_it_is_no_dynamic_layer():
    assert not isinstance(build(), Int4Linear)
