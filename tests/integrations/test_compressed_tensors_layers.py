"""compressed-tensors, one layer at a time: the package's own compressors read and write the same bits."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from compressed_tensors.utils.match import match_targets
from lowbit import formats
from lowbit.integrations.compressed_tensors.config import read_config, write_config
from lowbit.integrations.compressed_tensors.layers import (
    Storage,
    from_compressed,
    requantize,
    split_scales,
    to_compressed,
)
from lowbit.quantizers.weight import FloatWeight

from tests.oracle import compare

MX = [("mxfp6-pack-quantized", "MXFP6A16"), ("mxfp4-pack-quantized", "MXFP4A16")]
LINEAR = torch.nn.Linear(1, 1)


def compressor(name):
    return BaseCompressor.get_value_from_registry(name)


def scheme_of(storage):
    """The scheme as the package reads it from our config block."""
    block = QuantizationConfig.model_validate(write_config({"layer": storage}, []))
    scheme = block.config_groups["group_0"]
    assert infer_module_format(torch.nn.Linear, scheme) == storage.format
    return scheme


def unpacked(tensors, storage, k):
    """FloatWeight of portable tensors."""
    packed, group = tensors["weight_packed"], tensors.get("weight_group_scale")
    if storage.weight_format == "int4":
        codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1)[:, :k].to(torch.int8) - 8
    else:
        codes = formats.unpack_codes(packed, storage.weight_format, k)
    scale = tensors["weight_scale"].view(-1)
    return FloatWeight(codes, scale, group, storage.group_size, storage.weight_format)


def same_bits(a, b):
    """Equal to the sign of zero."""
    compare.exact(a.float().view(torch.int32), b.float().view(torch.int32))


def random_mx(format, n, k, scales, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << formats.bits_of(format), (n, k), generator=g).to(torch.uint8)
    low, high = scales
    return formats.pack_codes(codes, format), torch.randint(low, high, (n, k // 32), generator=g).to(
        torch.uint8
    )


# ---- MX ----


@pytest.mark.parametrize("name,preset", MX)
def test_every_code_under_every_scale(name, preset):
    storage = Storage(name, 32)
    size = 1 << formats.bits_of(storage.weight_format)
    codes = torch.arange(size).repeat(255, 1).to(torch.uint8)
    scale = torch.arange(255).repeat_interleave(size // 32).view(255, -1) if size == 64 else None
    if scale is None:
        codes, scale = codes.repeat(1, 2), torch.arange(255).view(255, 1)
    given = {
        "weight_packed": formats.pack_codes(codes, storage.weight_format),
        "weight_scale": scale.to(torch.uint8),
    }
    tensors, k = from_compressed(given, storage, "layer")
    assert k == codes.shape[1] and bool((tensors["weight_scale"] == 1).all())
    want = compressor(name).decompress(given, preset_name_to_scheme(preset, ["Linear"]))["weight"]
    same_bits(unpacked(tensors, storage, k).dequantize(), want)
    back = to_compressed(tensors, storage, k, "layer")
    compare.exact(back["weight_packed"], given["weight_packed"])
    live = (codes & (size // 2 - 1)).unflatten(1, (-1, 32)).amax(2) > 0
    compare.exact(back["weight_scale"][live], given["weight_scale"][live])


@pytest.mark.parametrize("name,preset", MX)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_what_the_package_compresses(name, preset, dtype):
    scheme, storage = preset_name_to_scheme(preset, ["Linear"]), Storage(name, 32)
    w = torch.randn(24, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    w[3, 32:64] = 0
    amax = w.unflatten(1, (-1, 32)).abs().amax(2).clamp_min(1e-6)
    scale = torch.exp2(generate_mx_scales(amax, scheme.weights.num_bits).float() - 127)
    given = compressor(name).compress({"weight": w, "weight_scale": scale.to(dtype)}, scheme)
    tensors, k = from_compressed(given, storage, "layer")
    assert k == 96
    same_bits(
        unpacked(tensors, storage, k).dequantize(), compressor(name).decompress(given, scheme)["weight"]
    )


@pytest.mark.parametrize("name", [name for name, _ in MX])
@pytest.mark.parametrize("kind", ["e8m0", "fp16"])
def test_powers_of_two_fold_into_the_group_scale(name, kind):
    storage, scheme = Storage(name, 32), scheme_of(Storage(name, 32))
    packed, group = random_mx(storage.weight_format, 16, 128, (117, 137))
    if kind == "fp16":
        group = formats.decode_e8m0(group).half()
    row = torch.exp2(torch.randint(-60, 60, (16, 1), generator=torch.Generator().manual_seed(2)).float())
    tensors = {"weight_packed": packed, "weight_scale": row, "weight_group_scale": group}
    out = to_compressed(tensors, storage, 128, "layer")
    assert out["weight_scale"].dtype == torch.uint8 and set(out) == {"weight_packed", "weight_scale"}
    want = unpacked(tensors, storage, 128).dequantize()
    same_bits(compressor(name).decompress(out, scheme)["weight"], want)


def test_scales_without_an_mx_counterpart_are_refused():
    storage = Storage("mxfp6-pack-quantized", 32)
    packed, group = random_mx("e2m3", 4, 64, (100, 119))
    tensors = {"weight_packed": packed, "weight_group_scale": group, "weight_scale": torch.ones(4, 1)}
    tensors["weight_scale"][2] = 1.5
    with pytest.raises(ValueError, match=r"a\.weight_scale: expected powers of two, .* got 2 of 8 others"):
        to_compressed(tensors, storage, 64, "a")
    tensors["weight_scale"][2] = 2.0**-120
    with pytest.raises(
        ValueError, match=r"a\.weight_scale: expected group scales in 2\^-127 .. 2\^127, got 2"
    ):
        to_compressed(tensors, storage, 64, "a")
    codes = formats.unpack_codes(packed, "e2m3", 64)
    codes[2] = 32  # minus zero: then any scale will do
    tensors["weight_packed"] = formats.pack_codes(codes, "e2m3")
    out = to_compressed(tensors, storage, 64, "a")
    same_bits(
        compressor(storage.format).decompress(out, scheme_of(storage))["weight"],
        unpacked(tensors, storage, 64).dequantize(),
    )


@pytest.mark.parametrize("name,preset", MX)
def test_requantising_keeps_mx_values_and_rounds_others_well(name, preset):
    storage, scheme = Storage(name, 32), preset_name_to_scheme(preset, ["Linear"])
    packed, group = random_mx(storage.weight_format, 16, 128, (90, 160))
    values = unpacked(
        {"weight_packed": packed, "weight_scale": torch.ones(16, 1), "weight_group_scale": group},
        storage,
        128,
    ).dequantize()
    compare.exact(unpacked(requantize(values, storage.weight_format), storage, 128).dequantize(), values)

    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(3))
    w[5, 64:96] = 0
    ours = unpacked(requantize(w, storage.weight_format), storage, 256).dequantize()
    scale = torch.exp2(
        generate_mx_scales(w.unflatten(1, (-1, 32)).abs().amax(2).clamp_min(1e-6), scheme.weights.num_bits)
        - 127
    )
    theirs = compressor(name).compress({"weight": w, "weight_scale": scale}, scheme)
    theirs = compressor(name).decompress(theirs, scheme)["weight"]
    assert bool((ours[5, 64:96] == 0).all())
    assert (ours - w).norm() <= (theirs - w).norm() < 0.2 * w.norm()


# ---- int4 ----

INT4 = [
    (None, 40, "channel"),
    (None, 33, "channel"),
    (None, 7, "channel"),
    (None, 40, "tensor"),
    (32, 64, "group"),
    (128, 256, "group"),
]


def int4_scheme(group, strategy):
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, strategy=strategy, group_size=group)
    )


@pytest.mark.parametrize("group,k,strategy", INT4)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_int4_codes_and_scales_are_the_packages(group, k, strategy, dtype):
    scheme, storage, n = int4_scheme(group, strategy), Storage("pack-quantized", group), 12
    g = torch.Generator().manual_seed(4)
    shape = {"tensor": (1,), "channel": (n, 1), "group": (n, k // (group or k))}[strategy]
    scale = (torch.rand(shape, generator=g) + 0.1).mul(0.01).to(dtype)
    if group and dtype == torch.float32:
        scale = scale.bfloat16().float()  # significands that fp16 can hold
    columns = scale.reshape(-1, 1) if strategy != "group" else scale.repeat_interleave(group, 1)
    q = torch.randint(-8, 8, (n, k), generator=g)
    given = compressor(storage.format).compress(
        {"weight": q * columns.float(), "weight_scale": scale}, scheme
    )
    tensors, got = from_compressed(given, storage, "layer")
    assert got == k
    w = unpacked(tensors, storage, k)
    compare.exact(w.codes, q.to(torch.int8))
    same_bits(w.dequantize(), q * columns.float())
    theirs = compressor(storage.format).decompress(given, scheme)["weight"]  # rounded to the dtype of scale
    compare.exact(w.dequantize().to(dtype), theirs)

    if k % 2:
        assert bool((tensors["weight_packed"][:, -1] >> 4 == 8).all())  # padded with the code of zero
    before = tensors["weight_packed"].clone()
    back = to_compressed(tensors, storage, k, "layer")  # and out again
    compare.exact(tensors["weight_packed"], before)
    compare.exact(back["weight_packed"], given["weight_packed"])
    compare.exact(back["weight_shape"], given["weight_shape"])
    same_bits(compressor(storage.format).decompress(back, scheme_of(storage))["weight"], w.dequantize())


def test_splitting_scales():
    scale = torch.tensor([[1.0, 2.0**-20], [2.0**-60, 1.9921875 * 2.0**-75], [2.0**100, 2.0**88]])
    row, group = split_scales(scale, "a")
    compare.exact(row * group.float(), scale)
    assert bool((torch.frexp(row).mantissa == 0.5).all()) and group.dtype == torch.float16
    compare.exact(split_scales(scale[:1].half().float(), "a")[0], torch.ones(1, 1))
    tiny = torch.tensor([[2.0**-149, 2.0**-140]])
    row, group = split_scales(tiny, "a")
    compare.exact(row * group.float(), tiny)
    for bad in ([[1.0, 2.0**-45]], [[1.0, 1 + 2.0**-11]]):
        with pytest.raises(ValueError, match=r"a: expected group scales .* got 1 others"):
            split_scales(torch.tensor(bad), "a")


def test_int4_products_that_fp32_cannot_hold_are_refused():
    tensors = {
        "weight_packed": torch.zeros(2, 32, dtype=torch.uint8),
        "weight_scale": torch.tensor([[1.0], [1 + 2.0**-23]]),
        "weight_group_scale": torch.tensor([[1.0], [1.5]]).half(),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.weight_scale: expected products .* got 1 others"):
        to_compressed(tensors, Storage("pack-quantized", 64), 64, "a")


# ---- damaged layers ----


@pytest.mark.parametrize(
    "name,change,words",
    [
        ("mxfp6-pack-quantized", {"weight_packed": None}, r"a\.weight_packed: .*missing tensor"),
        ("mxfp6-pack-quantized", {"weight_scale": None}, r"a\.weight_scale: .*missing tensor"),
        (
            "mxfp6-pack-quantized",
            {"weight_packed": torch.zeros(4, 47, dtype=torch.uint8)},
            r"uint8 \[4, 47\]",
        ),
        ("mxfp6-pack-quantized", {"weight_packed": torch.zeros(4, 48, dtype=torch.int8)}, r"int8 \[4, 48\]"),
        (
            "mxfp6-pack-quantized",
            {"weight_scale": torch.zeros(4, 3, dtype=torch.uint8)},
            r"expected uint8 \[4, 2\]",
        ),
        ("mxfp6-pack-quantized", {"weight_scale": torch.ones(4, 2)}, r"expected uint8 \[4, 2\], got float32"),
        (
            "mxfp6-pack-quantized",
            {"weight_scale": torch.full((4, 2), 255, dtype=torch.uint8)},
            "got 8 that are NaN",
        ),
        ("pack-quantized", {"weight_shape": None}, r"a\.weight_shape: .*missing tensor"),
        ("pack-quantized", {"weight_shape": torch.tensor([4, 63])}, r"whole groups of 32, got 63"),
        (
            "pack-quantized",
            {"weight_shape": torch.tensor([4, 96])},
            r"expected int32 \[4, 12\], got int32 \[4, 8\]",
        ),
        ("pack-quantized", {"weight_shape": torch.tensor([4])}, r"expected two integers, got int64 \[1\]"),
        (
            "pack-quantized",
            {"weight_scale": torch.ones(4, 1)},
            r"expected floats \[4, 2\], got float32 \[4, 1\]",
        ),
        ("pack-quantized", {"weight_scale": torch.tensor([[1, 0.0]] * 4)}, "finite scales above 0, got 4"),
        ("pack-quantized", {"weight_scale": torch.full((4, 2), torch.nan)}, "finite scales above 0, got 8"),
    ],
)
def test_damaged_layer_is_refused(name, change, words):
    if name == "pack-quantized":
        tensors = {
            "weight_packed": torch.zeros(4, 8, dtype=torch.int32), "weight_scale": torch.ones(4, 2),
            "weight_shape": torch.tensor([4, 64]),
        }  # fmt: skip
    else:
        packed, scale = random_mx("e2m3", 4, 64, (100, 120))
        tensors = {"weight_packed": packed, "weight_scale": scale}
    from_compressed(tensors, Storage(name, 32), "a")
    tensors = {key: value for key, value in (tensors | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        from_compressed(tensors, Storage(name, 32), "a")


# ---- config ----


def block(preset="MXFP6A16", name="mxfp6-pack-quantized"):
    """`quantization_config` as the package writes it."""
    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.format = name
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=name, quantization_status="compressed"
    )
    return config.model_dump(mode="json") | {"transform_config": {}, "sparsity_config": {}}


def test_reads_the_packages_config():
    for name, preset in MX:
        assert read_config(block(preset, name)).find("any.name") == Storage(name, 32)
    assert read_config(block("W4A16", "pack-quantized")).find("x") == Storage("pack-quantized", 128)


def test_targets_resolve_as_in_the_package():
    storages = [
        Storage("mxfp6-pack-quantized", 32),
        Storage("mxfp4-pack-quantized", 32),
        Storage("pack-quantized", None),
    ]
    names = [
        f"model.layers.{i}.{part}" for i in range(12) for part in ("mlp.up_proj", "mlp.down_proj", "attn.q")
    ]
    layers = {
        name: storages[(i + i // 17) % 3] for i, name in enumerate(names) if name != "model.layers.3.attn.q"
    }
    layers["single"] = storages[1]
    written = write_config(layers, ["model.layers.3.attn.q", "lm_head"])
    schemes, theirs = read_config(written), QuantizationConfig.model_validate(written)
    assert theirs.format == "mixed-precision"
    targets = {t: s for s in theirs.config_groups.values() for t in s.targets}
    for name, storage in layers.items():
        assert schemes.find(name) == storage
        assert targets[match_targets(name, LINEAR, targets)[0]].format == storage.format, name
    for name in ("model.layers.3.attn.q", "lm_head"):
        assert not match_targets(name, LINEAR, targets)
        with pytest.raises(ValueError, match="expected a config group that targets it"):
            schemes.find(name)
    uniform = write_config(dict.fromkeys(names, storages[0]), [])  # a tied head has no tensor
    assert uniform["config_groups"]["group_0"]["targets"] == [
        rf"re:model\.layers\.\d+\.{part}$" for part in (r"mlp\.up_proj", r"mlp\.down_proj", r"attn\.q")
    ]
    assert uniform["format"] == "mxfp6-pack-quantized" and uniform["ignore"] == ["lm_head"]


def test_the_closest_target_wins():
    six, four, named = block(), block("MXFP4A16", "mxfp4-pack-quantized"), block("W4A16", "pack-quantized")
    groups = {"a": six["config_groups"]["group_0"], "b": four["config_groups"]["group_0"]}
    groups["c"] = named["config_groups"]["group_0"]
    groups["b"]["targets"], groups["c"]["targets"] = ["re:.*proj"], ["x.up_proj"]
    written = six | {"config_groups": groups}
    schemes, theirs = read_config(written), QuantizationConfig.model_validate(written)
    targets = {t: s for s in theirs.config_groups.values() for t in s.targets}
    for name, format in [("x.up_proj", "pack"), ("y.up_proj", "mxfp4-pack"), ("head", "mxfp6-pack")]:
        assert schemes.find(name).format == f"{format}-quantized"
        assert targets[match_targets(name, LINEAR, targets)[0]].format == f"{format}-quantized"


def edited(*path_and_value):
    *path, last, value = path_and_value
    out = block()
    where = out
    for key in path:
        where = where[key]
    where[last] = value
    return out


WEIGHTS = ("config_groups", "group_0", "weights")


@pytest.mark.parametrize(
    "given,words",
    [
        (None, "quant_method: expected compressed-tensors, got None"),
        (edited("quant_method", "gptq"), "quant_method: expected compressed-tensors, got 'gptq'"),
        (edited("transform_config", {"config_groups": {}}), "transform_config: expected none"),
        (
            edited("sparsity_config", {"format": "sparse-24-bitmask"}),
            "sparsity_config: .* got 'sparse-24-bitmask'",
        ),
        (edited("kv_cache_scheme", {"num_bits": 8}), "kv_cache_scheme: expected none"),
        (edited("config_groups", {}), r"config_groups: expected schemes by name, got {}"),
        (edited("config_groups", {"W4A16": ["Linear"]}), r"\['W4A16'\]: expected a scheme with targets"),
        (edited(*WEIGHTS, None), "expected a scheme for weights, got none"),
        (edited(*WEIGHTS, "num_bits", 8), "expected mxfp6-pack-quantized, .* with 8 bits of type float"),
        (edited(*WEIGHTS, "symmetric", False), r"weights\.symmetric: expected True, got False"),
        (edited(*WEIGHTS, "dynamic", True), r"weights\.dynamic: expected False, got True"),
        (edited(*WEIGHTS, "actorder", "group"), r"weights\.actorder: expected None, got 'group'"),
        (edited(*WEIGHTS, "strategy", "block"), r"weights\.strategy: .* got 'block'"),
        (edited(*WEIGHTS, "group_size", 16), r"weights\.group_size: expected 32, got 16"),
        (edited(*WEIGHTS, "strategy", "channel"), r"weights\.group_size: expected 32, got 32"),
        (block("MXFP6A8"), r"input_activations: expected none, got a scheme; weights_only=True"),
        (block("NVFP4A16", "nvfp4-pack-quantized"), "got nvfp4-pack-quantized with 4 bits of type float"),
        (block("W8A16", "pack-quantized"), "got pack-quantized with 8 bits of type int"),
        (block("W4A16_ASYM", "pack-quantized"), r"weights\.symmetric: expected True, got False"),
    ],
)
def test_config_that_lowbit_cannot_do_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        read_config(given)


def test_weights_only_leaves_activations_out():
    given = block("MXFP6A8") | {"kv_cache_scheme": {"num_bits": 8}}
    assert read_config(given, weights_only=True).find("x") == Storage("mxfp6-pack-quantized", 32)
