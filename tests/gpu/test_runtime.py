"""What only a GPU can show: the current stream, CUDA graphs, compiled second calls, a second card."""

import os

import pytest
import torch
from lowbit.cuda_graph import StepGraph
from torch import Tensor

from tests.oracle import compare

from .calls import NOT_IN_A_MODEL, calls, run

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and os.environ.get("LOWBIT_TEST_DEVICE", "").startswith("cuda")),
    reason="needs a GPU, and pytest --device cuda",
)


def parameters():
    return [
        pytest.param(name, args, id=f"{name}-{i}")
        for i, (name, args, _) in enumerate(calls())
        if not name.startswith(NOT_IN_A_MODEL)
    ]


def first_float(args: tuple) -> Tensor:
    """The activation: what a model changes between two calls."""
    return next(a for a in args if isinstance(a, Tensor))


def another(x: Tensor) -> Tensor:
    """Other values that the op accepts as well."""
    return x.flip(0) if x.shape[0] > 1 else x.flip(-1)


def same(got: tuple, want: tuple) -> None:
    for g, w in zip(got, want, strict=True):
        compare.exact(g, w, allow_empty=True, nan_equal=True)


@pytest.mark.parametrize("name,args", parameters())
def test_current_stream(name, args):
    """The input is written late, on a side stream; an op on another stream would read what was there before.
    """
    x = first_float(args)
    good, rest = x.clone(), args[1:]
    want = run(name, (good, *rest))
    late = torch.zeros_like(good)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # some 50 ms
        late.copy_(good)
        got = run(name, (late, *rest))
    torch.cuda.synchronize()
    same(got, want)


@pytest.mark.parametrize("name,args", parameters())
def test_graph(name, args):
    """Captured once, replayed on other inputs in the same memory."""
    x, rest = first_float(args).clone(), args[1:]
    inputs = [x.clone(), another(x).clone()]
    want = [run(name, (i, *rest)) for i in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(name, (x, *rest))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(name, (x, *rest))
    for values, expected in zip(inputs, want, strict=True):
        x.copy_(values)
        for g in got:
            g.fill_(0)
        graph.replay()
        torch.cuda.synchronize()
        same(got, expected)


@pytest.mark.parametrize("name,args", parameters())
def test_bitwise_repeat(name, args):
    want = run(name, args)
    for _ in range(20):
        same(run(name, args), want)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_layer_gives_the_same_bits_at_every_call(mode):
    """The second and third call of a compiled layer: graphs are recorded and replayed then."""
    try:
        import triton  # noqa: F401  inductor's code generator
    except ImportError:
        pytest.skip("inductor needs triton on a GPU")
    layers = [
        args for name, args, _ in calls() if name == "dynamic_linear" and args[0].dtype == torch.float32
    ]
    if not layers:
        pytest.skip("dynamic_linear has no CUDA kernel")
    _, *rest = layers[0]

    def block(x: Tensor) -> Tensor:
        return torch.ops.lowbit.dynamic_linear(x, *rest) * 2

    compiled = torch.compile(block, fullgraph=True, mode=mode)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.randn(layers[0][0].shape, generator=generator).cuda()
        compare.exact(compiled(x).clone(), block(x))
    torch._dynamo.reset()


def test_arguments_on_two_devices_are_refused():
    for name, args, _ in calls():
        tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        if len(tensors) < 2:
            continue
        wrong = list(args)
        wrong[tensors[-1]] = args[tensors[-1]].cpu()
        with pytest.raises(RuntimeError, match=rf"{name}: \w+ is on cpu, expected cuda"):
            run(name, tuple(wrong))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_card():
    """Not the current device: the op must switch to its arguments' card and back."""
    for name, args, want in calls():
        moved = tuple(a.to("cuda:1") if isinstance(a, Tensor) else a for a in args)
        got = run(name, moved)
        assert torch.cuda.current_device() == 0 and all(g.device.index == 1 for g in got)
        same(got, want if isinstance(want, tuple) else (want,))


def test_the_calls_of_a_step_graph_share_one_memset():
    """Three products whose K is split: replays have the bits of plain calls, each with tickets of its own."""
    n, k = 256, 8192
    ops, card = torch.ops.lowbit, {"device": "cuda"}
    weights = [
        ops.prepack_int4_weight(torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, **card))
        for _ in range(3)
    ]
    scale = torch.rand(n, **card)

    def step(x: Tensor) -> Tensor:
        q, x_scale = ops.quantize_int8(x)
        ys = [ops.int4_linear(q, x_scale, w, scale, None, None, torch.float16) for w in weights]
        return torch.cat(ys, -1)

    inputs = [torch.randn(1, k, dtype=torch.float16, **card) for _ in range(4)]
    want = [step(x).clone() for x in inputs]
    graph = StepGraph(step, (inputs[0],))
    assert graph.tickets.words.numel() > 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        got = [graph((x,)).clone() for x in inputs]
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)
    cleared = [event for event in seen.events() if "memset" in event.name.lower()]
    assert len(cleared) <= len(inputs)
