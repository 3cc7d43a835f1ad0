"""Int4Linear and Int8Linear: what they compute, what they store, what they refuse, and adapters on top."""

import copy

import lowbit
import numpy as np
import pytest
import torch
from lowbit.nn import Int4Linear, Int8Linear
from torch import nn

from tests.oracle import codec, compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

OPTIONS = [
    (Int4Linear, dict(activation_bits=4)),
    (Int4Linear, dict(activation_bits=8)),
    (Int4Linear, dict(activation_bits=8, group_size=32)),
    (Int4Linear, dict(activation_bits=4, group_size=64, clip=0.9)),
    (Int4Linear, dict(activation_bits=4, input_hadamard=0)),
    (Int4Linear, dict(activation_bits=8, group_size=128, input_hadamard=12)),
    (Int8Linear, dict(activation_bits=8)),
    (Int8Linear, dict(activation_bits=4, input_hadamard=0, clip=0.8)),
]


def linear(k=96, n=37, bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(k, n, bias).to(dtype)


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def stored_weight(layer):
    """(integer weight [N, K], scale [N]) read from the state dict by the oracle's own unpackers."""
    state = layer.state_dict()
    n, k = layer.out_features, layer.in_features
    if "weight_packed" in state:
        q = codec.unpack_nibbles(state["weight_packed"].numpy(), k)
    else:
        q = state["weight_int8"].numpy().astype(np.int64)
    s = state["weight_group_scale"].numpy() if "weight_group_scale" in state else None
    assert q.shape == (n, k)
    return oracle.integer_weight(q, s, layer.group_size), state["weight_scale"].numpy()[:, 0]


@pytest.mark.parametrize("kind,options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_oracle_of_the_stored_tensors(kind, options, dtype, bias):
    layer = kind.from_linear(linear(bias=bias, dtype=dtype), **options)
    x = inputs(2, 5, 96, dtype=dtype)
    w, scale = stored_weight(layer)
    b = compare.to_numpy(layer.bias).astype(np.float32) if bias else None
    want = oracle.dynamic_linear_exact(
        compare.to_numpy(x),
        w,
        scale,
        b,
        options["activation_bits"],
        options.get("clip", 1.0),
        options.get("input_hadamard"),
    )
    compare.exact(layer(x), want)
    compare.exact(layer(x), want)  # the second call finds tiles instead of codes


@pytest.mark.parametrize("kind,options", OPTIONS, ids=str)
def test_weight_is_near_and_every_code_is_nearest(kind, options):
    source = linear()
    layer = kind.from_linear(source, **options)
    w, scale = stored_weight(layer)
    target = source.weight.detach().double().numpy()
    if (block := options.get("input_hadamard")) is not None:
        target = had.transform(target, (block or 96) ** -0.5, block or None)
    group = options.get("group_size")
    steps = scale.astype(np.float64)[:, None] * np.ones((1, 96))
    if group:
        s = layer.state_dict()["weight_group_scale"].numpy()
        steps = steps * s[:, np.arange(96) // group]
    codes = np.round(w * scale[:, None] / steps)
    top = 7 if kind is Int4Linear else 127
    nearest = np.clip(np.rint(target / steps), -top, top)
    assert (codes != nearest).mean() <= 1e-3  # ties within the rounding of fp32
    assert np.abs(codes - nearest).max() <= 1
    plain = np.abs(target).max(1, keepdims=True) / top
    error = ((w * scale[:, None] - target) ** 2).sum()
    absmax_error = ((np.clip(np.rint(target / plain), -top, top) * plain - target) ** 2).sum()
    assert error <= 1.05 * absmax_error  # the clip search may not lose to no search


@pytest.mark.parametrize("kind,options", OPTIONS, ids=str)
def test_weight_property_is_the_effective_weight(kind, options):
    layer = kind.from_linear(linear(), **options)
    w, scale = stored_weight(layer)
    effective = w * scale.astype(np.float64)[:, None]
    if (block := options.get("input_hadamard")) is not None:
        effective = had.transform(effective, (block or 96) ** -0.5, block or None, transpose=True)
    size = np.abs(effective).max()
    compare.elementwise(layer.weight, effective, np.full_like(effective, 1e-6 * size))
    assert layer.weight.dtype == torch.float32 and layer.weight.shape == (37, 96)
    assert isinstance(layer, nn.Linear)


@pytest.mark.parametrize("kind,options", OPTIONS, ids=str)
@pytest.mark.parametrize("after_forward", [False, True])
def test_state_dict_round_trip(kind, options, after_forward, tmp_path):
    layer = kind.from_linear(linear(), **options)
    x = inputs(4, 96)
    want = kind.from_linear(linear(), **options)(x)
    if after_forward:
        layer(x)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = kind(96, 37, **options)
    if after_forward:
        other(x)  # it holds tiles of its own already
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    other.validate()
    compare.exact(other(x), want)
    for key, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_state_dict_holds_the_documented_tensors():
    state = Int4Linear.from_linear(linear(k=95), group_size=32).state_dict()
    shapes = {key: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for key, t in state.items()}
    assert shapes == {
        "weight_packed": ("uint8", (37, 48)),
        "weight_scale": ("float32", (37, 1)),
        "weight_group_scale": ("uint8", (37, 3)),
        "weight_meta": ("int64", (5,)),
        "bias": ("float32", (37,)),
    }
    assert state["weight_meta"].tolist()[2:] == [37, 95, 32]
    s = state["weight_group_scale"]
    assert s.min() >= 1 and s.max() <= 16
    codes = codec.unpack_nibbles(state["weight_packed"].numpy(), 96)
    assert codes.min() >= -7 and (codes[:, 95] == 0).all()


def test_memory_is_not_doubled_after_the_first_forward():
    layer = Int4Linear.from_linear(linear(k=256, n=64, bias=False))
    before = sum(b.numel() * b.element_size() for b in layer.buffers())
    layer(inputs(1, 256))
    assert sum(b.numel() * b.element_size() for b in layer.buffers()) <= before + 1024


def _edit(name, change):
    def damage(state):
        state[name] = change(state[name].clone())

    return damage


def _set(t, index, value):
    t[index] = value
    return t


DAMAGE = {
    "nan scale": ("weight_scale", _edit("weight_scale", lambda t: _set(t, (3, 0), float("nan")))),
    "negative scale": ("weight_scale", _edit("weight_scale", lambda t: -t)),
    "zero scale": ("weight_scale", _edit("weight_scale", lambda t: _set(t, (0, 0), 0.0))),
    "infinite scale": ("weight_scale", _edit("weight_scale", lambda t: _set(t, (1, 0), float("inf")))),
    "group scale 0": ("weight_group_scale", _edit("weight_group_scale", lambda t: _set(t, (0, 0), 0))),
    "group scale 17": ("weight_group_scale", _edit("weight_group_scale", lambda t: _set(t, (2, 1), 17))),
    "other format": ("weight_meta", _edit("weight_meta", lambda t: _set(t, 0, 77))),
    "other version": ("weight_meta", _edit("weight_meta", lambda t: _set(t, 1, 99))),
    "other N": ("weight_meta", _edit("weight_meta", lambda t: _set(t, 2, 36))),
    "other K": ("weight_meta", _edit("weight_meta", lambda t: _set(t, 3, 95))),
    "other group": ("weight_meta", _edit("weight_meta", lambda t: _set(t, 4, 64))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors_are_refused_by_name(damage):
    name, edit = DAMAGE[damage]
    state = Int4Linear.from_linear(linear(), group_size=32).state_dict()
    edit(state)
    layer = Int4Linear(96, 37, group_size=32)
    layer.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"^model\.{name}: expected .*got "):
        layer.validate("model")


@pytest.mark.parametrize(
    "name,change",
    [
        ("weight_packed", lambda t: t[:, :-1]),
        ("weight_packed", lambda t: t[:-1]),
        ("weight_scale", lambda t: t[:-1]),
        ("weight_group_scale", lambda t: t[:, :-1]),
        ("weight_meta", lambda t: t[:4]),
    ],
)
def test_cut_tensors_do_not_load(name, change):
    state = Int4Linear.from_linear(linear(), group_size=32).state_dict()
    state[name] = change(state[name])
    with pytest.raises(RuntimeError, match=name):
        Int4Linear(96, 37, group_size=32).load_state_dict(state)


@pytest.mark.parametrize(
    "options,words",
    [
        (dict(activation_bits=5), "activation_bits: expected 4 or 8, got 5"),
        (dict(group_size=48), "group_size: expected None, 32, 64 or 128, got 48"),
        (dict(clip=0.0), r"clip: expected a value in \(0, 1\], got 0"),
        (dict(clip=float("nan")), r"clip: expected a value in \(0, 1\], got nan"),
        (dict(input_hadamard=5), "input_hadamard: expected None, 0 or a divisor of 96, got 5"),
        (dict(input_hadamard=-1), "input_hadamard: .*got -1"),
        (dict(input_hadamard=6), "6 has no constructed Hadamard"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Int4Linear(96, 37, **options)
    with pytest.raises(ValueError, match=words):
        Int4Linear.from_linear(linear(), **options)


def test_other_refusals():
    with pytest.raises(ValueError, match="group_size: expected None for Int8Linear, got 32"):
        Int8Linear(96, 37, group_size=32)
    with pytest.raises(TypeError, match=r"linear: expected nn.Linear, got Conv1d"):
        Int4Linear.from_linear(nn.Conv1d(3, 3, 1))
    bad = linear()
    with torch.no_grad():
        bad.weight[2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"weight: expected finite values, got NaN or inf"):
        Int4Linear.from_linear(bad)
    codes = torch.full((4, 8), -8, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"codes: expected values in -7..7, got -8"):
        Int4Linear.from_codes(codes, torch.ones(4))
    with pytest.raises(ValueError, match=r"codes: expected int8 \[N, K\], got torch.float32"):
        Int4Linear.from_codes(codes.float(), torch.ones(4))
    with pytest.raises(ValueError, match="weight_scale"):
        Int4Linear.from_codes(torch.zeros_like(codes), torch.tensor([1, 1, 1, float("nan")]))


def test_from_codes_keeps_the_codes_and_the_shift():
    rng = np.random.default_rng(0)
    q = rng.integers(-7, 8, (21, 40))
    s = rng.integers(1, 17, (21, 2)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, 21).astype(np.float32)
    bias, shift = rng.standard_normal(21).astype(np.float32), rng.standard_normal(40).astype(np.float32)
    layer = Int4Linear.from_codes(
        torch.from_numpy(q.astype(np.int8)),
        torch.from_numpy(scale),
        torch.from_numpy(s),
        torch.from_numpy(bias),
        group_size=32,
        activation_bits=8,
        input_shift=torch.from_numpy(shift),
        input_hadamard=8,
    )
    x = inputs(3, 40)
    want = oracle.dynamic_linear_exact(
        x.numpy(), oracle.integer_weight(q, s, 32), scale, bias, 8, 1.0, 8, shift
    )
    compare.exact(layer(x), want)
    w, _ = stored_weight(layer)
    compare.exact(w, oracle.integer_weight(q, s, 32))


def test_casts_keep_scales_and_codes():
    layer = Int4Linear.from_linear(linear(), group_size=32)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.weight.dtype == torch.bfloat16 and half.bias.dtype == torch.bfloat16
    for key in ("weight_packed", "weight_scale", "weight_group_scale", "weight_meta"):
        assert torch.equal(half.state_dict()[key], state[key]), key
    assert half(inputs(2, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_pickles_and_copies():
    layer = Int4Linear.from_linear(linear(), group_size=32)
    x = inputs(2, 96)
    want = layer(x)
    compare.exact(copy.deepcopy(layer)(x), want)


def test_empty_and_vector_inputs():
    layer = Int4Linear.from_linear(linear())
    assert layer(torch.empty(0, 96)).shape == (0, 37)
    assert layer(torch.empty(2, 0, 96)).shape == (2, 0, 37)
    compare.exact(layer(inputs(1, 96)[0]), layer(inputs(1, 96))[0])


def test_gradient_passes_through_to_the_input():
    layer = Int4Linear.from_linear(linear(), activation_bits=8)
    x = inputs(3, 96).requires_grad_()
    layer(x).sum().backward()
    want = layer.weight.detach().double().sum(0).expand(3, 96).numpy()
    size = layer.weight.detach().abs().double().sum(0).expand(3, 96).numpy()
    compare.bounded(x.grad, want, size, 2 * 37, "float32")
    assert not any(p.requires_grad for p in layer.parameters())


def test_compiles_in_one_graph():
    layer = Int4Linear.from_linear(linear(), group_size=32, input_hadamard=0)
    x = inputs(4, 96)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compare.exact(compiled(x), want)
    torch._dynamo.reset()


def test_peft_lora_trains_on_top():
    peft = pytest.importorskip("peft")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = Int4Linear.from_linear(linear(96, 64), activation_bits=8, group_size=32)
            self.down = Int4Linear.from_linear(linear(64, 5), activation_bits=8)

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    net = Net()
    x, goal = inputs(32, 96), torch.randn(32, 5, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = net(x)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = peft.get_peft_model(
        net, peft.LoraConfig(r=8, target_modules=["up", "down"], init_lora_weights=True)
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
        if isinstance(module, Int4Linear):
            short = "up" if name.endswith("up.base_layer") else "down"
            for key, value in module.state_dict().items():
                assert torch.equal(value, before[f"{short}.{key}"]), f"{name}.{key} moved"
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == 4 and all(
        g is not None and g.isfinite().all() and g.abs().max() > 0 for g in grads.values()
    )


def test_peft_merge_requantises():
    peft = pytest.importorskip("peft")
    net = nn.Sequential(Int8Linear.from_linear(linear(96, 64), activation_bits=8))
    model = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    x = inputs(8, 96)
    with torch.no_grad():
        want = model(x)
        got = model.merge_and_unload()(x)
    error = ((got - want).norm() / want.norm()).item()
    assert error <= 0.02


def test_public_names():
    assert lowbit.nn.Int4Linear is Int4Linear and lowbit.nn.Int8Linear is Int8Linear


def test_a_move_to_another_kind_of_device_leaves_the_tiles_behind():
    """Tiles are private to a backend: the portable codes travel, to be packed anew."""
    layer = Int4Linear.from_linear(linear(64, 48), group_size=32)
    layer.prepare()
    assert layer._tiles is not None and layer.weight_packed is None
    layer.to("meta")
    assert layer._tiles is None and layer._group_tiles is None
    assert layer.weight_packed.device.type == "meta" and list(layer.weight_packed.shape) == [48, 32]
    same = Int4Linear.from_linear(linear(64, 48))
    same.prepare()
    same.to("cpu")
    assert same._tiles is not None


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_an_evaluation_first_and_training_after(kind):
    """Tiles made under inference_mode serve the backward of later calls."""
    make = lowbit.nn.Int4Linear if kind == "int4" else lowbit.nn.Int8Linear
    layer = make.from_linear(torch.nn.Linear(64, 32), activation_bits=8)
    x = torch.randn(3, 64, requires_grad=True)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
