"""kv_attend: decode attention over pages of keys and values as they are. What is stored, exactly; the result
within a bound derived from the data, with bits that depend on nothing but the sequence.
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

from .support import CPU_ONLY, ISAS, OPS, assert_unchanged, set_isa, snapshot, stored
from .test_isa import run as run_program
from .test_kv_paged import rotation

pytestmark = CPU_ONLY
LENGTHS = (0, 1, 255, 256, 257, 1100)


@dataclass(frozen=True)
class Case:
    """A layer and a batch of sequences, `lengths` tokens before the new one."""

    heads: int = 9
    kv_heads: int = 3
    d: int = 64
    page: int = 64
    dtype: str = "float32"
    lengths: tuple[int, ...] = (3, 0, 300, 64)
    norms: bool = False
    spread: float = 1.0  # of the queries

    def __str__(self) -> str:
        sizes = f"{self.heads}q{self.kv_heads}-d{self.d}-p{self.page}"
        return f"{sizes}-{self.dtype}-{max(self.lengths)}{'-norms' * self.norms}"


CASES = [
    Case(lengths=LENGTHS), Case(32, 8, 128, lengths=LENGTHS, dtype="bfloat16"),
    Case(4, 4, 80, lengths=LENGTHS, page=16, dtype="float16", norms=True),
    Case(4, 2, 96, page=256), Case(8, 1, 256, dtype="bfloat16", page=32, norms=True),
    Case(5, 1, 64, dtype="float16"), Case(7, 1, 33, page=16, norms=True), Case(2, 1, 500, page=128),
    Case(7, 1, 33, page=16, dtype="bfloat16"), Case(6, 2, 20, page=16, dtype="float16"),
    Case(6, 3, 2, page=16, lengths=(1, 2, 31, 600)), Case(3, 3, 1, page=16, dtype="bfloat16"),
    Case(spread=30.0), Case(spread=0.0, dtype="bfloat16"), Case(spread=500.0),
]  # fmt: skip


@dataclass
class Batch:
    """Tokens of all sequences in a pool of shuffled pages; places without a token hold NaN."""

    case: Case
    qkv: Tensor
    rotation: tuple[Tensor, Tensor]
    norms: tuple[Tensor | None, Tensor | None]
    key: Tensor  # [P, page, Hkv, D]
    value: Tensor
    table: Tensor
    lengths: Tensor

    def arguments(self) -> tuple:
        c = self.case
        shape = (c.heads, c.kv_heads)
        return (
            self.qkv, *self.rotation, *shape, self.key, self.value, self.table, self.lengths, c.d**-0.5,
            *self.norms, 1e-5,
        )  # fmt: skip

    def slots(self) -> Tensor:
        last = self.lengths.long()
        pages = self.table.gather(1, (last // self.case.page)[:, None])[:, 0].long()
        return pages * self.case.page + last % self.case.page


def make(case: Case, seed: int = 0) -> Batch:
    rng = np.random.default_rng((seed, case.d, case.heads))
    g = torch.Generator().manual_seed(seed + case.d)
    dtype, b = getattr(torch, case.dtype), len(case.lengths)
    need = [n // case.page + 1 for n in case.lengths]
    pages = np.random.default_rng((case.page, b)).permutation(sum(need) + 2).astype(np.int32)
    table = np.full((b, max(need) + 1), -7, np.int32)
    shape = (sum(need) + 2, case.page, case.kv_heads, case.d)
    pools = [torch.full(shape, torch.nan, dtype=dtype) for _ in "kv"]
    for row, (n, count) in enumerate(zip(case.lengths, need, strict=True)):
        table[row, :count], pages = pages[:count], pages[count:]
        for pool in pools:
            x = rng.standard_normal((n, case.kv_heads, case.d)) * rng.uniform(0.2, 3, (1, case.kv_heads, 1))
            for t in range(n):
                pool[table[row, t // case.page], t % case.page] = torch.from_numpy(x[t]).to(dtype)
    qkv = torch.randn(b, (case.heads + 2 * case.kv_heads) * case.d, generator=g)
    qkv[:, : case.heads * case.d] *= case.spread
    norms = tuple(torch.rand(case.d, generator=g) + 0.5 if case.norms else None for _ in "qk")
    lengths = torch.tensor(case.lengths, dtype=torch.int32)
    turn = rotation(b, case.d // 4 * 2)
    return Batch(case, qkv.to(dtype), turn, norms, *pools, torch.from_numpy(table), lengths)


def rotated(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v [B, H, D] as the op has them."""
    c, (cos, sin) = batch.case, (x.numpy() for x in batch.rotation)
    heads = compare.to_numpy(batch.qkv).reshape(len(batch.lengths), -1, c.d)
    q, k, v = np.split(heads, (c.heads, c.heads + c.kv_heads), 1)
    weights = [None if w is None else w.numpy() for w in batch.norms]
    q, k = (oracle.norm_rope_exact(x, cos, sin, w, 1e-5) for x, w in zip((q, k), weights, strict=True))
    return q, k, v


def check(batch: Batch, got: Tensor, q: np.ndarray) -> None:
    """Against float64, over the keys and values that are in the pages now."""
    c = batch.case
    assert got.dtype == batch.qkv.dtype and got.is_contiguous()
    nothing = oracle.poisoned(1, c.kv_heads, 16, c.d, 0)
    for b, n in enumerate(c.lengths):
        pages = batch.table[b, : n // c.page + 1].long()
        held = [pool[pages].flatten(0, 1)[: n + 1].float().numpy() for pool in (batch.key, batch.value)]
        want, bound = oracle.attention64(
            q[b : b + 1], nothing, np.zeros((1, 1), np.int32), [0], c.d**-0.5, any_order=True, prefix=held
        )
        compare.elementwise(got[b].view(c.heads, c.d), want[0], bound[0])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_stores_the_token_and_attends_to_it(case, isa):
    batch = make(case)
    q, k, v = rotated(batch)
    want = [batch.key.clone(), batch.value.clone()]
    for pool, x in zip(want, (k, v), strict=True):
        pool.flatten(0, 1)[batch.slots()] = torch.from_numpy(x.astype(np.float32)).to(pool.dtype)
    inputs = [batch.qkv, *batch.rotation, batch.table, batch.lengths]
    before = snapshot(inputs)
    got = OPS.kv_attend(*batch.arguments())
    assert_unchanged(inputs, before)
    for pool, expected in zip((batch.key, batch.value), want, strict=True):
        compare.exact(pool, expected, nan_equal=True)
    check(batch, got, q)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case):
    batch, other = make(case, 1), make(case, 1)
    got = ref.kv_attend(*batch.arguments())
    check(batch, got, rotated(batch)[0])
    OPS.kv_attend(*other.arguments())
    compare.exact(batch.key, other.key, nan_equal=True)
    compare.exact(batch.value, other.value, nan_equal=True)


def test_bits_are_those_of_every_instruction_set():
    before = lowbit.ops.isa()
    for case in CASES:
        results = []
        for name in ISAS:
            set_isa(name)
            results.append(lowbit.ops.kv_attend(*make(case).arguments()))
        for other in results[1:]:
            compare.exact(other, results[0])
    set_isa(before)


def test_a_sequence_does_not_see_its_batch(isa):
    case = Case(lengths=(700, 1, 0, 256, 255, 1025), dtype="bfloat16")
    whole = OPS.kv_attend(*make(case).arguments())
    for b in range(len(case.lengths)):
        batch, row = make(case), slice(b, b + 1)
        batch.rotation = tuple(x[row] for x in batch.rotation)
        alone = dataclasses.replace(
            batch, qkv=batch.qkv[row], table=batch.table[row], lengths=batch.lengths[row]
        )
        compare.exact(OPS.kv_attend(*alone.arguments()), whole[row])


def test_neither_threads_nor_pages_nor_strides_change_bits(isa):
    case = Case(32, 8, 128, lengths=(1, 900, 2049), dtype="bfloat16")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(OPS.kv_attend(*make(case).arguments()))
    finally:
        torch.set_num_threads(before)
    for page in (16, 32, 256):
        batch = make(dataclasses.replace(case, page=page))
        batch.qkv = stored(batch.qkv, "strided")
        results.append(OPS.kv_attend(*batch.arguments()))
    for other in results[1:]:
        compare.exact(other, results[0])


@pytest.mark.parametrize("which", ["q", "key", "value"])
def test_nan_stays_with_the_heads_that_read_it(which, isa):
    case = Case(lengths=(300, 40))
    clean, batch = OPS.kv_attend(*make(case).arguments()).view(2, 9, 64), make(case)
    bad = [4] if which == "q" else [3, 4, 5]
    if which == "q":
        batch.qkv[0, 4 * 64 + 3] = torch.inf
    else:
        pool = batch.key if which == "key" else batch.value
        pool[batch.table[0, 2], 7, 1] = torch.nan
    got = OPS.kv_attend(*batch.arguments()).view(2, 9, 64)
    good = [h for h in range(9) if h not in bad]
    assert got[0, bad].isnan().all()
    compare.exact(got[1], clean[1])
    compare.exact(got[0, good], clean[0, good])


def test_nothing_to_do():
    batch = make(dataclasses.replace(Case(), lengths=(0,)))
    args = list(batch.arguments())
    for i in (0, 1, 2, 7, 8):
        args[i] = args[i][:0]
    before = snapshot([batch.key, batch.value])
    assert OPS.kv_attend(*args).shape == (0, 576)
    assert_unchanged([batch.key, batch.value], before)


GOOD = make(Case(lengths=(20, 3), page=16)).arguments()
NAMES = [a.name for a in torch.ops.lowbit.kv_attend.default._schema.arguments]


def replaced(**changes: object) -> tuple:
    return tuple(changes.get(name, value) for name, value in zip(NAMES, GOOD, strict=True))


QKV, KEY, TABLE, LENGTHS_2 = GOOD[0], GOOD[5], GOOD[7], GOOD[8]
BAD = [
    (replaced(qkv=QKV[0]), "qkv has 1 dimensions, expected 2: [tokens, (heads + 2 kv_heads) * head size]"),
    (replaced(qkv=QKV.double()), "qkv has dtype float64, expected float32"),
    (replaced(qkv=QKV[:, 1:]), "qkv has shape [2, 959], expected [2, 945]"),
    (replaced(qkv=QKV.bfloat16()), "key_cache has dtype float32, expected bfloat16"),
    (replaced(heads=10), "heads is 10, expected a positive multiple of kv_heads, which is 3"),
    (replaced(heads=13, kv_heads=1), "kv_heads is 1, expected 3 as in key_cache"),
    (replaced(cos=GOOD[1].half()), "cos has dtype float16, expected float32"),
    (replaced(sin=GOOD[2][:, :2]), "sin has shape [2, 2], expected [2, 32]"),
    (replaced(key_cache=KEY[0]), "key_cache has 3 dimensions, expected 4: [pages, page,"),
    (replaced(key_cache=KEY[:, :15]), "key_cache has pages of 15 tokens, expected a power of two"),
    (replaced(key_cache=KEY[..., :63]), "key_cache has shape [5, 16, 3, 63], expected [5, 16, 3, 64]"),
    (replaced(key_cache=KEY.transpose(0, 1).contiguous().transpose(0, 1)), "key_cache is not contiguous"),
    (replaced(value_cache=KEY[1:]), "value_cache has shape [4, 16, 3, 64], expected [5, 16, 3, 64]"),
    (replaced(value_cache=KEY.half()), "value_cache has dtype float16, expected float32"),
    (replaced(block_table=TABLE.long()), "block_table has dtype int64, expected int32"),
    (replaced(block_table=TABLE[:1]), "block_table has shape [1, 3], expected [2, 3]"),
    (replaced(block_table=TABLE + 9), "block_table[0, 0] is 1"),
    (replaced(block_table=TABLE - 5), "block_table[0, 0] is -"),
    (replaced(lengths=LENGTHS_2 + 28), "lengths[0] is 48, expected 0 to 47 (block_table has 3 pages"),
    (replaced(lengths=LENGTHS_2 - 4), "lengths[1] is -1, expected 0 to 47"),
    (replaced(q_norm=torch.ones(32)), "q_norm has shape [32], expected [64]"),
    (replaced(k_norm=torch.ones(64).half()), "k_norm has dtype float16, expected float32"),
    (replaced(eps=-1.0), "eps is -1, expected 0 or more"),
]


@pytest.mark.parametrize("args,sentence", BAD, ids=[s for _, s in BAD])
def test_bad_argument(args, sentence):
    tensors = [a for a in args if isinstance(a, Tensor)]
    before = snapshot(tensors)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        OPS.kv_attend(*args)
    assert f"kv_attend: {sentence}" in str(caught.value)
    assert_unchanged(tensors, before)


CHECKED = """
import torch, lowbit
attend = torch.ops.lowbit.kv_attend
x, turn = torch.ones(2, 192), (torch.ones(2, 64), torch.zeros(2, 64))
table, lengths = torch.tensor([[0], [1]]).int(), torch.ones(2).int()
for bad in (0, 70, 190):  # of q, k, v
    caches = [torch.ones(2, 16, 1, 64) for _ in "kv"]
    attend(x, *turn, 1, 1, *caches, table, lengths, 1.0)
    qkv = x.clone()
    qkv[1, bad] = float("inf")
    try:
        attend(qkv, *turn, 1, 1, *caches, table, lengths, 1.0)
        print("passed:", bad)
    except RuntimeError as error:
        want = "kv_attend: q or the cache has NaN or infinity in sequence 1, expected finite values (LOWBIT"
        assert want in str(error), error
"""


def test_checked_mode_refuses_what_is_not_finite():
    for checked, passed in (("1", 0), ("0", 3)):
        result = run_program(CHECKED, LOWBIT_CHECKED=checked)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("passed:") == passed, result.stdout
