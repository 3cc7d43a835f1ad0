"""The CUDA integer GEMM under the emulator: every instance against the float64 oracle, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
import torch
from lowbit.reference import layout

from tests.oracle import codec, compare, fp4
from tests.oracle import ops as oracle
from tests.oracle.cases import MODEL_LAYERS

EMPTY = np.zeros(0, np.float32)
FP4 = ("e2m1", "e1m2", "e3m0")
# s4: int4 weights and activations on the s4 tensor cores; e3m0 stands for all of FP4, which one kernel serves
KINDS = ("int4", "int4_group", "int8", "s4", "e3m0")
# Llama-2-7B and 70B, Llama-3-70B, Qwen2.5-7B, Qwen3-8B
MORE_LAYERS = [
    (4096, 4096), (11008, 4096), (4096, 11008), (8192, 8192), (28672, 8192), (8192, 28672), (1024, 8192),
    (3584, 3584), (512, 3584), (18944, 3584), (3584, 18944), (12288, 4096), (4096, 12288), (128256, 4096),
]  # fmt: skip
OUT = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


# ---- the layouts, written a second time from their description


def pack_weight(codes, kind):
    """[N, K] codes -> bytes of the blocks [N/64][K/64]."""
    if kind in FP4:
        codes, kind = codes - 8, "int4"  # the same nibbles
    n, k = codes.shape
    w = np.zeros((-(-n // 64) * 64, -(-k // 64) * 64), np.int64)
    w[:n, :k] = codes
    # n = 64 N + 16 slab + 8 a + g; k = 64 K + 32 c + 16 h + 4 q + j
    w = w.reshape(w.shape[0] // 64, 4, 2, 8, w.shape[1] // 64, 2, 2, 4, 4)  # N slab a g K c h q j
    if kind == "int8":
        return w.transpose(0, 4, 1, 5, 3, 7, 6, 2, 8).astype(np.int8).view(np.uint8).ravel()
    w = w.transpose(0, 4, 1, 3, 7, 5, 2, 8, 6) + 8  # N K slab g q c a j h
    return (w[..., 0] | w[..., 1] << 4).astype(np.uint8).ravel()


def pack_scales(scales):
    n, groups = scales.shape
    padded = np.ones((-(-n // 64) * 64, groups), np.uint8)
    padded[:n] = scales
    return np.ascontiguousarray(padded.reshape(-1, 64, groups).transpose(0, 2, 1)).ravel()


def operand4(codes):
    """int4 codes [M, K] -> two's complement nibbles: byte t of a group of 32 k holds k = t and k = 16 + t."""
    m, k = codes.shape
    padded = np.zeros((m, -(-k // 64) * 64), np.int64)
    padded[:, :k] = codes
    halves = padded.reshape(m, -1, 2, 16) & 15
    return (halves[:, :, 0] | halves[:, :, 1] << 4).astype(np.uint8).reshape(m, -1)


def int8_rows(codes):
    """int8 codes with rows padded to 16 bytes; the padding is poison, for the kernel must not read it."""
    m, k = codes.shape
    rows = np.full((m, -(-k // 16) * 16), 0x55, np.uint8)
    rows[:, :k] = codes.astype(np.int8).view(np.uint8)
    return rows


def aligned(a, to=128):
    """A copy at an address that is a multiple of `to`, as torch's allocator gives."""
    raw = np.empty(a.nbytes + to, np.uint8)
    start = -raw.ctypes.data % to
    out = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


class Problem:
    """Random operands of one shape, and the oracle's answer."""

    def __init__(self, m, n, k, kind="int4", group=64, x_scale=True, bias=True, out="float32", seed=0,
                 rank=0, residual=False):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.weight = "int4" if kind == "s4" else kind
        self.group = group if kind == "int4_group" else 0
        self.m, self.n, self.k, self.out, self.s4 = m, n, k, out, kind == "s4"
        low, high = {"int8": (-128, 128)}.get(kind, (0, 16) if kind in FP4 else (-8, 8))
        self.codes = rng.integers(low, high, (n, k))
        self.scales = rng.integers(1, 17, (n, -(-k // group))).astype(np.uint8) if self.group else None
        self.x = rng.integers(-8, 8, (m, k)) if self.s4 else rng.integers(-128, 128, (m, k))
        self.w_scale = rng.random(n).astype(np.float32) + np.float32(0.1)
        self.x_scale = rng.random(m).astype(np.float32) + np.float32(0.1) if x_scale else EMPTY
        self.bias = rng.standard_normal(n).astype(np.float32) * 100 if bias else EMPTY
        self.added = {}
        if residual:
            self.added["residual"] = (rng.standard_normal((m, n)) * 1000).astype(OUT[out])
        if rank:
            self.added["low_rank"] = rng.standard_normal((m, rank)).astype(np.float32) * 30
            self.added["low_rank_up"] = rng.standard_normal((rank, n)).astype(np.float32)

    def want(self):
        scale, bias = (v if v.size else None for v in (self.x_scale, self.bias))
        if self.weight in FP4:
            return fp4.linear_exact(
                self.x, "int8", scale, self.codes, self.weight, self.w_scale, bias, self.out
            )
        w = oracle.integer_weight(self.codes, self.scales, self.group or None)
        return oracle.linear_exact(self.x, scale, w, self.w_scale, bias, self.out, **self.added)

    def run(self, emulated, sm, sms=4, splits=1, **options):
        x = operand4(self.x) if self.s4 else int8_rows(self.x)
        y = aligned(np.zeros((self.m, self.n), OUT[self.out]))
        arrays = (
            pack_weight(self.codes, self.weight),
            pack_scales(self.scales) if self.group else EMPTY,
            self.w_scale,
            self.x_scale,
            self.bias,
        )
        added = {name: aligned(a) for name, a in self.added.items()}
        if self.out == "bfloat16" and "residual" in added:
            added["residual"] = added["residual"].view(np.uint16)
        report = emulated.int_gemm(
            self.weight, self.s4, self.k, self.group, aligned(x), x.shape[1] if self.s4 else self.k,
            *(aligned(a) for a in arrays), y.view(np.uint16) if self.out == "bfloat16" else y, self.out,
            sm, sms, splits, 1 / fp4.STEPS.get(self.weight, 1), added, options,
        )  # fmt: skip
        return y, report

    def check(self, emulated, sm, sms=4, splits=1, **options):
        y, report = self.run(emulated, sm, sms, splits, **options)
        compare.exact(y, self.want())
        return report


def kinds_of(sm):
    return [k for k in KINDS if k != "s4" or sm != 90]


TILES = [(sm, kind, tokens) for sm in (80, 90) for kind in kinds_of(sm) for tokens in (16, 64, 128, 256)
         if sm == 90 or tokens < 256]  # fmt: skip


def tokens_in(tile, choice):
    """A number of rows of x that makes the card choose the tile."""
    return {16: (1, 3, 15, 16), 64: (17, 33, 63, 64), 128: (65, 127, 128), 256: (129, 255, 256, 257)}[tile][
        choice
    ]


# ---- the answer


@pytest.mark.parametrize(("sm", "kind", "tokens"), TILES)
@pytest.mark.parametrize(
    ("which", "n", "k"),
    [
        (0, 1, 1),
        (0, 63, 31),
        (1, 64, 64),
        (1, 65, 63),
        (2, 127, 127),
        (2, 130, 129),
        (2, 192, 576),
        (1, 7, 1000),
    ],
)
def test_edges(emulated, sm, kind, tokens, which, n, k):
    """Around every tile edge, every instance: nothing past the end is read or written."""
    m = tokens_in(tokens, which)
    report = Problem(m, n, k, kind, seed=n).check(emulated, sm)
    choice = report["choice"]
    assert choice["tokens"] == tokens or (tokens == 128 and sm == 80)
    assert choice["kernel"] == ("wgmma" if sm == 90 and tokens >= 64 else "mma")


@pytest.mark.parametrize(("sm", "kind", "tokens"), TILES)
def test_exact_beyond_the_ring(emulated, sm, kind, tokens):
    """K past the depth of the pipeline, and the largest codes there are."""
    p = Problem(tokens_in(tokens, -1), 128, 8 * 128 + 64, kind, group=128)
    p.codes[:] = 15 if kind in FP4 else p.codes.min()
    p.x[:] = p.x.min()
    if p.group:
        p.scales[:] = 16
    p.check(emulated, sm)


@pytest.mark.parametrize("fmt", FP4)
@pytest.mark.parametrize(("sm", "m"), [(80, 12), (80, 40), (80, 70), (90, 16), (90, 50), (90, 200)])
def test_every_fp4_code(emulated, sm, m, fmt):
    """All codes of all formats in every place of a word, against activations that tell the k apart."""
    p = Problem(m, 80, 64, fmt)
    p.codes[:] = (np.arange(80)[:, None] + 3 * np.arange(64)) % 16
    p.check(emulated, sm)
    for x_format in FP4:  # what becomes of packed FP4 activations
        problem = Problem(m, 72, 200, fmt, seed=2)
        problem.x = fp4.integers(problem.x % 16, x_format)
        problem.check(emulated, sm)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("sm", "m"), [(80, 5), (80, 40), (80, 70), (90, 30), (90, 100), (90, 200)])
def test_group_sizes(emulated, sm, m, group):
    for k in (32, 160, 416):
        Problem(m, 96, k, "int4_group", group).check(emulated, sm)


@pytest.mark.parametrize("out", list(OUT))
@pytest.mark.parametrize(("x_scale", "bias"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("sm", "m"), [(80, 9), (90, 150)])
def test_epilogue(emulated, sm, m, out, x_scale, bias):
    """Static and dynamic scales, with and without bias, all output types, aligned and odd rows of y."""
    for n, kind in ((68, "int4"), (77, "int4"), (68, "e1m2"), (77, "e1m2")):
        Problem(m, n, 192, kind, x_scale=x_scale, bias=bias, out=out).check(emulated, sm)


@pytest.mark.parametrize("out", list(OUT))
@pytest.mark.parametrize(("rank", "residual"), [(0, True), (3, False), (16, True)])
@pytest.mark.parametrize(("sm", "m"), [(80, 9), (80, 37), (80, 90), (90, 5), (90, 61), (90, 101), (90, 150)])
def test_addends(emulated, sm, m, out, rank, residual):
    """A low-rank product and a residual, in every tile, aligned and odd rows of y, split or not."""
    for n, kind, splits in ((68, "int4", 1), (77, "int8", 1), (132, "int4_group", 2)):
        p = Problem(m, n, 192, kind, x_scale=n != 77, bias=n != 68, out=out, rank=rank, residual=residual)
        report = p.check(emulated, sm, splits=splits)
        if "residual" in p.added:
            count = report["buffers"]["residual"]
            assert count["read_min"] == count["read_max"] == 1


def test_addends_order(emulated):
    """Each product is rounded and added in turn, the residual last: cancellation shows any other order."""
    p = Problem(20, 64, 64, "int4", rank=4, residual=True)
    p.added["low_rank"][:] = np.array([1e8, 1, -1e8, 3e-8], np.float32)
    p.added["low_rank_up"][:] = np.float32(1.1)
    p.added["residual"][:] = np.float32(-5e7)
    for sm in (80, 90):
        p.check(emulated, sm)


@pytest.mark.parametrize("splits", [2, 3, 5])
@pytest.mark.parametrize(("sm", "m"), [(80, 4), (80, 60), (80, 100), (90, 50), (90, 120), (90, 300)])
def test_splits_of_k_give_the_same_bits(emulated, sm, m, splits):
    for kind in ("int4", "int4_group", "e2m1"):
        report = Problem(m, 130, 5 * 128 + 32, kind).check(emulated, sm, splits=splits)
        assert report["choice"]["splits"] >= 2


@pytest.mark.parametrize("sms", [1, 3])
def test_persistent_blocks(emulated, sms):
    """Fewer blocks than items: the ring and its phases go on from one item to the next."""
    for splits in (1, 2):
        report = Problem(300, 300, 640).check(emulated, 90, sms=sms, splits=splits)
        assert report["choice"]["blocks"] == sms


def test_nan_scale_stays_in_its_row(emulated):
    for sm, m in ((80, 9), (90, 70)):
        p = Problem(m, 64, 128)
        p.x_scale[3] = np.nan
        y, _ = p.run(emulated, sm)
        assert np.isnan(y[3]).all() and not np.isnan(np.delete(y, 3, 0)).any()


def test_no_k(emulated):
    for sm in (80, 90):
        for m in (3, 100):
            y = np.full((m, 65), np.nan, np.float32)
            p = Problem(m, 65, 0)
            y, _ = p.run(emulated, sm)
            assert np.array_equal(y, np.broadcast_to(p.bias, (m, 65)))


# ---- the counts that need no GPU


@pytest.mark.parametrize(("sm", "kind", "tokens"), TILES)
def test_traffic(emulated, sm, kind, tokens):
    """No bank conflict anywhere, every access coalesced, each byte read once per tile."""
    report = Problem(tokens, 256, 512, kind, group=128, bias=False).check(emulated, sm)
    choice = report["choice"]
    for name, count in report["shared"].items():
        assert count["actual"] == count["ideal"], f"{name}: {count}"
    for name, count in report["global"].items():
        if name != "ld.global":  # one scale for a whole row: a broadcast
            assert count["actual"] == count["ideal"], f"{name}: {count}"
    buffers = report["buffers"]
    assert (buffers["weight"]["read_min"], buffers["weight"]["read_max"]) == (1, 1)
    assert buffers["x"]["read_max"] == choice["row_tiles"]
    assert buffers["y"]["write_max"] == 1
    if kind == "int4_group":
        assert buffers["group_scale"]["read_max"] == 1
    products = choice["row_tiles"] * choice["rows"] * choice["token_tiles"] * choice["tokens"] * 512
    instructions = report["instructions"]
    if choice["kernel"] == "wgmma":
        assert instructions["wgmma"] == products // (64 * choice["tokens"] * 32)
    elif kind == "s4":
        assert instructions["mma.m16n8k64.s4"] == products // (16 * 8 * 64)
    else:
        assert instructions["mma.m16n8k32.s8"] == products // (16 * 8 * 32)


@pytest.mark.parametrize(("sm", "kind", "tokens"), TILES)
def test_no_race_in_twenty_orders(emulated, sm, kind, tokens):
    p = Problem(tokens_in(tokens, 1), 72, 9 * 128 - 40, kind)
    want = p.want()
    for seed in range(20):
        y, _ = p.run(emulated, sm, splits=1 + seed % 3, seed=seed, smem_base_mod=(0, 128, 256, 512)[seed % 4])
        compare.exact(y, want)


# ---- layouts and choices


def test_packers():
    """Both packers from the description: every code of a block has its own place."""
    codes = np.arange(64 * 64).reshape(64, 64)
    bytes8 = pack_weight(codes % 251 - 125, "int8").view(np.int8)
    assert sorted(bytes8) == sorted((codes % 251 - 125).ravel())
    assert len(pack_weight(codes % 16 - 8, "int4")) == 2048


@pytest.mark.parametrize(("n", "k"), [(1, 2), (64, 64), (65, 66), (130, 258)])
def test_library_packs_as_described(n, k):
    """What the ops on CUDA tensors do, here on CPU tensors; and back."""
    rng = np.random.default_rng(n)
    portable = torch.from_numpy(codec.pack_nibbles(rng.integers(-8, 8, (n, k))))
    int8 = torch.from_numpy(rng.integers(-128, 128, (n, k)).astype(np.int8))
    scales = torch.from_numpy(rng.integers(1, 17, (n, 3)).astype(np.uint8))
    blocks4, blocks8 = layout.prepack_int4_blocks(portable), layout.prepack_int8_blocks(int8)
    blocks = (-(-n // 64), -(-k // 64))
    assert blocks4.shape == (*blocks, 2048) and blocks8.shape == (*blocks, 4096)
    compare.exact(blocks4.ravel(), pack_weight(codec.unpack_nibbles(portable.numpy(), k), "int4"))
    compare.exact(blocks8.ravel().view(torch.uint8), pack_weight(int8.numpy(), "int8"))
    compare.exact(layout.prepack_group_scale_blocks(scales).ravel(), pack_scales(scales.numpy()))
    compare.exact(layout.unprepack_int4_weight(blocks4, n, k), portable)
    compare.exact(layout.unprepack_int8_weight(blocks8, n, k), int8)


@pytest.mark.parametrize(("rows", "tokens", "splits"), [(1, 1, 1), (5, 3, 2), (7, 17, 1), (3, 8, 4)])
def test_every_item_has_its_place(emulated, rows, tokens, splits):
    items = emulated.int_gemm_items(rows * tokens * splits, rows, tokens)
    assert set(items) == {(r, t, s) for r in range(rows) for t in range(tokens) for s in range(splits)}


@pytest.mark.parametrize(
    ("sm", "sms", "shared"), [(80, 108, 166912), (86, 84, 101376), (89, 128, 101376), (90, 132, 232448)]
)
def test_a_kernel_for_every_layer_of_the_models(emulated, sm, sms, shared):
    """Llama-2 and 3, Qwen 2.5 and 3, SmolLM2: fits the card, covers the work, leaves no split empty; as many
    blocks as it counts on do fit.
    """
    for n, k in {(n, k) for layers in MODEL_LAYERS.values() for n, k in layers} | set(MORE_LAYERS):
        for m in (1, 2, 16, 17, 64, 65, 128, 129, 512, 4096):
            for kind in kinds_of(sm):
                weight = "int4" if kind == "s4" else kind
                c = emulated.int_gemm_choose(m, n, k, weight, kind == "s4", sm, sms)
                assert c["resident"] * (c["shared"] + 1024) <= shared + 1024, c["text"]
                assert c["row_tiles"] * c["rows"] >= n and c["token_tiles"] * c["tokens"] >= m
                assert (
                    (c["splits"] - 1) * c["stages_per_split"]
                    < c["stages"]
                    <= c["splits"] * c["stages_per_split"]
                )
                assert c["kernel"] == ("wgmma" if sm == 90 and m > 16 else "mma"), c["text"]
                assert c["splits"] == 1 or c["partial_words"] <= sms * c["resident"] * c["rows"] * c["tokens"]


def test_the_choice_explains_itself(emulated):
    text = emulated.int_gemm_choose(1, 4096, 4096, "int4", False, 90, 132)["text"]
    want = "mma.sync s8, tile 64 channels x 16 tokens, 64 x 1 tiles, 8 splits of 4 stages"
    assert text.startswith(want), text
