"""WeightOnlyLinear and Fp4Linear: what they compute, what they store, what they refuse, adapters on top."""

import copy

import lowbit
import ml_dtypes
import numpy as np
import pytest
import torch
from lowbit import formats
from lowbit.nn import Fp4Linear, WeightOnlyLinear
from lowbit.quantizers import FloatWeight
from torch import nn

from tests.oracle import codec, compare, fp4
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

SIX = {"e3m2": ml_dtypes.float6_e3m2fn, "e2m3": ml_dtypes.float6_e2m3fn}
WEIGHT_ONLY = [
    dict(weight_format="e3m2"),
    dict(weight_format="e2m3"),
    dict(weight_format="e2m1"),
    dict(weight_format="e1m2"),
    dict(weight_format="e3m0", input_hadamard=12),
    dict(weight_format="int4"),
    dict(weight_format="e2m3", group_size=32),
    dict(weight_format="e3m2", group_size=64),
    dict(weight_format="e2m1", group_size=128),
    dict(weight_format="e2m1", group_size=32, scale_format="fp16", input_hadamard=0),
    dict(weight_format="int4", group_size=32),
    dict(weight_format="int4", group_size=64),
]
FP4 = [
    dict(weight_format="e2m1", activation_format="e2m1"),
    dict(weight_format="e1m2", activation_format="e3m0", clip=0.8),
    dict(weight_format="e3m0", activation_format="e1m2", input_hadamard=0),
    dict(weight_format="e2m1", activation_format="int8", input_hadamard=12),
]
BOTH = [(WeightOnlyLinear, o) for o in WEIGHT_ONLY] + [(Fp4Linear, o) for o in FP4]


def linear(k=96, n=37, bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(k, n, bias).to(dtype)
    with torch.no_grad():  # rows and columns of different sizes
        layer.weight *= (torch.rand(n, 1) * 3).to(dtype) * torch.logspace(-0.5, 0.5, k).to(dtype)
    return layer


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def table(name):
    """float64 [2^bits]: the value of every code, from ml_dtypes or written out by hand."""
    if name in SIX:
        return np.arange(64, dtype=np.uint8).view(SIX[name]).astype(np.float64)
    return np.arange(16.0) - 8 if name == "int4" else fp4.values(np.arange(16), name)


def unpack(packed, name, k):
    """Codes [N, K] out of the checkpoint's bytes, bit by bit."""
    bits = 6 if name in SIX else 4
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : bits * k].reshape(len(packed), k, bits)
    return (stream.astype(np.int64) << np.arange(bits)).sum(-1)


def stored_weight(layer):
    """(values of the codes, steps), float64 [N, K], read from the state dict."""
    state = {key: t.numpy() for key, t in layer.state_dict().items() if key != "bias"}
    k = layer.in_features
    values = table(layer.weight_format)[unpack(state["weight_packed"], layer.weight_format, k)]
    steps = np.repeat(state["weight_scale"].astype(np.float64), k, 1)
    if layer.group_size:
        s = state["weight_group_scale"]
        factor = 2.0 ** (s.astype(np.float64) - 127) if s.dtype == np.uint8 else s.astype(np.float64)
        steps = steps * factor[:, np.arange(k) // layer.group_size]
    return values, steps


@pytest.mark.parametrize("options", WEIGHT_ONLY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_weight_only_forward_is_the_oracle_of_the_stored_tensors(options, dtype, bias):
    layer = WeightOnlyLinear.from_linear(linear(bias=bias, dtype=dtype), **options)
    x = inputs(2, 5, 96, dtype=dtype)
    values, steps = stored_weight(layer)
    seen = x
    if (block := options.get("input_hadamard")) is not None:
        seen = lowbit.ops.hadamard(x, (block or 96) ** -0.5, block or 96)
    seen, w = compare.to_numpy(seen).astype(np.float64), values * steps
    b = compare.to_numpy(layer.bias).astype(np.float64) if bias else 0.0
    magnitude = np.abs(seen) @ np.abs(w).T + np.abs(b)
    first = layer(x)
    compare.bounded(first, seen @ w.T + b, magnitude, 96 + 8, str(dtype).removeprefix("torch."))
    compare.exact(layer(x), first)  # the second call finds tiles instead of codes


def stored_exactly(layer, x, shift=None, scale=None):
    """What DESIGN's contract makes of the stored tensors of an Fp4Linear."""
    state = {key: t.numpy() for key, t in layer.state_dict().items() if key != "bias"}
    h = compare.to_numpy(x)
    if layer.input_hadamard is not None:
        block = layer.input_hadamard or layer.in_features
        h = compare.to_numpy(lowbit.ops.hadamard(x, block**-0.5, block))
    if layer.activation_format == "int8":
        codes, steps = oracle.quantize_exact(h, 8, layer.clip)
    else:
        codes, steps = fp4.quantize_exact(h, layer.activation_format, scale, shift, layer.clip)
    w = unpack(state["weight_packed"], layer.weight_format, layer.in_features)
    b = None if layer.bias is None else compare.to_numpy(layer.bias).astype(np.float32)
    inputs, weights = (codes, layer.activation_format, steps), (w, layer.weight_format)
    return fp4.linear_exact(
        *inputs, *weights, state["weight_scale"][:, 0], b, str(x.dtype).removeprefix("torch.")
    )


@pytest.mark.parametrize("options", FP4, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_fp4_forward_is_exact(options, dtype, bias):
    layer = Fp4Linear.from_linear(linear(bias=bias, dtype=dtype), **options)
    x = inputs(2, 5, 96, dtype=dtype)
    want = stored_exactly(layer, x)
    compare.exact(layer(x), want)
    compare.exact(layer(x), want)


@pytest.mark.parametrize("fmt", formats.FP4_FORMATS)
@pytest.mark.parametrize("static", [False, True])
def test_pre_shift_and_static_scale(fmt, static, k=95):
    rng = np.random.default_rng(3)
    codes = torch.from_numpy(rng.integers(0, 16, (21, k)).astype(np.uint8))
    scale = torch.from_numpy(rng.uniform(0.01, 0.1, 21).astype(np.float32))
    exponent = torch.from_numpy(rng.integers(-3, 8, k).astype(np.int8))
    step = torch.tensor([0.37]) if static else None
    layer = Fp4Linear.from_weight(
        FloatWeight(codes, scale, None, None, "e2m1"), activation_format=fmt,
        clip=1.0 if static else 0.9, input_scale=step, input_exponent=exponent,
    )  # fmt: skip
    x = inputs(4, k)
    want = stored_exactly(layer, x, exponent.numpy(), 0.37 if static else None)
    compare.exact(layer(x), want)
    effective = fp4.values(codes.numpy(), "e2m1") * scale.numpy()[:, None] * 2.0 ** exponent.numpy()
    compare.elementwise(layer.weight, effective, 1e-6 * np.abs(effective))
    back = copy.deepcopy(layer)
    back.set_weight(layer.weight)  # the search finds these very values again
    compare.elementwise(back.weight, effective, 1e-5 * np.abs(effective).max(1, keepdims=True))


@pytest.mark.parametrize("kind,options", BOTH, ids=str)
def test_weight_is_near_and_every_code_is_nearest(kind, options):
    source = linear()
    layer = kind.from_linear(source, **options)
    values, steps = stored_weight(layer)
    target = source.weight.detach().double().numpy()
    if (block := options.get("input_hadamard")) is not None:
        target = had.transform(target, (block or 96) ** -0.5, block or None)
    error = np.abs(values * steps - target)
    best = np.abs(table(layer.weight_format) * steps[..., None] - target[..., None]).min(-1)
    assert (error <= best + 1e-6 * steps).all()  # fp32's rounding of the ratio may break a tie
    top = np.abs(table(layer.weight_format)[1:]).max() if layer.weight_format != "int4" else 7
    group = layer.group_size or 96
    parts = np.pad(np.abs(target), ((0, 0), (0, -96 % group))).reshape(37, -1, group).max(-1)
    plain = np.repeat(parts, group, 1)[:, :96] / top
    absmax = np.abs(table(layer.weight_format) * plain[..., None] - target[..., None]).min(-1)
    slack = 1.3 if layer.__dict__.get("scale_format") == "e8m0" else 1.0  # powers of two against any scale
    assert (error**2).sum() <= slack * (absmax**2).sum()  # the search may not lose to no search


@pytest.mark.parametrize("kind,options", BOTH, ids=str)
def test_weight_property_is_the_effective_weight(kind, options):
    layer = kind.from_linear(linear(), **options)
    values, steps = stored_weight(layer)
    effective = values * steps
    if (block := options.get("input_hadamard")) is not None:
        effective = had.transform(effective, (block or 96) ** -0.5, block or None, transpose=True)
    size = np.abs(effective).max()
    compare.elementwise(layer.weight, effective, np.full_like(effective, 1e-6 * size))
    assert layer.weight.dtype == torch.float32 and layer.weight.shape == (37, 96)
    assert isinstance(layer, nn.Linear)


@pytest.mark.parametrize("kind,options", BOTH, ids=str)
@pytest.mark.parametrize("k", [96, 95])
def test_state_dict_round_trip(kind, options, k, tmp_path):
    if k == 95 and options.get("input_hadamard") is not None:
        pytest.skip("there is no Hadamard matrix of 95")
    layer, x = kind.from_linear(linear(k), **options), inputs(4, k)
    before = {key: t.clone() for key, t in layer.state_dict().items()}
    want = layer(x)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = kind(k, 37, **options)
    other(x)  # it holds tiles of its own already
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    other.validate()
    compare.exact(other(x), want)
    for key, value in before.items():  # through the tiles and back, to the byte
        assert torch.equal(layer.state_dict()[key], value), key
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize(
    "options,shapes",
    [
        (
            dict(weight_format="e2m3", group_size=32),
            {"weight_packed": ("uint8", (37, 72)), "weight_group_scale": ("uint8", (37, 3))},
        ),
        (
            dict(weight_format="e2m1", group_size=64),
            {"weight_packed": ("uint8", (37, 48)), "weight_group_scale": ("float16", (37, 2))},
        ),
        (dict(weight_format="int4"), {"weight_packed": ("uint8", (37, 48))}),
    ],
)
def test_state_dict_holds_the_documented_tensors(options, shapes):
    layer = WeightOnlyLinear.from_linear(linear(k=95), **options)
    state = layer.state_dict()
    got = {key: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for key, t in state.items()}
    assert got == shapes | {
        "weight_scale": ("float32", (37, 1)), "weight_meta": ("int64", (5,)), "bias": ("float32", (37,)),
    }
    ids = {"e2m3": 4, "e2m1": 5, "int4": 1}
    assert state["weight_meta"].tolist() == [ids[layer.weight_format], 1, 37, 95, layer.group_size or 0]
    if layer.weight_format == "int4":
        assert (codec.unpack_nibbles(state["weight_packed"].numpy())[:, 95] == 0).all()


def test_memory_is_not_doubled_after_the_first_forward():
    layer = WeightOnlyLinear.from_linear(linear(k=256, n=64, bias=False))
    before = sum(b.numel() * b.element_size() for b in layer.buffers())
    assert before <= 64 * 256 * 6 // 8 + 64 * 4 + 5 * 8
    layer(inputs(1, 256))
    assert sum(b.numel() * b.element_size() for b in layer.buffers()) <= before + 1024


def _set(t, index, value):
    t[index] = value
    return t


E8M0 = (WeightOnlyLinear, dict(weight_format="e2m1", group_size=32))
FP16 = (WeightOnlyLinear, dict(weight_format="e2m3", group_size=64))
STATIC = (Fp4Linear, dict(static_scale=True, pre_shift=True))
DAMAGE = {
    "nan scale": (E8M0, "weight_scale", lambda t: _set(t, (3, 0), float("nan")), "finite scales above 0"),
    "zero scale": (STATIC, "weight_scale", lambda t: _set(t, (0, 0), 0.0), "finite scales above 0"),
    "e8m0 nan": (E8M0, "weight_group_scale", lambda t: _set(t, (0, 1), 255), "E8M0 codes 0..254, got 1 of"),
    "fp16 nan": (FP16, "weight_group_scale", lambda t: _set(t, (0, 1), float("nan")), "finite scales above"),
    "fp16 inf": (FP16, "weight_group_scale", lambda t: _set(t, (0, 1), float("inf")), "finite scales above"),
    "fp16 zero": (FP16, "weight_group_scale", lambda t: _set(t, (1, 0), 0.0), "finite scales above 0, got 1"),
    "fp16 negative": (FP16, "weight_group_scale", lambda t: -t, "finite scales above 0, got 74"),
    "static scale": (STATIC, "input_scale", lambda t: t * float("nan"), "finite scales above 0, got 1"),
    "other format": (FP16, "weight_meta", lambda t: _set(t, 0, 3), "format e2m3, got e3m2"),
    "unknown format": (FP16, "weight_meta", lambda t: _set(t, 0, 77), "got unknown format id 77"),
    "other version": (E8M0, "weight_meta", lambda t: _set(t, 1, 99), "format version 1, got 99; a newer"),
    "other K": (E8M0, "weight_meta", lambda t: _set(t, 3, 95), "= .*96.*got .*95"),
    "other group": (FP16, "weight_meta", lambda t: _set(t, 4, 32), "= .*64.*got .*32"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors_are_refused_by_name(damage):
    (kind, options), name, change, words = DAMAGE[damage]
    layer = kind(96, 37, **options)
    layer.set_weight(linear().weight)
    layer.validate("model")
    state = layer.state_dict()
    state[name] = change(state[name].clone())
    layer.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"^model\.{name}: expected .*{words}") as caught:
        layer.validate("model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "case,name,change",
    [
        (E8M0, "weight_packed", lambda t: t[:, :-1]),
        (E8M0, "weight_group_scale", lambda t: t[:, :-1]),
        (FP16, "weight_packed", lambda t: t[:-1]),
        (STATIC, "input_exponent", lambda t: t[:-1]),
        (STATIC, "input_scale", lambda t: torch.cat([t, t])),
    ],
)
def test_cut_tensors_do_not_load(case, name, change):
    kind, options = case
    state = kind(96, 37, **options).state_dict()
    state[name] = change(state[name])
    with pytest.raises(RuntimeError, match=name):
        kind(96, 37, **options).load_state_dict(state)


@pytest.mark.parametrize(
    "kind,options,words",
    [
        (WeightOnlyLinear, dict(weight_format="e4m3"), "weight_format: expected one of int4, .*got 'e4m3'"),
        (WeightOnlyLinear, dict(group_size=48), "group_size: expected None, 32, 64 or 128, got 48"),
        (WeightOnlyLinear, dict(input_hadamard=5), "input_hadamard: expected None, 0 or a divisor of 96"),
        (WeightOnlyLinear, dict(scale_format="fp16"), "scale_format: expected it with group_size alone"),
        (WeightOnlyLinear, dict(group_size=64, scale_format="e8m0"), "e8m0 for groups of 32 .*groups of 64"),
        (WeightOnlyLinear, dict(group_size=32, scale_format="mx"), "expected None, e8m0 or fp16, got 'mx'"),
        (
            WeightOnlyLinear,
            dict(weight_format="int4", group_size=32, scale_format="e8m0"),
            "scale_format: expected e8m0 .*got it for int4",
        ),
        (Fp4Linear, dict(weight_format="e2m3"), "weight_format: expected one of e2m1, .* got 'e2m3'"),
        (Fp4Linear, dict(activation_format="int4"), "activation_format: expected one of .*int8, got 'int4'"),
        (Fp4Linear, dict(clip=0.0), r"clip: expected a value in \(0, 1\], got 0"),
    ],
)
def test_bad_options_are_refused(kind, options, words):
    with pytest.raises(ValueError, match=words):
        kind(96, 37, **options)
    with pytest.raises(ValueError, match=words):
        kind.from_linear(linear(), **options)


def test_other_refusals():
    for options in (dict(static_scale=True), dict(pre_shift=True)):
        with pytest.raises(ValueError, match="activation_format: expected FP4 with static_scale"):
            Fp4Linear(96, 37, activation_format="int8", **options)
    with pytest.raises(ValueError, match=r"clip: expected 1 with static_scale, .*got 0.5"):
        Fp4Linear(96, 37, static_scale=True, clip=0.5)
    for kind in (WeightOnlyLinear, Fp4Linear):
        with pytest.raises(TypeError, match=r"linear: expected nn.Linear, got Conv1d"):
            kind.from_linear(nn.Conv1d(3, 3, 1))
    codes = torch.full((4, 8), 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"codes: expected values in 0..15, got 16..16"):
        Fp4Linear.from_weight(FloatWeight(codes, torch.ones(4), None, None, "e2m1"))
    with pytest.raises(ValueError, match=r"codes: expected torch.uint8 \[N, K\] for e2m3, got torch.int8"):
        WeightOnlyLinear.from_weight(FloatWeight(codes.to(torch.int8), torch.ones(4), None, None, "e2m3"))
    with pytest.raises(ValueError, match="weight_scale: expected finite"):
        scale = torch.tensor([1, 1, 1, float("nan")])
        WeightOnlyLinear.from_weight(FloatWeight(codes, scale, None, None, "e2m3"))
    with pytest.raises(ValueError, match=r"weight: expected \[37, 96\], got \[96, 37\]"):
        WeightOnlyLinear(96, 37).set_weight(torch.zeros(96, 37))


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("kind,options", [E8M0, FP16, (Fp4Linear, {}), STATIC], ids=str)
def test_casts_keep_scales_and_codes(kind, options, prepared):
    layer = kind(96, 37, **options)
    layer.set_weight(linear().weight)
    state = {key: t.clone() for key, t in layer.state_dict().items()}
    x = inputs(2, 96, dtype=torch.bfloat16)
    want = layer(x) if prepared else copy.deepcopy(layer)(x)
    for dtype in (torch.bfloat16, torch.float16):
        cast = copy.deepcopy(layer).to(dtype)
        assert cast.weight.dtype == dtype and cast.bias.dtype == dtype
        for key in set(state) - {"bias"}:
            assert cast.state_dict()[key].dtype == state[key].dtype, key
            assert torch.equal(cast.state_dict()[key], state[key]), key
        compare.exact(cast(x), want)


@pytest.mark.parametrize("kind", [WeightOnlyLinear, Fp4Linear])
def test_empty_and_vector_inputs(kind):
    layer = kind.from_linear(linear())
    assert layer(torch.empty(0, 96)).shape == (0, 37)
    assert layer(torch.empty(2, 0, 96)).shape == (2, 0, 37)
    compare.exact(layer(inputs(1, 96)[0]), layer(inputs(1, 96))[0])
    assert "weight_format=e2m" in repr(layer)


@pytest.mark.parametrize("kind,options", [*BOTH[4:8], *BOTH[-3:], STATIC], ids=str)
def test_gradient_passes_through_to_the_input(kind, options):
    layer = kind(96, 37, **options)
    layer.set_weight(linear().weight)
    x = inputs(3, 96).requires_grad_()
    layer(x).sum().backward()
    want = layer.weight.detach().double().sum(0).expand(3, 96).numpy()
    size = layer.dequantize().abs().double().sum().expand(3, 96).numpy()  # a Hadamard mixes all columns
    compare.bounded(x.grad, want, size, 2 * 37, "float32")
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("kind,options", [BOTH[6], BOTH[9], BOTH[-4], BOTH[-1]], ids=str)
def test_compiles_in_one_graph(kind, options):
    layer = kind.from_linear(linear(), **options)
    x = inputs(4, 96)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compare.exact(compiled(x), want)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [WeightOnlyLinear, Fp4Linear])
def test_peft_lora_trains_on_top_and_merges(kind):
    peft = pytest.importorskip("peft")
    net = nn.Sequential(kind.from_linear(linear(96, 64)), nn.ReLU(), kind.from_linear(linear(64, 5)))
    x, goal = inputs(32, 96), torch.randn(32, 5, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = net(x)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = peft.get_peft_model(
        net, peft.LoraConfig(r=8, target_modules=["0", "2"], init_lora_weights=True)
    )
    with torch.no_grad():
        compare.exact(model(x), plain)  # LoRA starts as nothing
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.5 * losses[0]
    for name, module in model.named_modules():
        if isinstance(module, kind):
            for key, value in module.state_dict().items():
                short = name.split(".")[-2]
                assert torch.equal(value, before[f"{short}.{key}"]), f"{name}.{key} moved"
    if kind is WeightOnlyLinear:
        with torch.no_grad():
            want = model(x)
            got = model.merge_and_unload()(x)
        assert ((got - want).norm() / want.norm()).item() <= 0.1


def test_a_move_to_another_kind_of_device_leaves_the_tiles_behind():
    """Tiles are private to a backend: the portable codes travel, to be packed anew."""
    layer = WeightOnlyLinear.from_linear(linear(), group_size=64)
    layer.prepare()
    assert layer._tiles is not None and layer.weight_packed is None
    layer.to("meta")
    assert layer._tiles is None and layer._group_tiles is None
    assert layer.weight_packed.device.type == "meta" and list(layer.weight_packed.shape) == [37, 72]
    assert layer.weight_group_scale.dtype == torch.float16


def test_public_names():
    assert lowbit.nn.WeightOnlyLinear is WeightOnlyLinear and lowbit.nn.Fp4Linear is Fp4Linear
    assert torch.equal(formats.round_to(torch.tensor([0.9, -31.0]), "e3m2"), torch.tensor([0.875, -28.0]))
