"""Every op that is registered has a CPU kernel, a fake kernel, an oracle and samples; opcheck; fullgraph
compile.
"""

import lowbit.ops
import pytest
import torch
from torch import Tensor

from tests.oracle import compare

from .samples import SAMPLES, call
from .support import ON_CPU, OPS, TORCH_DEVICE, place

REGISTERED = sorted(
    name.removeprefix("lowbit::").split(".")[0]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("lowbit::")
)
CALLS = [
    pytest.param(name, args, want, id=f"{name}-{i}")
    for name, samples in SAMPLES.items()
    for i, (args, want) in enumerate(samples())
]


def needs_kernel(name):
    key = torch.device(TORCH_DEVICE).type.upper()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lowbit::{name}", key):
        pytest.skip(f"{name} has no {key} kernel")


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def same(got, expected):
    """Results that the call has no use for are empty, by the oracle's word."""
    compare.exact(got, expected, allow_empty=not expected.size)


def test_nothing_is_missing():
    assert set(REGISTERED) == set(SAMPLES) == set(lowbit.ops.NAMES)


@pytest.mark.parametrize("name", REGISTERED)
def test_has_cpu_kernel_fake_kernel_samples_and_public_name(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lowbit::{name}", "CPU")
    assert torch._library.simple_registry.singleton.find(f"lowbit::{name}").fake_impl.kernel is not None
    assert list(SAMPLES[name]())
    assert getattr(lowbit.ops, name) is getattr(torch.ops.lowbit, name)


@pytest.mark.parametrize("name,args,want", CALLS)
def test_oracle(name, args, want, isa):
    for got, expected in zip(call(name, args), as_tuple(want), strict=True):
        same(got, expected)


@pytest.mark.parametrize("name,args,want", CALLS)
def test_opcheck(name, args, want):
    needs_kernel(name)
    torch.library.opcheck(getattr(OPS, name).default, place(name, args))


@pytest.mark.parametrize("name", ["hadamard", "dynamic_linear"])
def test_opcheck_with_gradient(name):
    for args, _ in SAMPLES[name]():
        args = place(name, args)
        args = (args[0].clone().requires_grad_(), *args[1:])
        torch.library.opcheck(getattr(OPS, name).default, args)


@pytest.mark.parametrize("name,args,want", CALLS)
def test_fake_result_has_the_real_shape(name, args, want):
    if not ON_CPU and name.startswith("prepack"):
        pytest.skip("a meta tensor gets the layout of the CPU")
    real = call(name, args)
    meta = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    for fake, actual in zip(call(name, meta), real, strict=True):
        assert fake.shape == actual.shape and fake.dtype == actual.dtype and fake.stride() == actual.stride()


@pytest.mark.parametrize("name,args,want", CALLS)
def test_compiles_in_one_graph(name, args, want):
    needs_kernel(name)
    args = place(name, args)

    def run(*inputs):
        return call(name, inputs, torch.ops.lowbit)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, expected in zip(compiled(*args), as_tuple(want), strict=True):
        same(got, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_compiles_a_chain(dynamic):
    """Ops between ordinary torch code, through the default backend, also at a second batch size."""
    args, _ = next(iter(SAMPLES["dynamic_linear"]()))
    for name in ("hadamard", "quantize_int8", "dynamic_linear"):
        needs_kernel(name)
    _, *layer = place("dynamic_linear", args)
    ops = torch.ops.lowbit

    def block(x):
        h = ops.hadamard(torch.relu(x) + 1, 0.125)
        q, scale = ops.quantize_int8(h)
        return ops.dynamic_linear(h, *layer) + scale.unsqueeze(-1) + q.float().mean()

    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic)
    for rows in (3, 5):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).to(TORCH_DEVICE)
        got, want = compiled(x), block(x)
        assert got.dtype == want.dtype and got.shape == want.shape
        error = (got - want).abs().max().item()
        assert error <= 1e-5 * want.abs().max().item()
    torch._dynamo.reset()
