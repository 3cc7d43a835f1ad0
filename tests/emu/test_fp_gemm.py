"""The CUDA weight-only GEMM under the emulator: every instance against the float64 oracle."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from lowbit import minifloat
from lowbit.reference import fp_layout

from tests.emu import fp_pictures as pictures
from tests.oracle import compare
from tests.oracle.cases import MODEL_LAYERS

EMPTY = np.zeros(0, np.float32)
FORMATS = ("e3m2", "e2m3", "e2m1", "e3m0", "int4")
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
GROUPS = (0, 32, 64, 128, -32)  # negative: with fp16 scales, as 64 and 128 always have
# of a tile: numbers of rows of x that choose it
TOKENS = {16: (1, 8, 9, 16), 64: (17, 33, 64, 65), 128: (65, 120, 128, 129)}


def values(format):
    """The value of every code, from the definition of the format."""
    if format == "int4":
        return np.arange(16) - 8.0
    e, m, bias = int(format[1]), int(format[3]), 1 if format[1] in "12" else 3
    code = np.arange(1 << (1 + e + m))
    exponent, fraction = code >> m & ((1 << e) - 1), (code & ((1 << m) - 1)) / 2**m
    size = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    return np.where(code >> (e + m), -size, size)


def aligned(a, to=128):
    """A copy at an address that is a multiple of `to`, as torch's allocator gives."""
    raw = np.empty(a.nbytes + to, np.uint8)
    start = -raw.ctypes.data % to
    out = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


class Problem:
    """Random operands of one shape. exact: all sums are exact in fp32, in any order."""

    def __init__(
        self, m, n, k, format="e3m2", half="float16", group=0, bias=True, exact=True, seed=0, residual=False
    ):
        rng = np.random.default_rng(seed)
        self.m, self.n, self.k, self.format, self.half = m, n, k, format, half
        e8m0, self.group = group == 32, abs(group)
        self.exact = exact
        table = values(format)
        self.codes = rng.integers(0, len(table), (n, k))
        groups = -(-k // self.group) if group else 0
        if exact:
            # multiples of 2^-4 up to 28, times integers up to 3: 2^24 / (28 * 16 * 3) terms are exact
            self.x = rng.integers(-3, 4, (m, k)).astype(HALVES[half])
            scale, power = 2.0 ** rng.integers(-3, 3, n), rng.integers(-1, 2, (n, groups))
            self.bias = rng.integers(-9, 10, n).astype(np.float32) if bias else EMPTY
        else:
            self.x = (rng.standard_normal((m, k)) * 2.0 ** rng.integers(-6, 7, (m, 1))).astype(HALVES[half])
            scale, power = (rng.random(n) + 0.1) / 64, rng.random((n, groups)) * 4 - 2
            self.bias = rng.standard_normal(n).astype(np.float32) if bias else EMPTY
        self.w_scale = scale.astype(np.float32)
        if e8m0:
            self.group_scale = (np.rint(power) + 127).astype(np.uint8)
            self.group_value = 2.0 ** (self.group_scale.astype(np.float64) - 127)
        else:
            self.group_scale = (2.0**power).astype(np.float16)
            self.group_value = self.group_scale.astype(np.float64)
        self.table = table
        self.residual = rng.standard_normal((m, n) if residual else 0).astype(HALVES[half])

    def weight64(self):
        """[N, K] in float64, without the scale of the channel."""
        w = self.table[self.codes]
        return w * np.repeat(self.group_value, self.group, 1)[:, : self.k] if self.group else w

    def want(self):
        """The exact sum, then the roundings: times the channel's scale, plus bias, plus residual, to the type
        of x.
        """
        total = (self.x.astype(np.float64) @ self.weight64().T).astype(np.float32)
        y = total * self.w_scale
        if self.bias.size:
            y = y + self.bias
        if self.residual.size:
            y = y + self.residual.astype(np.float32)
        with np.errstate(over="ignore"):
            return y.astype(HALVES[self.half])

    def run(self, emulated, sm=80, sms=4, splits=1, **options):
        rows = np.full((self.m, -(-self.k // 8) * 8), np.nan, self.x.dtype)  # the padding is poison
        rows[:, : self.k] = self.x
        y = aligned(np.zeros((self.m, self.n), HALVES[self.half]))
        scales = pictures.pack_scales(self.group_scale) if self.group else np.zeros(0, np.uint8)
        report = emulated.fp_gemm(
            self.format, self.half == "bfloat16", self.k, self.group, aligned(rows.view(np.uint16)),
            aligned(pictures.pack_weight(self.codes, self.format)), aligned(scales), 1.0,
            aligned(self.w_scale), aligned(self.bias), aligned(self.residual).view(np.uint16),
            y.view(np.uint16), sm, sms, splits, options,
        )  # fmt: skip
        return y, report

    def check(self, emulated, sm=80, sms=4, splits=1, **options):
        y, report = self.run(emulated, sm, sms, splits, **options)
        if self.exact:
            compare.exact(y, self.want())
        else:
            self.check_bound(y, report["choice"]["kernel"])
        return report

    def check_bound(self, y, kernel="mma"):
        """K products and sums, one more for each group and split, and three roundings of the epilogue. On
        wgmma the weight times the scale of its group is rounded to the type of x.
        """
        terms = self.k + 40
        if self.group and kernel == "wgmma":
            terms += 2**13 if self.half == "float16" else 2**16 + 2**9
        w = self.weight64() * self.w_scale.astype(np.float64)[:, None]
        x = self.x.astype(np.float64)
        bias = self.bias.astype(np.float64) if self.bias.size else np.zeros(self.n)
        size = np.abs(x) @ np.abs(w).T + np.abs(bias)
        return compare.bounded(y, x @ w.T + bias, size, terms, self.half)


TILES = list(itertools.product(FORMATS, HALVES, (16, 64, 128)))


def sm_of(tokens):
    """The card that has the tile: the one of 128 tokens is wgmma's."""
    return 90 if tokens == 128 else 80


# ---- the answer


@pytest.mark.parametrize(("format", "half", "tokens"), TILES)
@pytest.mark.parametrize(
    ("which", "n", "k"),
    [
        (0, 1, 1),
        (0, 63, 31),
        (1, 64, 64),
        (1, 65, 127),
        (2, 127, 128),
        (2, 130, 129),
        (3, 129, 257),
        (3, 7, 1001),
    ],
)
def test_edges(emulated, format, half, tokens, which, n, k):
    """Around every tile edge, every ungrouped instance: nothing past the end is read or written."""
    report = Problem(TOKENS[tokens][which], n, k, format, half, seed=n).check(emulated, sm_of(tokens))
    assert report["choice"]["tokens"] == tokens
    assert report["choice"]["kernel"] == ("wgmma" if tokens == 128 else "mma")


@pytest.mark.parametrize(("format", "half", "tokens"), TILES)
def test_groups(emulated, format, half, tokens):
    """Groups of 32 with E8M0 scales, of 32, 64 and 128 with fp16, whole and cut off by the end of K."""
    for group, k in ((32, 32), (32, 168), (-32, 168), (64, 200), (64, 128), (128, 300)):
        Problem(TOKENS[tokens][0], 96, k, format, half, group).check(emulated, sm_of(tokens))


@pytest.mark.parametrize(("format", "half", "tokens"), TILES)
def test_beyond_the_ring(emulated, format, half, tokens):
    """K past the depth of the pipeline, with the largest value of the format in every place."""
    p = Problem(TOKENS[tokens][-2], 128, 6 * 128 + 64, format, half)
    p.codes[:] = np.argmax(np.abs(p.table))
    p.x[:] = 3
    report = p.check(emulated, sm_of(tokens))
    assert report["choice"]["stages"] > report["choice"]["ring"]


@pytest.mark.parametrize("sms", [1, 3])
def test_persistent_blocks(emulated, sms):
    """A block of the wgmma kernel goes through several items, and its ring through them all."""
    for splits, format in ((1, "e3m2"), (2, "int4")):
        report = Problem(270, 200, 5 * 128 + 8, format).check(emulated, 90, sms, splits, seed=sms)
        assert report["choice"]["blocks"] == sms < 6 * splits


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("format", FORMATS)
def test_scaled_weights_are_rounded_to_nearest(emulated, format, half):
    """On wgmma each weight alone: fp16 rounds value times scale once, bf16 misses that by 2^-8 of a step."""
    p = Problem(66, 128, 64, format, half, -32, bias=False, exact=False)
    p.w_scale[:] = 1
    p.x[:] = 0
    p.x[np.arange(64), np.arange(64)] = 1
    y, _ = p.run(emulated, 90)
    exact = p.weight64().T
    got = y[:64].astype(np.float64)
    if half == "float16":
        compare.exact(y[:64], exact.astype(np.float16))
    else:
        step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
        assert (np.abs(got - exact) <= step * (0.5 + 2**-8)).all()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_code(emulated, format, half):
    """Each code alone, at every k of a block: its value comes out exactly, in every place of the layout."""
    count = len(values(format))
    p = Problem(1, 64 * count, 128, format, half, bias=False)
    p.w_scale[:] = 1
    p.codes[:] = np.arange(64 * count)[:, None] % count
    for k in (0, 1, 6, 7, 8, 15, 16, 31, 32, 65, 127):
        p.x[:] = 0
        p.x[0, k] = 1
        p.check(emulated)


@pytest.mark.parametrize("k", [1, 300, 1300])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("format", FORMATS)
def test_random_data_within_the_bound(emulated, format, half, group, k):
    for sm, m in ((80, 5), (80, 20), (90, 70)):
        Problem(m, 70, k, format, half, group, exact=False, seed=k).check(emulated, sm, splits=1 + k // 600)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("sm", "m"), [(80, 9), (90, 66)])
def test_epilogue(emulated, sm, m, half, bias, residual):
    """Aligned and odd rows of y; sums at the ends of fp16, which overflow there and only there."""
    for n in (68, 77):
        p = Problem(m, n, 192, half=half, bias=bias, residual=residual)
        p.x *= 512
        p.w_scale[::3] = 2.0**8
        p.w_scale[1::3] = 2.0**-40
        report = p.check(emulated, sm)
        if residual:
            count = report["buffers"]["residual"]
            assert (count["read_min"], count["read_max"]) == (1, 1)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("sm", "m"), [(80, 2), (90, 65)])
def test_smallest_and_largest_activations(emulated, sm, m, half):
    """Subnormal and large x against every value: nothing flushes, nothing overflows early."""
    for format, x in itertools.product(FORMATS, (2.0**-24, 3 * 2.0**-23, 60000.0)):
        p = Problem(m, 64, 40, format, half, bias=False)
        p.x[:] = 0
        p.x[0, 3] = p.x[1, 39] = x
        p.w_scale[:] = 2.0**20 if x < 1 else 2.0**-12
        p.check(emulated, sm)


@pytest.mark.parametrize("splits", [2, 3, 5])
@pytest.mark.parametrize(("sm", "m"), [(80, 4), (80, 9), (80, 60), (80, 100), (90, 75), (90, 130)])
def test_splits_of_k(emulated, sm, m, splits):
    """Exact sums are the same bits for any split; only rows that exist reach the workspace."""
    for format, group in (("e2m3", 0), ("e2m1", 32), ("int4", 128)):
        p = Problem(m, 130, 5 * 128 + 32, format, group=group, residual=splits != 3)
        report = p.check(emulated, sm, splits=splits)
        choice = report["choice"]
        assert choice["splits"] >= 2
        blocks = sum(-(-min(m - t, choice["tokens"]) // 8) for t in range(0, m, choice["tokens"]))
        written = choice["splits"] * choice["row_tiles"] * choice["rows"] * 8 * blocks * 4
        assert report["buffers"]["partial"]["bytes_written"] == written


@pytest.mark.parametrize(("sm", "m", "group"), [(80, 11, 0), (80, 11, 64), (90, 70, 0), (90, 70, 64)])
def test_any_order_of_blocks_and_threads_gives_the_same_bits(emulated, sm, m, group):
    """Sums that round: the last split to arrive adds all of them in their order, not in that of arrival."""
    p = Problem(m, 140, 9 * 128, "e2m3", "float16", group, exact=False)
    first, report = p.run(emulated, sm, splits=4, seed=0)
    p.check_bound(first, report["choice"]["kernel"])
    for seed in range(1, 12):
        again, _ = p.run(emulated, sm, splits=4, seed=seed)
        compare.exact(again, first)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("sm", "m"), [(80, 9), (90, 72)])
def test_nan_and_infinity_stay_in_their_row(emulated, sm, m):
    p = Problem(m, 64, 128)
    p.x[3, 5], p.x[6, 100] = np.nan, np.inf
    y, _ = p.run(emulated, sm)
    keep = np.delete(np.arange(m), [3, 6])
    assert np.isnan(y[3]).all() and not np.isfinite(y[6]).any()
    compare.exact(y[keep], p.want()[keep])


@pytest.mark.parametrize("group", GROUPS)
def test_no_k(emulated, group):
    for sm, m in ((80, 3), (80, 100), (90, 100)):
        p = Problem(m, 65, 0, group=group)
        y, _ = p.run(emulated, sm)
        compare.exact(y, np.broadcast_to(p.bias.astype(np.float16), (m, 65)))


# ---- the counts that need no GPU


@pytest.mark.parametrize(
    ("format", "half", "tokens", "group"),
    [(*tile, group) for tile in TILES for group in (0, 32, -32)],
)
def test_traffic(emulated, format, half, tokens, group):
    """No bank conflict anywhere, every access coalesced, each byte read once per tile."""
    n = 2 * (192 if tokens == 128 else 128)
    p = Problem(tokens, n, 512, format, half, group, bias=False, residual=half == "float16")
    report = p.check(emulated, sm_of(tokens))
    choice = report["choice"]
    for name, count in report["shared"].items():
        assert count["actual"] == count["ideal"], f"{name}: {count}"
    for name, count in report["global"].items():
        assert count["actual"] == count["ideal"], f"{name}: {count}"
    buffers = report["buffers"]
    assert (buffers["weight"]["read_min"], buffers["weight"]["read_max"]) == (1, 1)
    assert buffers["weight"]["bytes_read"] == n * 512 * (6 if format in ("e3m2", "e2m3") else 4) // 8
    assert buffers["x"]["read_max"] == choice["row_tiles"]
    assert buffers["y"]["write_max"] == 1
    if group:
        assert buffers["group_scale"]["read_max"] == 1
    products = choice["row_tiles"] * choice["rows"] * choice["token_tiles"] * choice["tokens"] * 512
    if choice["kernel"] == "wgmma":
        assert report["instructions"]["wgmma"] == products // (64 * tokens * 16)
        return
    name = "mma.m16n8k16." + ("f16" if half == "float16" else "bf16")
    assert report["instructions"][name] == products // (16 * 8 * 16)
    assert report["instructions"]["ldmatrix"] == products // (32 * 8 * 32)  # for the 32 channels of a warp


@pytest.mark.parametrize(("format", "half", "tokens"), TILES)
def test_no_race_in_twenty_orders(emulated, format, half, tokens):
    group = GROUPS[(FORMATS.index(format) + (half == "bfloat16") + tokens // 16) % 5]
    p = Problem(TOKENS[tokens][1], 72, 6 * 128 - 40, format, half, group, residual=tokens == 64)
    want, sm = p.want(), sm_of(tokens)
    for seed in range(20):
        y, _ = p.run(emulated, sm, splits=1 + seed % 3, seed=seed, smem_base_mod=(0, 128, 256, 512)[seed % 4])
        compare.exact(y, want)


# ---- layouts and choices


@pytest.mark.parametrize("format", FORMATS)
def test_layout_is_the_pictures(emulated, format):
    """The kernel's map against the pictures, and the pictures cover every bit of the words once."""
    found = pictures.places(format)
    bits = 6 if format in ("e3m2", "e2m3") else 4
    assert set(found) == set(itertools.product(range(8), range(bits)))
    assert len({(word, (at + 16 * e) % 32) for word, at in found.values() for e in range(2)}) == 16 * bits
    assert all(emulated.fp_gemm_place(format, *key) == at for key, at in found.items())
    words, seen = bits // 2, set()
    for n, k in itertools.product(range(128), range(0, 256, 3)):
        byte, pair, second = emulated.fp_gemm_code_at(format, n, k, 2)
        lane, slab = 4 * (n % 8) + k % 8 // 2, (n // 64 * 2 + k // 128) * 4 + n % 64 // 16
        assert byte == ((slab * words * 32) + lane) * 16 + k % 128 // 32 * 4
        assert (pair, second) == (k % 32 // 16 * 4 + k % 16 // 8 * 2 + n % 16 // 8, bool(k % 2))
        seen.add((byte, pair, second))
    assert len(seen) == 128 * 86


@pytest.mark.parametrize(("n", "k"), [(1, 1), (64, 128), (65, 130), (130, 257)])
@pytest.mark.parametrize("format", FORMATS)
def test_library_packs_as_described(format, n, k):
    """What the op on CUDA tensors does, here on CPU tensors; and back."""
    rng = np.random.default_rng(n)
    codes = rng.integers(0, len(values(format)), (n, k))
    of_codes = "e2m1" if format == "int4" else format
    portable = minifloat.pack_codes(torch.from_numpy(codes.astype(np.uint8)), of_codes)
    blocks = fp_layout.prepack_fp_blocks(portable, format, k)
    assert blocks.shape == (-(-n // 64), -(-k // 128), fp_layout.block_bytes(format))
    assert fp_layout.is_blocks(blocks)
    compare.exact(blocks.ravel(), pictures.pack_weight(codes, format))
    compare.exact(fp_layout.unprepack_fp_blocks(blocks, format, n, k), portable)


def test_e1m2_is_int4_with_a_quarter():
    codes = torch.arange(16, dtype=torch.uint8).repeat(3, 1)
    blocks = fp_layout.prepack_fp_blocks(minifloat.pack_codes(codes, "e1m2"), "e1m2", 16)
    nibbles = (4 * minifloat.decode(codes, "e1m2") + 8).to(torch.uint8)
    compare.exact(blocks, fp_layout.prepack_fp_blocks(minifloat.pack_codes(nibbles, "e2m1"), "int4", 16))
    back = minifloat.unpack_codes(fp_layout.unprepack_fp_blocks(blocks, "e1m2", 3, 16), "e1m2", 16)
    compare.exact(minifloat.decode(back, "e1m2"), minifloat.decode(codes, "e1m2"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_library_packs_scales_as_described(dtype):
    scales = (torch.rand(70, 5) * 100 + 1).to(dtype)
    compare.exact(fp_layout.prepack_fp_scale_blocks(scales).ravel(), pictures.pack_scales(scales.numpy()))


@pytest.mark.parametrize(("rows", "tokens", "splits"), [(1, 1, 1), (5, 3, 2), (7, 17, 1), (3, 8, 4)])
def test_every_item_has_its_place(emulated, rows, tokens, splits):
    items = emulated.fp_gemm_items(rows * tokens * splits, rows, tokens)
    assert set(items) == {(r, t, s) for r in range(rows) for t in range(tokens) for s in range(splits)}


@pytest.mark.parametrize(
    ("sm", "sms", "shared"), [(80, 108, 166912), (86, 84, 101376), (89, 128, 101376), (90, 132, 232448)]
)
def test_a_kernel_for_every_layer_of_the_models(emulated, sm, sms, shared):
    """Fits the card, covers the work, leaves no split empty; as many blocks as it should hold do fit."""
    layers = {(n, k) for layers in MODEL_LAYERS.values() for n, k in layers} | {(28672, 8192), (1024, 8192)}
    for n, k in layers:
        for m, format, grouped in itertools.product((1, 16, 17, 64, 65, 512), FORMATS, (False, True)):
            c = emulated.fp_gemm_choose(m, n, k, format, grouped, sm, sms)
            assert c["shared"] <= shared and c["resident"] * (c["shared"] + 1024) <= shared + 1024, c["text"]
            assert c["row_tiles"] * c["rows"] >= n and c["token_tiles"] * c["tokens"] >= m
            assert (
                (c["splits"] - 1) * c["stages_per_split"] < c["stages"] <= c["splits"] * c["stages_per_split"]
            )
            wgmma = sm == 90 and m > 64
            assert c["ring"] >= 3 and c["tokens"] == (16 if m <= 16 else 128 if wgmma else 64), c["text"]
            assert c["kernel"] == ("wgmma" if wgmma else "mma") and c["blocks"] <= (sms if wgmma else 1 << 30)
            assert c["splits"] == 1 or c["partial_words"] <= sms * c["resident"] * c["rows"] * c["tokens"]


def test_the_choice_explains_itself(emulated):
    text = emulated.fp_gemm_choose(1, 4096, 4096, "e3m2", False, 90, 132)["text"]
    want = "mma.sync, tile 128 channels x 16 tokens, 32 x 1 tiles, 8 splits of 4 stages, 4 stages in the ring"
    assert text.startswith(want), text
    text = emulated.fp_gemm_choose(128, 4096, 4096, "e3m2", False, 90, 132)["text"]
    assert text.startswith("wgmma, tile 192 channels x 128 tokens, 22 x 1 tiles, 6 splits of 6 stages"), text


# ---- around the GEMM


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("n", "k", "stride"), [(1, 1, 8), (64, 128, 128), (65, 200, 200), (130, 257, 264)])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("format", FORMATS)
def test_dequantize(emulated, format, half, n, k, stride, group):
    """Every value times the scale of its group, rounded once; whole 16 bytes of a row; what lies past k
    within them is the padding's zero.
    """
    p = Problem(1, n, k, format, half, group, exact=False, seed=k)
    out = aligned(np.full((n, stride), 7, HALVES[half]))
    weight = aligned(pictures.pack_weight(p.codes, format))
    scales = aligned(pictures.pack_scales(p.group_scale)) if group else np.zeros(0, np.uint8)
    report = emulated.fp_gemm_dequantize(
        format, half == "bfloat16", k, p.group, weight, scales, out.view(np.uint16), {"seed": n}
    )
    want = np.zeros((n, stride), HALVES[half])
    want[:, :k] = p.weight64()
    compare.exact(out, want)
    assert report["buffers"]["weight"]["read_max"] == 1 and report["buffers"]["out"]["write_max"] == 1
    for name, count in report["shared"].items():
        assert count["actual"] == count["ideal"], f"{name}: {count}"
    if not group:
        assert report["global"]["ld.global"]["actual"] == report["global"]["ld.global"]["ideal"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("m", "n", "first", "of"), [(1, 1, 0, 1), (5, 64, 64, 128), (3, 7, 64, 71), (300, 36, 0, 36)]
)
def test_finish(emulated, half, residual, bias, m, n, first, of):
    """Scale, bias and residual of a panel of channels, rounded as in the kernel's own epilogue."""
    rng = np.random.default_rng(n)
    total = rng.standard_normal((m, n)).astype(np.float32)
    scale, offset = (rng.standard_normal(of).astype(np.float32) for _ in range(2))
    y = aligned(np.zeros((m, of), HALVES[half]))
    added = aligned(rng.standard_normal((m, of) if residual else 0).astype(HALVES[half]))
    arrays = (aligned(total), aligned(scale), aligned(offset) if bias else EMPTY, added.view(np.uint16))
    emulated.fp_gemm_finish(half == "bfloat16", *arrays, y.view(np.uint16), first, {"seed": m})
    want = np.zeros((m, of), np.float32)
    want[:, first : first + n] = total * scale[first : first + n] + (offset[first : first + n] if bias else 0)
    if residual:
        want[:, first : first + n] += added[:, first : first + n].astype(np.float32)
    compare.exact(y, want.astype(HALVES[half]))


def nearest(x, format, ties_away):
    """The code of the nearest value, by search through all of them; ties to the even code, or away from zero.
    The significand of an e3m0 is 1, odd, so that ties go up but for the one above zero.
    """
    table = values(format)
    half = len(table) // 2
    size = np.minimum(np.abs(np.where(np.isnan(x), 0, x).astype(np.float64)), 2 * table.max())  # no inf - inf
    distance = np.abs(size[:, None] - table[:half])
    low = distance.argmin(1)  # the lower of two equally near
    tie = (low + 1 < half) & (distance[np.arange(len(x)), np.minimum(low + 1, half - 1)] == distance.min(1))
    odd = low > 0 if format == "e3m0" else low % 2 == 1
    code = np.where(tie & (ties_away | odd), low + 1, low)
    return (code + half * (np.signbit(x) & ~np.isnan(x))).astype(np.uint8)


@pytest.mark.parametrize("ties_away", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", ["e3m2", "e2m3", "e2m1", "e1m2", "e3m0"])
def test_encode(emulated, format, dtype, ties_away):
    """Every value, tie and neighbour, zeros, the ends of the type, NaN; aligned or not, any count."""
    kind = {"float32": np.float32, **HALVES}[dtype]
    table = np.sort(np.abs(values(format)))
    points = np.concatenate([table, (table[1:] + table[:-1]) / 2, [1e-8, 1e4, np.inf, np.nan]]).astype(kind)
    x = np.concatenate([points, np.nextafter(points, kind(9)), np.nextafter(points, kind(0))])
    x = np.concatenate([x, -x])
    for start, count in ((0, len(x)), (3, len(x) - 3), (8, 1000), (1, 1)):
        part = aligned(x)[start:][:count]
        codes = aligned(np.full(len(part), 255, np.uint8))
        words = part.view(np.uint16) if dtype != "float32" else part
        emulated.fp_gemm_encode(format, dtype, words, ties_away, codes, {"seed": count})
        compare.exact(codes, nearest(part.astype(np.float64), format, ties_away))
