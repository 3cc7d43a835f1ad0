"""causal_attention: a prompt's queries over the keys up to their own, within a bound derived from the data.
"""

import dataclasses
from dataclasses import dataclass

import lowbit.ops
import lowbit.reference as ref
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracle import attention as oracle
from tests.oracle import compare

from .support import CPU_ONLY, GEMM_ISAS, ISAS, OPS, assert_unchanged, set_isa, snapshot, stored
from .test_isa import run as run_program

pytestmark = CPU_ONLY
TILES = [name for name in GEMM_ISAS if name not in ISAS]
# What the tiles leave out, relative: products of terms of bf16 with keys, and with values.
LEFT_OUT = {"float32": (2.0**-20, 2.0**-20), "float16": (0.0, 2.0**-13), "bfloat16": (0.0, 2.0**-14)}


@dataclass(frozen=True)
class Case:
    queries: int = 70
    keys: int = 70
    heads: int = 6
    kv_heads: int = 2
    d: int = 64
    batch: int = 1
    dtype: str = "float32"
    spread: float = 1.0  # of the queries
    scale: float | None = None

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.queries}of{self.keys}-{self.heads}q{self.kv_heads}-d{self.d}"
        return f"{sizes}-{self.dtype}-{self.spread:g}{'-negative' * ((self.scale or 1) < 0)}"


CASES = [
    Case(), Case(dtype="bfloat16"), Case(dtype="float16"), Case(1, 300), Case(7, 65), Case(8, 64), Case(9, 9),
    Case(16, 16, 1, 1), Case(17, 48, 1, 1, 80), Case(33, 500, 4, 4, 32, batch=2, dtype="bfloat16"),
    Case(40, 41, 5, 1, 33, batch=3), Case(22, 22, 3, 3, 1, dtype="float16"), Case(30, 90, 2, 1, 2),
    Case(8, 8, 4, 1, 1),
    Case(12, 140, 2, 2, 500), Case(8, 8, 8, 1, 128, dtype="float16"), Case(100, 130, 4, 2, 16),
    Case(spread=30.0), Case(spread=500.0), Case(spread=0.0, dtype="bfloat16"), Case(spread=8.0, scale=-0.2),
    Case(200, 200, 8, 2, 20, dtype="bfloat16"), Case(180, 180, 12, 1, 8, batch=2),
]  # fmt: skip


def make(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(seed + case.d + case.queries)
    dtype, c = getattr(torch, case.dtype), case
    q = torch.randn(c.batch, c.queries, c.heads, c.d, generator=g) * c.spread
    k, v = (torch.randn(c.batch, c.keys, c.kv_heads, c.d, generator=g) for _ in "kv")
    v += torch.randn(c.kv_heads, 1, generator=g)
    return q.to(dtype), k.to(dtype), v.to(dtype), c.d**-0.5 if c.scale is None else c.scale


def check(case: Case, args: tuple, got: Tensor, products: tuple[float, float] = (0.0, 0.0)) -> None:
    """Against float64. Of long prompts, some of the queries."""
    q, k, v, scale = args
    assert got.dtype == q.dtype and got.shape == q.shape and got.is_contiguous()
    nothing = oracle.poisoned(1, case.kv_heads, 16, case.d, 0)
    some = range(case.queries) if case.queries < 50 else (0, 1, 15, 31, 32, 43, case.queries - 1)
    for b in range(case.batch):
        for t in some:
            seen = case.keys - case.queries + t + 1
            held = [x[b, :seen].float().numpy() for x in (k, v)]
            want, bound = oracle.attention64(
                compare.to_numpy(q[b, t : t + 1]), nothing, np.zeros((1, 1), np.int32), [0], scale,
                any_order=True, prefix=held, products=products,
            )  # fmt: skip
            compare.elementwise(got[b, t], want[0], bound[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_bound(case, isa):
    args = make(case)
    before = snapshot(args[:3])
    got = OPS.causal_attention(*args)
    assert_unchanged(args[:3], before)
    check(case, args, got, LEFT_OUT[case.dtype] if isa in TILES else (0.0, 0.0))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case):
    args = make(case, 1)
    check(case, args, ref.causal_attention(*args))


@pytest.mark.parametrize("names", [ISAS, TILES], ids=["vectors", "tiles"])
def test_bits_are_those_of_every_instruction_set_of_a_kind(names):
    before = lowbit.ops.isa()
    for case in CASES:
        results = []
        for name in names:
            set_isa(name)
            results.append(OPS.causal_attention(*make(case)))
        for other in results[1:]:
            compare.exact(other, results[0])
    set_isa(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_tiles_the_bits_are_those_of_decode_attention(dtype, isa):
    case = Case(20, 600, 6, 2, 40, dtype=dtype)
    q, k, v, scale = make(case)
    got = OPS.causal_attention(q, k, v, scale)
    if isa in TILES:  # few queries take the other way
        q, got = q[:, -7:], OPS.causal_attention(q[:, -7:], k, v, scale)
    turn = torch.ones(1, 2), torch.zeros(1, 2)
    for t in range(got.shape[1]):
        last = 600 - got.shape[1] + t
        pages = [torch.zeros(3, 256, 2, 40, dtype=k.dtype) for _ in "kv"]
        for page, x in zip(pages, (k, v), strict=True):
            page.flatten(0, 1)[:last] = x[0, :last]
        qkv = torch.cat((q[0, t].flatten(), k[0, last].flatten(), v[0, last].flatten()))[None]
        table, lengths = torch.arange(3, dtype=torch.int32)[None], torch.tensor([last], dtype=torch.int32)
        want = OPS.kv_attend(qkv, *turn, 6, 2, *pages, table, lengths, scale)
        compare.exact(got[0, t].flatten(), want[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_batch_nor_pieces_nor_threads_nor_strides_change_bits(dtype, isa):
    """Pieces of at least 8 queries."""
    case = Case(150, 190, 4, 2, 48, batch=3, dtype=dtype)
    q, k, v, scale = make(case)
    whole, before = OPS.causal_attention(q, k, v, scale), torch.get_num_threads()
    for b in range(3):
        compare.exact(OPS.causal_attention(*(x[b : b + 1] for x in (q, k, v)), scale)[0], whole[b])
    for first, last in ((0, 8), (8, 61), (61, 150)):
        part = OPS.causal_attention(q[:, first:last], k[:, : 40 + last], v[:, : 40 + last], scale)
        compare.exact(part, whole[:, first:last])
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            compare.exact(OPS.causal_attention(q, k, v, scale), whole)
    finally:
        torch.set_num_threads(before)
    for storage in ("strided", "transposed", "offset"):
        args = [stored(x, storage) for x in (q, k, v)]
        compare.exact(OPS.causal_attention(*args, scale), whole)


def test_what_comes_later_is_not_seen(isa):
    args = make(Case(90, 100))
    want = OPS.causal_attention(*args)
    q, k, v, scale = (x.clone() if isinstance(x, Tensor) else x for x in args)
    k[:, 60:], v[:, 60:] = 1e30, 1e30
    compare.exact(OPS.causal_attention(q, k, v, scale)[:, :50], want[:, :50])
    k[:, 60:] = torch.nan
    compare.exact(OPS.causal_attention(q, k, v, scale)[:, :50], want[:, :50])


def test_nan_stays_with_the_heads_that_read_it(isa):
    args = make(Case(90, 100, batch=2))
    clean = OPS.causal_attention(*args)
    for which, bad in ((0, slice(4, 5)), (1, slice(3, 6)), (2, slice(3, 6))):
        tensors = [x.clone() for x in args[:3]]
        tensors[which][0, 45, 4 if which == 0 else 1, 3] = torch.nan
        got = OPS.causal_attention(*tensors, args[3])
        rows = slice(45, 46) if which == 0 else slice(35, None)
        if which == 2:
            assert got[0, rows, bad, 3].isnan().all()
        else:
            assert got[0, rows, bad].isnan().all()
        compare.exact(got[1], clean[1])
        compare.exact(got[0, :, :3], clean[0, :, :3])
        compare.exact(got[0, :12], clean[0, :12])


def test_nothing_to_do(isa):
    for shape in ((0, 9, 4, 16), (2, 0, 4, 16)):
        kv = torch.ones(shape[0], 9, 2, 16)
        assert OPS.causal_attention(torch.ones(shape), kv, kv, 1.0).shape == shape


Q, K, V, SCALE = make(Case(9, 12, batch=2))
BAD = [
    ((Q[0], K, V), "q has 3 dimensions, expected 4: [batch, queries, heads, head size]"),
    ((Q, K[0], V), "k has 3 dimensions, expected 4: [batch, keys, kv_heads, head size]"),
    ((Q.double(), K, V), "q has dtype float64, expected float32, bfloat16 or float16"),
    ((Q, K.half(), V), "k has dtype float16, expected float32"),
    ((Q, K, V.half()), "v has dtype float16, expected float32"),
    ((Q, K[:1], V), "k has shape [1, 12, 2, 64], expected [2, 12, 2, 64]"),
    ((Q, K[..., :8], V), "k has shape [2, 12, 2, 8], expected [2, 12, 2, 64]"),
    ((Q, K, V[:, 1:]), "v has shape [2, 11, 2, 64], expected [2, 12, 2, 64]"),
    ((Q[:, :, :5], K, V), "q has 5 heads, expected a positive multiple of those of k, 2"),
    ((Q, K[:, :, :0], V), "v has shape [2, 12, 2, 64], expected [2, 12, 0, 64]"),
    ((Q, K[:, :8], V[:, :8]), "k has 8 keys, expected one for each of the 9 queries at least"),
    ((torch.ones(1, 8, 1, 513), torch.ones(1, 8, 1, 513), torch.ones(1, 8, 1, 513)),
     "the head size is 513, expected 1 to 512"),
]  # fmt: skip


@pytest.mark.parametrize("args,sentence", BAD, ids=[s for _, s in BAD])
def test_bad_argument(args, sentence):
    with pytest.raises(RuntimeError) as caught:
        OPS.causal_attention(*args, SCALE)
    assert f"causal_attention: {sentence}" in str(caught.value)


CHECKED = """
import torch, lowbit
for queries in (2, 9):
    for bad in range(3):
        x = [torch.ones(2, queries, 1, 16) for _ in range(3)]
        x[bad][1, -1, 0, 0] = float("nan")
        try:
            torch.ops.lowbit.causal_attention(*x, 1.0)
            print("passed:", bad)
        except RuntimeError as error:
            want = f"causal_attention: q, k or v has NaN or infinity for query "
            assert want in str(error) and " of sequence 1, expected finite values" in str(error), error
"""


def test_checked_mode_refuses_what_is_not_finite():
    for checked, passed in (("1", 0), ("0", 6)):
        result = run_program(CHECKED, LOWBIT_CHECKED=checked)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("passed:") == passed, result.stdout


def test_cases_differ():
    assert len(set(map(str, CASES))) == len(CASES) == len({dataclasses.astuple(c) for c in CASES})
