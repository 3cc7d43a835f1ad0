"""Sample inputs and the oracle of every registered op; a new op must be added here."""

from collections.abc import Callable, Iterator

import lowbit.reference as ref
import numpy as np
import torch
from lowbit.reference import fp_layout, layout
from torch import Tensor

from tests.oracle import attention, cases, codec, compare, fp4, fused, minifloat
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from .device import KEY
from .support import OPS, linear_call
from .test_dynamic_linear import Case, make

Sample = tuple[tuple, object]  # arguments, expected result
ON_CARD = KEY == "CUDA"  # whose weights have a layout of their own


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def _q(*shape: int, low: int = -8, high: int = 7) -> np.ndarray:
    return np.random.default_rng(shape).integers(low, high + 1, shape).astype(np.int8)


def _pack() -> Iterator[Sample]:
    for shape in ((3, 8), (2, 3, 9)):
        yield (torch.from_numpy(_q(*shape)),), codec.pack_nibbles(_q(*shape))


def _unpack() -> Iterator[Sample]:
    yield (torch.from_numpy(codec.pack_nibbles(_q(3, 8))),), _q(3, 8)
    yield (torch.from_numpy(codec.pack_nibbles(_q(2, 3, 9))), 9), _q(2, 3, 9)


def _prepack_int4() -> Iterator[Sample]:
    packed = torch.from_numpy(codec.pack_nibbles(_q(17, 10)))
    want = layout.prepack_int4_blocks(packed).numpy() if ON_CARD else codec.write_int4_tiles(_q(17, 10))
    yield (packed,), want


def _prepack_int8() -> Iterator[Sample]:
    q = _q(17, 10, low=-128, high=127)
    x = torch.from_numpy(q)
    yield (x,), layout.prepack_int8_blocks(x).numpy() if ON_CARD else codec.write_int8_tiles(q)


def _prepack_scale() -> Iterator[Sample]:
    s = np.random.default_rng(0).integers(1, 17, (17, 3)).astype(np.uint8)
    x = torch.from_numpy(s)
    want = layout.prepack_group_scale_blocks(x).numpy() if ON_CARD else codec.write_group_scale_tiles(s)
    yield (x,), want


def _quantize(bits: int) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        for x, clip in ((_x(3, 33), 1.0), (_x(2, 3, 16, dtype=torch.bfloat16), 0.9)):
            codes, scale = oracle.quantize_exact(compare.to_numpy(x), bits, clip)
            yield (x, clip), (codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8), scale)

    return samples


def _hadamard() -> Iterator[Sample]:
    yield (_x(3, 24), 0.5), had.transform_fp32(_x(3, 24).numpy(), 0.5)
    yield (_x(3, 24), 0.5, 12, True), had.transform_fp32(_x(3, 24).numpy(), 0.5, 12, True)


def _hadamard_in_place() -> Iterator[Sample]:  # expected: what its first argument holds afterwards
    yield from _hadamard()
    yield (_x(5, 24).T.contiguous().T, 2.0), had.transform_fp32(_x(5, 24).numpy(), 2.0)


def _hadamard_quantize() -> Iterator[Sample]:
    for bits in (4, 8):
        codes, scale = oracle.quantize_exact(had.transform_fp32(_x(3, 24).numpy(), 12**-0.5, 12), bits)
        yield (
            (_x(3, 24), bits, 1.0, 12),
            (codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8), scale),
        )


def _linear(weight_bits: int) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        many = [  # rows: wgmma on a Hopper
            cases.LinearCase(70, 72, 160, "int4" if weight_bits == 4 else "int8", weight_bits, None, True),
            cases.LinearCase(130, 40, 96, "int8", weight_bits, None, False),
        ]
        if weight_bits == 4:
            many.append(cases.LinearCase(70, 72, 160, "int8", 4, 32, True))
            many.append(cases.LinearCase(130, 40, 264, "int8", 4, 128, False, out_dtype="bfloat16"))
        for case in list(cases.linear_cases(weight_bits))[2:50:9] + many:
            call = linear_call(case)
            if call.expected.size:
                yield tuple(call.args), call.expected
        case = cases.LinearCase(3, 20, 48, "int8", weight_bits, None, True)
        call, data = linear_call(case), cases.linear_data(case, 0)
        residual, low_rank, up = _x(3, 20), _x(3, 2), _x(2, 20)
        w = oracle.integer_weight(data.w_q, None, None)
        want = oracle.linear_exact(
            data.x_q,
            data.x_scale,
            w,
            data.w_scale,
            data.bias,
            case.out_dtype,
            residual.numpy(),
            low_rank.numpy(),
            up.numpy(),
        )
        yield (*call.args, residual, low_rank, up), want

    return samples


def _dynamic_linear() -> Iterator[Sample]:
    for bits, weight_bits, group, dtype, block, shift in (
        (4, 4, 32, "float32", 0, True),
        (8, 8, None, "bfloat16", None, False),
        (8, 4, None, "float32", 16, False),
    ):
        args, want = make(Case(3, 20, 64, bits, weight_bits, group, dtype, block, 0.9, True, shift, "plain"))
        yield tuple(args), want


def _quantize_fp4() -> Iterator[Sample]:
    exponent = np.arange(-4, 13).astype(np.int8)
    for x, fmt, scale, e, clip in (
        (_x(3, 33), "e2m1", None, None, 0.9),
        (_x(2, 3, 17, dtype=torch.bfloat16), "e1m2", None, exponent, 1.0),
        (_x(3, 17), "e3m0", 0.3, exponent, 1.0),
    ):
        codes, s = fp4.quantize_exact(compare.to_numpy(x), fmt, scale, e, clip)
        given = None if scale is None else torch.tensor([scale])
        yield (x, fmt, given, None if e is None else torch.from_numpy(e), clip), (fp4.pack(codes), s)


def _fp4_linear() -> Iterator[Sample]:
    for case in (
        fp4.Case(3, 20, 64, "e2m1", "e2m1", True),
        fp4.Case(5, 33, 50, "int8", "e3m0", x_scale=False, out_dtype="bfloat16"),
        fp4.Case(2, 7, 32, "e3m0", "e1m2", True, batch=(2,)),
    ):
        d = fp4.data(case)
        x = d.x.astype(np.int8) if case.x_format == "int8" else fp4.pack(d.x)
        tensors = [None if a is None else torch.from_numpy(a) for a in (d.x_scale, d.w_scale, d.bias)]
        tiles, out = torch.from_numpy(fp4.weight_tiles(d.w)), getattr(torch, case.out_dtype)
        args = (torch.from_numpy(x), case.x_format, tensors[0], tiles, case.w_format, *tensors[1:], out)
        yield args, d.expected(case)


def _encode_fp() -> Iterator[Sample]:
    for x, fmt, away in ((_x(3, 33), "e3m2", False), (_x(2, 3, 5, dtype=torch.bfloat16), "e2m3", True)):
        yield (x, fmt, away), minifloat.nearest(x.float().numpy(), fmt, away)


_FP_CASES = (
    minifloat.Case(3, 20, 72, "e3m2", 32, "float16", True, values="integers"),
    minifloat.Case(2, 33, 70, "e2m1", None, "bfloat16", values="integers", batch=(2,)),
    minifloat.Case(5, 16, 130, "int4", 64, "float16", values="integers"),
    # wgmma on a Hopper
    minifloat.Case(70, 72, 136, "e2m3", None, "bfloat16", values="integers"),
    minifloat.Case(70, 40, 128, "e2m1", 32, "float16", values="integers"),
)


def _prepack_fp_weight() -> Iterator[Sample]:
    for case in _FP_CASES:
        packed = torch.from_numpy(minifloat.pack(minifloat.data(case).codes, case.format))
        args = (packed, case.format, case.k)
        yield args, (fp_layout.prepack_fp_blocks if ON_CARD else ref.prepack_fp_weight)(*args).numpy()


def _prepack_fp_group_scale() -> Iterator[Sample]:
    for case in (_FP_CASES[0], _FP_CASES[2]):
        scale = torch.from_numpy(minifloat.data(case).group_scale)
        want = (fp_layout.prepack_fp_scale_blocks if ON_CARD else ref.prepack_fp_group_scale)(scale)
        yield (scale,), want.numpy()


def _fp_linear() -> Iterator[Sample]:
    for case in _FP_CASES:
        d = minifloat.data(case)
        packed = torch.from_numpy(minifloat.pack(d.codes, case.format))
        scale = None if d.group_scale is None else ref.prepack_fp_group_scale(torch.from_numpy(d.group_scale))
        bias = None if d.bias is None else torch.from_numpy(d.bias)
        dtype = getattr(torch, case.dtype)
        x, tiles = torch.from_numpy(d.x).to(dtype), ref.prepack_fp_weight(packed, case.format, case.k)
        want = torch.from_numpy(minifloat.expected(case, d)[0]).float().to(dtype)
        yield (x, tiles, case.format, torch.from_numpy(d.w_scale), scale, bias), compare.to_numpy(want)


def _fp_linear_residual() -> Iterator[Sample]:
    for args, want in _fp_linear():
        residual = _x(*want.shape, dtype=args[0].dtype).round()
        total = torch.from_numpy(want.astype(np.float32)) + residual.float()
        exact = abs(total) < 1 << (8 if args[0].dtype == torch.bfloat16 else 11)
        if bool(exact.all()):  # else `want` is rounded already
            yield (*args, residual), compare.to_numpy(total.to(args[0].dtype))


def _kv4_quantize() -> Iterator[Sample]:
    codes, params = oracle.kv4_quantize_exact(_x(2, 3, 10).numpy(), 0.9)
    yield (_x(2, 3, 10), 0.9), (codec.pack_nibbles(codes - 8), params)


def _kv4_dequantize() -> Iterator[Sample]:
    codes, params = oracle.kv4_quantize_exact(_x(2, 3, 10).numpy())
    packed = torch.from_numpy(codec.pack_nibbles(codes - 8))
    yield (packed, torch.from_numpy(params)), oracle.kv4_dequantize_exact(codes, params)
    yield (
        (packed, torch.from_numpy(params), torch.bfloat16, 9),
        oracle.kv4_dequantize_exact(codes, params, "bfloat16")[..., :9],
    )


def _paged(seed: int = 0) -> tuple[tuple[Tensor, ...], attention.Caches]:
    """Six pages of 16 tokens, two heads of 80, a size that every device has; values are their codes."""
    caches = attention.poisoned(6, 2, 16, 80, seed)
    caches.key_params[:], caches.value_params[:] = (0.25, -2.0), (1.0, 0.0)
    return tuple(torch.from_numpy(a) for a in caches.copy().arrays()), caches


def _kv4_append() -> Iterator[Sample]:
    for dtype, slots, clip, block in (
        (torch.float32, [5, -1, 90], 0.9, None),
        (torch.float16, [0, 1, 95], 1.0, 2),
    ):
        tensors, caches = _paged()
        key, value, at = _x(3, 2, 80, dtype=dtype), _x(3, 2, 80, dtype=dtype).flip(0), torch.tensor(slots)
        want = attention.append_exact(caches, key.numpy(), value.numpy(), at.numpy(), clip, block)
        yield (key, value, at, *tensors, clip, block), want.arrays()


def _rotation(tokens: int, size: int) -> tuple[Tensor, Tensor]:
    angle = _x(tokens, size // 2).repeat(1, 2)
    return angle.cos(), angle.sin()


def _kv4_rope_append() -> Iterator[Sample]:
    weight = _x(80).abs()
    for rotary, q_norm, k_norm, block in ((80, None, None, None), (6, weight, weight + 1, 2)):
        tensors, caches = _paged()
        qkv, (cos, sin), slots = _x(3, 640), _rotation(3, rotary), torch.tensor([64, 17, -5])
        q, k, v = (t.numpy() for t in qkv.view(3, 8, 80).split((4, 2, 2), 1))
        q, k = (
            attention.norm_rope_exact(x, cos.numpy(), sin.numpy(), None if n is None else n.numpy(), 1e-5)
            for x, n in ((q, q_norm), (k, k_norm))
        )
        want = attention.append_exact(caches, k, v, slots.numpy(), 0.95, block)
        args = (qkv, cos, sin, 4, 2, slots, *tensors, q_norm, k_norm, 1e-5, 0.95, block)
        yield args, (q, k, v, *want.arrays())


_TABLE = torch.tensor([[3, -1, -1], [5, 0, 2], [1, 4, -1]], dtype=torch.int32)


def _mean_values(caches: attention.Caches, lengths: list[int], first: Tensor | None = None) -> np.ndarray:
    """What equal scores give: the mean of each head's values, here exact. [B, 4, 80]. first: values of an
    exact token [1, 2, 80].
    """
    out, first = np.zeros((len(lengths), 4, 80)), np.zeros((0, 2, 80)) if first is None else first.numpy()
    for b, length in enumerate(lengths):
        pages = caches.value_codes[_TABLE[b]].swapaxes(0, 1).reshape(2, -1, 40)[:, :length]
        codes = np.stack((pages % 16, pages // 16), -1).reshape(2, length, 80)
        values = np.concatenate((first.swapaxes(0, 1), codes), 1)
        out[b] = values.mean(1).repeat(2, 0) if values.size else 0
    return out.astype(np.float32)


def _kv4_attention() -> Iterator[Sample]:
    tensors, caches = _paged()
    q = torch.zeros(3, 4, 80)
    q[0] = _x(4, 80)  # of one token, whatever the score
    lengths = [1, 32, 0]
    args = (q, *tensors, _TABLE, torch.tensor(lengths, dtype=torch.int32), 0.25)
    yield args, _mean_values(caches, lengths)
    lengths[1] = 31  # with an exact token 32 again
    q, exact = torch.zeros(3, 4, 80), torch.arange(320.0).view(2, 1, 2, 80)
    args = (q, *tensors, _TABLE, torch.tensor(lengths, dtype=torch.int32), 0.25, *exact)
    yield args, _mean_values(caches, lengths, exact[1])


def _kv4_attend() -> Iterator[Sample]:
    tensors, caches = _paged()
    qkv, (cos, sin), lengths = torch.zeros(3, 640), _rotation(3, 8), [0, 31, 15]
    qkv[0], qkv[1:, 320:480] = _x(640), _x(2, 160)
    values = torch.tensor([15.0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).repeat(3, 16)  # their codes again
    qkv[:, 480:] = values
    k = attention.norm_rope_exact(
        qkv[:, 320:480].view(3, 2, 80).numpy(), cos.numpy(), sin.numpy(), None, 1e-6
    )
    slots = np.array([3 * 16, 0 * 16 + 15, 1 * 16 + 15])
    want = attention.append_exact(caches, k, values.view(3, 2, 80).numpy(), slots, 1.0, 2)
    out = _mean_values(want, [n + 1 for n in lengths]).reshape(3, 320)
    args = (qkv, cos, sin, 4, 2, *tensors, _TABLE, torch.tensor(lengths, dtype=torch.int32), 0.25)
    yield (*args, None, None, 1e-6, 1.0, 2), (out, *want.arrays())


def _kv4_attend_quantize() -> Iterator[Sample]:
    for args, (out, *caches) in _kv4_attend():
        index, step, shift = _columns(29, 320)
        v = fused.scaled(out, index.numpy(), step.numpy(), shift.numpy())
        options = (*args[12:], None, None, step, shift, index)
        for bits, static, unpacked in ((4, True, True), (8, False, False)):
            q, scale = fused.coded(v, 8 if unpacked else bits, static, 1.0)
            if unpacked:
                q = fused.static_codes(v, bits).astype(np.int8)
            yield (*args[:12], bits, *options, static, 1.0, unpacked), (q, scale, *caches)


def _columns(k: int, high: int) -> tuple[Tensor, Tensor, Tensor]:
    """index, inverse step and shift of k columns."""
    rng = np.random.default_rng(k)
    step, shift = rng.uniform(1, 20, k).astype(np.float32), rng.normal(0, 1, k).astype(np.float32)
    return torch.from_numpy(rng.integers(0, high, k).astype(np.int32)), *map(torch.from_numpy, (step, shift))


def _quantize_static() -> Iterator[Sample]:
    for bits, x, block in ((4, _x(3, 24), None), (8, _x(2, 3, 24, dtype=torch.bfloat16), 12)):
        index, step, shift = _columns(29, 24)
        v = fused.rotated(compare.to_numpy(x).astype(np.float32), block)
        v = fused.scaled(v, index.numpy(), step.numpy(), shift.numpy())
        want = fused.stored(fused.static_codes(v, bits), bits)
        yield (x, bits, step, shift, index, block), want
        yield (x, bits, step, shift, index, block, True), fused.static_codes(v, bits).astype(np.int8)


def _rms_norm_quantize() -> Iterator[Sample]:
    for bits, x, static in ((8, _x(3, 33), False), (4, _x(2, 3, 16, dtype=torch.bfloat16), True)):
        index, weight, shift = _columns(19, x.shape[-1])
        residual = x.flip(0)
        total = fused.added(compare.to_numpy(x), compare.to_numpy(residual))
        v = fused.normalised(total, weight.numpy(), 1e-6, index.numpy(), 1.0)
        want = fused.coded(fused.scaled(v, shift=shift.numpy()), bits, static)
        yield (x, weight, 1e-6, bits, residual, index, shift, static, 1.0, 1.0), (*want, total)
    total = np.empty(0, dtype=np.float32)
    weight = torch.ones(33)
    want = fused.coded(fused.normalised(_x(3, 33).numpy(), weight.numpy(), 1e-6), 8, False, 0.9)
    yield (_x(3, 33), weight, 1e-6, 8, None, None, None, False, 0.9), (*want, total)


def _rms_norm() -> Iterator[Sample]:
    for x in (_x(3, 33), _x(2, 3, 16, dtype=torch.bfloat16)):
        weight, residual = _columns(x.shape[-1], 1)[1], x.flip(0)
        total = fused.added(compare.to_numpy(x), compare.to_numpy(residual))
        v = fused.normalised(total, weight.numpy(), 1e-6, None, 1.0)
        yield (x, weight, 1e-6, residual, 1.0), (v.astype(total.dtype), total)
        v = fused.normalised(compare.to_numpy(x), weight.numpy(), 1e-6)
        yield (x, weight, 1e-6), (v.astype(total.dtype), np.empty(0, dtype=total.dtype))


def _gated() -> Iterator[Sample]:
    for x, name, block in ((_x(3, 48), "silu", 12), (_x(2, 3, 48, dtype=torch.float16), "gelu_tanh", None)):
        values = compare.to_numpy(x)
        yield (x, name, block), fused.gated(values, name, block).astype(values.dtype)


def _kv_attend() -> Iterator[Sample]:
    """Scores are equal, so what comes out are means."""
    for dtype in (torch.float32, torch.bfloat16):
        (cos, sin), lengths = _rotation(2, 6), [2, 15]
        key, value = _x(4, 16, 2, 10, dtype=dtype), torch.zeros(4, 16, 2, 10, dtype=dtype)
        table = torch.tensor([[2, -1], [0, 3]], dtype=torch.int32)
        value[2, 0], value[0, :15] = 4, torch.arange(10).to(dtype)
        qkv = torch.zeros(2, 80, dtype=dtype)
        qkv[:, 40:60], qkv[0, 60:], qkv[1, 60:] = _x(2, 20, dtype=dtype), 8, torch.arange(20.0).to(dtype)
        k = attention.norm_rope_exact(
            compare.to_numpy(qkv[:, 40:60]).reshape(2, 2, 10), cos.numpy(), sin.numpy(), None, 1e-6
        )
        want = [compare.to_numpy(t).copy() for t in (key, value)]
        for b, at in enumerate(((2, 2), (0, 15))):
            want[0][at], want[1][at] = k[b], compare.to_numpy(qkv[b, 60:]).reshape(2, 10)
        out = np.stack([want[1][2, :3].mean(0), want[1][0].mean(0)]).repeat(2, 1).reshape(2, 40)
        yield (
            (qkv, cos, sin, 4, 2, key, value, table, torch.tensor(lengths, dtype=torch.int32), 0.5),
            (out.astype(want[1].dtype), *want),
        )


def _causal_attention() -> Iterator[Sample]:
    """Scores are equal and so are the values of a head."""
    for dtype, queries, keys in ((torch.float32, 9, 9), (torch.bfloat16, 3, 8), (torch.float16, 8, 11)):
        value = 2.0 ** torch.arange(-10, 10).view(2, 10)  # of a kv head
        v = value.to(dtype).expand(2, keys, 2, 10).contiguous()
        q, k = torch.zeros(2, queries, 4, 10, dtype=dtype), _x(2, keys, 2, 10, dtype=dtype)
        want = value.to(dtype).repeat_interleave(2, 0).expand(2, queries, 4, 10)
        yield (q, k, v, 0.5), compare.to_numpy(want.contiguous())


def _gated_quantize() -> Iterator[Sample]:
    for bits, x, name, static in (
        (8, _x(3, 48), "silu", False),
        (4, _x(2, 3, 48, dtype=torch.float16), "gelu_tanh", True),
    ):
        index, step, shift = _columns(19, 24)
        v = fused.gated(compare.to_numpy(x), name, 12)
        v = fused.scaled(v, index.numpy(), step.numpy(), shift.numpy())
        yield (x, bits, name, 12, step, shift, index, static), fused.coded(v, bits, static)


SAMPLES: dict[str, Callable[[], Iterator[Sample]]] = {
    "pack_int4": _pack,
    "unpack_int4": _unpack,
    "prepack_int4_weight": _prepack_int4,
    "prepack_int8_weight": _prepack_int8,
    "prepack_group_scale": _prepack_scale,
    "quantize_int4": _quantize(4),
    "quantize_int8": _quantize(8),
    "quantize_fp4": _quantize_fp4,
    "hadamard": _hadamard,
    "hadamard_": _hadamard_in_place,
    "hadamard_quantize": _hadamard_quantize,
    "int4_linear": _linear(4),
    "int8_linear": _linear(8),
    "dynamic_linear": _dynamic_linear,
    "fp4_linear": _fp4_linear,
    "encode_fp": _encode_fp,
    "prepack_fp_weight": _prepack_fp_weight,
    "prepack_fp_group_scale": _prepack_fp_group_scale,
    "fp_linear": lambda: (*_fp_linear(), *_fp_linear_residual()),
    "quantize_static": _quantize_static,
    "rms_norm": _rms_norm,
    "rms_norm_quantize": _rms_norm_quantize,
    "gated": _gated,
    "gated_quantize": _gated_quantize,
    "kv4_quantize": _kv4_quantize,
    "kv4_dequantize": _kv4_dequantize,
    "kv4_append": _kv4_append,
    "kv4_rope_append": _kv4_rope_append,
    "kv4_attention": _kv4_attention,
    "kv4_attend": _kv4_attend,
    "kv4_attend_quantize": _kv4_attend_quantize,
    "kv_attend": _kv_attend,
    "causal_attention": _causal_attention,
}


# of each op: which arguments it writes to
WRITTEN = {
    name: tuple(
        i
        for i, a in enumerate(getattr(torch.ops.lowbit, name).default._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    )
    for name in SAMPLES
}


def call(name: str, args: tuple, ops: object = OPS) -> tuple:
    """The results of the op as a tuple, and copies of the arguments that it writes to, written to."""
    written = [args[i].clone(memory_format=torch.preserve_format) for i in WRITTEN[name]]
    args = list(args)
    for i, copy in zip(WRITTEN[name], written, strict=True):
        args[i] = copy
    result = getattr(ops, name)(*args)
    result = () if result is None else result if isinstance(result, tuple) else (result,)
    return (*result, *written)
