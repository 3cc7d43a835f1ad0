"""pack, unpack, prepack: byte for byte against readers and writers of the oracle."""

import lowbit.reference as ref
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import minifloat
from lowbit.reference import fp_layout, int_gemm, layout
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.oracle import cases, codec, compare

from .support import CPU_ONLY, OPS, stored

SHAPES = [(n, k) for n in (1, 15, 16, 17, 33) for k in (1, 2, 7, 8, 9, 31, 32, 33, 65)] + [
    (0, 8),
    (5, 0),
    (0, 0),
    (40, 300),
]


def int4(shape, seed=0):
    return np.random.default_rng((seed, *shape)).integers(-8, 8, shape).astype(np.int8)


@pytest.mark.parametrize("storage", cases.STORAGES)
@pytest.mark.parametrize("shape", [*SHAPES, (3,), (2, 3, 5), (1, 2, 3, 4)], ids=str)
def test_pack_and_unpack(shape, storage, isa):
    q = int4(shape)
    packed = OPS.pack_int4(stored(torch.from_numpy(q), storage))
    compare.exact(packed, codec.pack_nibbles(q), allow_empty=True)
    compare.exact(OPS.unpack_int4(stored(packed, storage), shape[-1]), q, allow_empty=True)
    whole = OPS.unpack_int4(packed)
    compare.exact(whole, codec.unpack_nibbles(packed.numpy()).astype(np.int8), allow_empty=True)


def test_every_byte(isa):
    packed = torch.arange(256, dtype=torch.uint8)
    q = OPS.unpack_int4(packed)
    compare.exact(q, codec.unpack_nibbles(packed.numpy()).astype(np.int8))
    compare.exact(OPS.pack_int4(q), packed)


def test_bytes_are_those_of_compressed_tensors(isa):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    pack_to_int32, unpack_from_int32 = helpers.pack_to_int32, helpers.unpack_from_int32
    q = torch.from_numpy(int4((24, 64)))
    ours = OPS.pack_int4(q)
    compare.exact(ours.view(torch.int32), pack_to_int32(q, 4))
    compare.exact(unpack_from_int32(ours.view(torch.int32), 4, q.shape), q)


@CPU_ONLY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepack_int4(shape, isa):
    n, k = shape
    q = int4(shape)
    tiles = OPS.prepack_int4_weight(torch.from_numpy(codec.pack_nibbles(q)))
    compare.exact(tiles, codec.write_int4_tiles(q), allow_empty=True)
    compare.exact(codec.read_int4_tiles(tiles.numpy(), n, k), q.astype(np.int64), allow_empty=True)
    compare.exact(ref.unprepack_int4_weight(tiles, n, k), codec.pack_nibbles(q), allow_empty=True)


@CPU_ONLY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prepack_int8(shape, isa):
    n, k = shape
    q = np.random.default_rng(n + k).integers(-128, 128, shape).astype(np.int8)
    tiles = OPS.prepack_int8_weight(torch.from_numpy(q))
    compare.exact(tiles, codec.write_int8_tiles(q), allow_empty=True)
    compare.exact(codec.read_int8_tiles(tiles.numpy(), n, k), q.astype(np.int64), allow_empty=True)
    compare.exact(ref.unprepack_int8_weight(tiles, n, k), q, allow_empty=True)


def test_the_reference_reads_the_blocks_of_a_card():
    """Of both widths: gradients go through them."""
    q = torch.randint(-8, 8, (70, 130), dtype=torch.int8)
    int8, int4 = layout.prepack_int8_blocks(q), layout.prepack_int4_blocks(ref.pack_int4(q))
    for blocks in (int8, int4):
        compare.exact(int_gemm._integer_weight(blocks, None, 70, 130), q.long())


@pytest.mark.parametrize(("n", "k"), [(1, 2), (64, 128), (70, 300), (5, 0)])
def test_shapes_of_a_card_s_blocks_are_known_without_one(n, k):
    """The fake kernels on fake CUDA tensors, against what the layouts make."""
    groups = -(-k // 32)
    codes = {f: torch.zeros(n, minifloat.packed_bytes(k, f), dtype=torch.uint8) for f in ("e2m1", "e2m3")}
    scales = torch.ones(n, groups, dtype=torch.uint8)
    want = [fp_layout.prepack_fp_blocks(c, f, k).shape for f, c in codes.items()]
    want += [fp_layout.prepack_fp_scale_blocks(scales).shape]
    want += [layout.prepack_int4_blocks(codes["e2m1"]).shape, layout.prepack_group_scale_blocks(scales).shape]
    ops = torch.ops.lowbit
    with FakeTensorMode():
        fake = {f: torch.empty(c.shape, dtype=c.dtype, device="cuda") for f, c in codes.items()}
        on_card = torch.empty(scales.shape, dtype=torch.uint8, device="cuda")
        got = [ops.prepack_fp_weight(c, f, k).shape for f, c in fake.items()]
        got += [ops.prepack_fp_group_scale(on_card).shape]
        got += [ops.prepack_int4_weight(fake["e2m1"]).shape, ops.prepack_group_scale(on_card).shape]
    assert got == want


@CPU_ONLY
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("groups", [0, 1, 2, 5])
def test_prepack_group_scale(n, groups, isa):
    s = np.random.default_rng(n).integers(1, 17, (n, groups)).astype(np.uint8)
    compare.exact(
        OPS.prepack_group_scale(torch.from_numpy(s)), codec.write_group_scale_tiles(s), allow_empty=True
    )


@CPU_ONLY
@pytest.mark.parametrize("storage", cases.STORAGES)
def test_prepack_reads_any_storage(storage, isa):
    q, s = int4((19, 50)), np.random.default_rng(0).integers(1, 17, (19, 2)).astype(np.uint8)
    compare.exact(
        OPS.prepack_int4_weight(stored(torch.from_numpy(codec.pack_nibbles(q)), storage)),
        codec.write_int4_tiles(q),
    )
    compare.exact(OPS.prepack_int8_weight(stored(torch.from_numpy(q), storage)), codec.write_int8_tiles(q))
    compare.exact(
        OPS.prepack_group_scale(stored(torch.from_numpy(s), storage)), codec.write_group_scale_tiles(s)
    )


@CPU_ONLY
@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_round_trips_both_ways(n, k, seed):
    q = int4((n, k), seed)
    ours, theirs = OPS.pack_int4(torch.from_numpy(q)), codec.pack_nibbles(q)
    compare.exact(codec.unpack_nibbles(ours.numpy(), k), q.astype(np.int64))
    compare.exact(OPS.unpack_int4(torch.from_numpy(theirs), k), q)
    compare.exact(ref.unprepack_int4_weight(OPS.prepack_int4_weight(ours), n, k), ours)
    compare.exact(codec.read_int4_tiles(OPS.prepack_int4_weight(ours).numpy(), n, k), q.astype(np.int64))
