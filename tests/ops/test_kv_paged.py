"""The paged INT4 KV cache: what is stored, exactly; attention over it, within a bound derived from the data,
with bits that depend on nothing but the sequence.
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

from .support import CPU_ONLY, ISAS, ON_CPU, OPS, assert_unchanged, set_isa, snapshot, stored

LENGTHS = (0, 1, 255, 256, 257, 4000)


@dataclass(frozen=True)
class Case:
    """A layer and a batch of sequences."""

    heads: int = 9
    kv_heads: int = 3
    d: int = 64
    page: int = 64
    dtype: str = "float32"
    lengths: tuple[int, ...] = (3, 0, 300, 64)
    key_block: int | None = None
    clip: float = 0.95
    seed: int = 0
    prefix: int = 0  # exact tokens

    def __str__(self) -> str:
        block = f"-h{self.key_block}" if self.key_block else ""
        block += f"-x{self.prefix}" if self.prefix else ""
        return f"{self.heads}q{self.kv_heads}-d{self.d}-p{self.page}-{self.dtype}{block}-{max(self.lengths)}"


@dataclass
class Batch:
    """Keys and values of all sequences, in a pool of shuffled pages among poison."""

    case: Case
    q: Tensor  # [B, Hq, D]
    key: Tensor  # [T, Hkv, D], sequence after sequence
    value: Tensor
    slots: Tensor
    table: Tensor
    lengths: Tensor
    caches: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...]  # two [P, Hkv, D], or none

    def attention(self) -> Tensor:
        scale = self.case.d**-0.5
        return OPS.kv4_attention(self.q, *self.caches, self.table, self.lengths, scale, *self.prefix)

    def numpy(self) -> oracle.Caches:
        return oracle.Caches(*(c.numpy() for c in self.caches))


def _values(rng: np.random.Generator, case: Case, tokens: int) -> Tensor:
    x = rng.standard_normal((tokens, case.kv_heads, case.d)) * rng.uniform(0.2, 3, (1, case.kv_heads, 1))
    x[..., 0] += 4 * rng.standard_normal((tokens, case.kv_heads))  # an outlier channel, as keys have
    return torch.from_numpy(x).to(getattr(torch, case.dtype))


def poison(case: Case, pages: int) -> tuple[Tensor, ...]:
    pool = oracle.poisoned(pages, case.kv_heads, case.page, case.d, case.seed)
    return tuple(torch.from_numpy(a) for a in pool.arrays())


def make(case: Case, room: int = 1) -> Batch:
    """room: tokens that each sequence can take on top."""
    rng = np.random.default_rng((case.seed, case.d, case.heads))
    need = [-(-(n + room) // case.page) for n in case.lengths]
    pages = np.random.default_rng((case.page, len(need))).permutation(sum(need) + 3).astype(np.int32)
    table = np.full((len(need), max(need) + 1), -7, np.int32)
    for b, count in enumerate(need):
        table[b, :count], pages = pages[:count], pages[count:]
    slots = [
        table[b, t // case.page] * case.page + t % case.page
        for b, n in enumerate(case.lengths)
        for t in range(n)
    ]
    key, value = (_values(rng, case, len(slots)) for _ in "kv")
    q = torch.from_numpy(rng.standard_normal((len(need), case.heads, case.d))).to(key.dtype)
    caches = poison(case, sum(need) + 3)
    where = torch.tensor(slots, dtype=torch.int64)
    OPS.kv4_append(key, value, where, *caches, case.clip, case.key_block)
    lengths = torch.tensor(case.lengths, dtype=torch.int32)
    prefix = ()
    if case.prefix:
        shape = (case.prefix, case.kv_heads, case.d)
        prefix = tuple(torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in "kv")
    return Batch(case, q, key, value, where, torch.from_numpy(table), lengths, caches, prefix)


def check(batch: Batch, got: Tensor) -> None:
    want, bound = oracle.attention64(
        compare.to_numpy(batch.q),
        batch.numpy(),
        batch.table.numpy(),
        batch.lengths.numpy(),
        batch.case.d**-0.5,
        prefix=tuple(x.numpy() for x in batch.prefix) or None,
    )
    assert got.dtype == batch.q.dtype
    compare.elementwise(got, want, bound)


# A card appends heads of 8, 16, .. 256, and attends to heads of some sizes: what stands there for the others.
APPENDED = {33: 40, 7: 8, 1: 16, 10: 24}
ATTENDED = {33: 80, 500: 256, 2: 64, 1: 128}


def here(cases: list[Case], sizes: dict[int, int]) -> list[Case]:
    return cases if ON_CPU else [dataclasses.replace(c, d=sizes.get(c.d, c.d)) for c in cases]


# ---- what is stored

STORED = [
    Case(d=64), Case(d=80, key_block=16), Case(d=96, dtype="bfloat16", key_block=32), Case(d=128, clip=1.0),
    Case(d=128, dtype="float16", key_block=128, page=16), Case(4, 4, 256, key_block=256, page=32),
    Case(4, 2, 33, page=256), Case(2, 1, 7, dtype="float16"), Case(6, 2, 1, page=16),
    Case(4, 1, 10, key_block=2),
]  # fmt: skip
STORED = here(STORED, APPENDED)


@pytest.mark.parametrize("case", STORED, ids=str)
def test_append_stores_the_codes_of_kv4_quantize_and_touches_nothing_else(case, isa):
    batch = make(case)
    key = batch.key.float()
    if case.key_block:
        key = OPS.hadamard(key, case.key_block**-0.5, case.key_block)
    want = poison(case, batch.caches[0].shape[0])
    at, offset = batch.slots // case.page, batch.slots % case.page
    for x, i in ((key, 0), (batch.value, 2)):
        want[i][at, :, offset], want[i + 1][at, :, offset] = OPS.kv4_quantize(x, case.clip)
    for got, expected in zip(batch.caches, want, strict=True):
        compare.exact(got, expected, nan_equal=True)
    again = poison(case, batch.caches[0].shape[0])
    ref.kv4_append(batch.key, batch.value, batch.slots, *again, case.clip, case.key_block)
    for got, expected in zip(batch.caches, again, strict=True):
        compare.exact(got, expected, nan_equal=True)


@pytest.mark.parametrize("case", [STORED[0], STORED[2], STORED[6]], ids=str)
def test_appending_in_pieces_equals_appending_at_once(case, isa):
    batch = make(case)
    for sizes in ([1] * len(batch.slots), [100, 1, len(batch.slots) - 101]):
        caches = poison(case, batch.caches[0].shape[0])
        for part in zip(
            batch.key.split(sizes), batch.value.split(sizes), batch.slots.split(sizes), strict=True
        ):
            OPS.kv4_append(*part, *caches, case.clip, case.key_block)
        for got, expected in zip(caches, batch.caches, strict=True):
            compare.exact(got, expected, nan_equal=True)


def rotation(tokens: int, size: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(tokens, size // 2, generator=torch.Generator().manual_seed(size)).repeat(1, 2)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("rotary", ["all", "half", "none"])
@pytest.mark.parametrize("norms", ["", "q", "qk"])
@pytest.mark.parametrize("case", STORED[:8:2] + STORED[5:7], ids=str)
def test_rope_append(case, norms, rotary, isa):
    """Norm, RoPE and one rounding, bit for bit; what is stored is what kv4_append stores of k and v."""
    tokens, d = 37, case.d
    size = {"all": d // 2 * 2, "half": d // 4 * 2, "none": 0}[rotary]
    g = torch.Generator().manual_seed(d)
    qkv = torch.randn(tokens, (case.heads + 2 * case.kv_heads) * d, generator=g).to(
        getattr(torch, case.dtype)
    )
    cos, sin = rotation(tokens, size)
    q_norm = torch.rand(d, generator=g) + 0.5 if "q" in norms else None
    k_norm = torch.rand(d, generator=g) + 0.5 if "k" in norms else None
    slots = torch.randperm(5 * case.page, generator=g)[:tokens]
    slots[3] = -1
    caches, expected, again = (poison(case, 5) for _ in range(3))
    qkv = stored(qkv, "strided")
    before = snapshot([qkv, cos, sin, slots])
    args = (qkv, cos, sin, case.heads, case.kv_heads, slots)
    options = (q_norm, k_norm, 1e-5, case.clip, case.key_block)
    q, k, v = OPS.kv4_rope_append(*args, *caches, *options)
    assert_unchanged([qkv, cos, sin, slots], before)
    heads = compare.to_numpy(qkv).reshape(tokens, -1, d)
    parts = np.split(heads, (case.heads, case.heads + case.kv_heads), 1)
    for got, x, weight in ((q, parts[0], q_norm), (k, parts[1], k_norm)):
        w = None if weight is None else weight.numpy()
        compare.exact(got, oracle.norm_rope_exact(x, cos.numpy(), sin.numpy(), w, 1e-5))
    compare.exact(v, parts[2])
    OPS.kv4_append(k, v, slots, *expected, case.clip, case.key_block)
    for got, want in zip(caches, expected, strict=True):
        compare.exact(got, want, nan_equal=True)
    for got, want in zip((q, k, v), ref.kv4_rope_append(*args, *again, *options), strict=True):
        compare.exact(got, want)
    for got, want in zip(caches, again, strict=True):
        compare.exact(got, want, nan_equal=True)


# ---- attention

ATTENTION = [
    Case(lengths=LENGTHS), Case(32, 8, 128, lengths=LENGTHS), Case(4, 4, 80, lengths=LENGTHS, page=16),
    Case(4, 2, 96, lengths=LENGTHS, page=256), Case(8, 1, 256, lengths=LENGTHS, dtype="bfloat16", page=32),
    Case(5, 1, 64, lengths=LENGTHS, dtype="float16"), Case(7, 1, 33, page=16), Case(2, 1, 500, page=128),
    Case(6, 3, 2, page=16, lengths=(1, 2, 31, 600)), Case(3, 3, 1, page=16),
    Case(9, 3, 64, key_block=64, clip=0.8), Case(lengths=LENGTHS, prefix=1),
    Case(7, 1, 33, page=16, prefix=3), Case(4, 4, 80, lengths=LENGTHS, dtype="bfloat16", prefix=16),
]  # fmt: skip
ATTENTION = here(ATTENTION, ATTENDED)


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_is_within_its_bound(case, isa):
    batch = make(case)
    inputs = [batch.q, batch.table, batch.lengths, *batch.caches, *batch.prefix]
    before = snapshot(inputs)
    got = batch.attention()
    assert_unchanged(inputs, before)
    check(batch, got)
    for b, length in enumerate(case.lengths):
        assert length or case.prefix or not got[b].any()  # no tokens: zeros


@pytest.mark.parametrize("case", [ATTENTION[0], *ATTENTION[6:]], ids=str)
def test_reference_attention_is_within_its_bound(case):
    batch = make(case)
    got = ref.kv4_attention(batch.q, *batch.caches, batch.table, batch.lengths, case.d**-0.5, *batch.prefix)
    want, bound = oracle.attention64(
        compare.to_numpy(batch.q),
        batch.numpy(),
        batch.table.numpy(),
        batch.lengths.numpy(),
        case.d**-0.5,
        any_order=True,
        prefix=tuple(x.numpy() for x in batch.prefix) or None,
    )
    compare.elementwise(got, want, bound)


def test_exponential_within_four_units():
    x = np.linspace(-86.9, 87.9, 200001).astype(np.float32)
    got = ref.fused.exponential(torch.from_numpy(x)).double().numpy()
    assert (abs(got / np.exp(x.astype(np.float64)) - 1) <= oracle.EXP_ERROR).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 200.0])
def test_scores_far_apart(spread, isa):
    """Flat, ordinary, peaked, and beyond what exp can hold."""
    batch = make(Case(lengths=(600, 17), seed=int(spread)))
    batch.q *= spread
    check(batch, batch.attention())


@pytest.mark.parametrize("d", [64, 80])
def test_the_largest_score_takes_all(d, isa):
    """Each query is its own key's: the output is that token's value, dequantised, to the last bit."""
    case = Case(3, 3, d, lengths=(300, 5), clip=1.0)
    batch = make(case)
    for b, at, token in ((0, 0, 257), (1, 300, 4)):
        key = OPS.kv4_dequantize(*OPS.kv4_quantize(batch.key[at + token], 1.0), torch.float32, d)
        batch.q[b] = 1000 * (key - batch.key[:300].mean(0))
    got = batch.attention()
    for b, at, token in ((0, 0, 257), (1, 300, 4)):
        value = OPS.kv4_dequantize(*OPS.kv4_quantize(batch.value[at + token], 1.0), torch.float32, d)
        compare.elementwise(got[b], value.double().numpy(), 4e-6 * (1 + value.abs().double().numpy()))


@CPU_ONLY
def test_bits_are_those_of_every_instruction_set():
    before = lowbit.ops.isa()
    for case in ATTENTION[:3] + ATTENTION[6:]:
        results = []
        for name in ISAS:
            set_isa(name)
            results.append(make(case).attention())
        for other in results[1:]:
            compare.exact(other, results[0])
    set_isa(before)


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_sequence_does_not_see_its_batch(prefix, isa):
    whole = make(dataclasses.replace(ATTENTION[0], lengths=(700, 1, 0, 256, 255, 1025), prefix=prefix))
    got = whole.attention()
    for b in range(len(whole.case.lengths)):
        alone = dataclasses.replace(
            whole, q=whole.q[b : b + 1], table=whole.table[b : b + 1], lengths=whole.lengths[b : b + 1]
        )
        compare.exact(alone.attention(), got[b : b + 1])
    order = torch.tensor([4, 0, 5, 3, 2, 1])
    shuffled = dataclasses.replace(
        whole, q=whole.q[order], table=whole.table[order], lengths=whole.lengths[order]
    )
    compare.exact(shuffled.attention(), got[order])


def test_neither_threads_nor_pages_change_bits(isa):
    case = dataclasses.replace(ATTENTION[1], lengths=(1, 900, 2049), prefix=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(make(case).attention())
    finally:
        torch.set_num_threads(before)
    results += [make(dataclasses.replace(case, page=page)).attention() for page in (16, 32, 256)]
    for other in results[1:]:
        compare.exact(other, results[0])


COMPOSED = [
    Case(), Case(32, 8, 128, dtype="bfloat16", key_block=128), Case(7, 1, 33), Case(2, 2, 256, key_block=64),
    Case(4, 2, 80, dtype="float16", key_block=16, page=16), Case(key_block=64, prefix=1),
]  # fmt: skip
COMPOSED = here(COMPOSED, ATTENDED)


@pytest.mark.parametrize("case", COMPOSED, ids=str)
@pytest.mark.parametrize("norms", [False, True])
def test_attend_is_the_composition_of_its_parts(case, norms, isa):
    case = dataclasses.replace(case, lengths=(0, 1, 255, 256, 63, 64, 511))
    d, tokens = case.d, len(case.lengths)
    one, two = make(case), make(case)
    g = torch.Generator().manual_seed(1)
    qkv = torch.randn(tokens, (case.heads + 2 * case.kv_heads) * d, generator=g).to(one.q.dtype)
    cos, sin = rotation(tokens, d // 4 * 2)
    q_norm, k_norm = (torch.rand(d, generator=g) + 0.5 if norms else None for _ in "qk")
    options = (q_norm, k_norm, 1e-5, case.clip, case.key_block)
    shape = (case.heads, case.kv_heads)
    args = (qkv, cos, sin, *shape, *one.caches, one.table, one.lengths, d**-0.5, *options, *one.prefix)
    got = OPS.kv4_attend(*args)
    last = two.lengths.long()
    slots = two.table.gather(1, (last // case.page)[:, None])[:, 0].long() * case.page + last % case.page
    two.q, _, _ = OPS.kv4_rope_append(qkv, cos, sin, *shape, slots, *two.caches, *options)
    if case.key_block:
        two.q = OPS.hadamard(two.q, case.key_block**-0.5, case.key_block)
    two.lengths += 1
    compare.exact(got, two.attention().flatten(1))
    for a, b in zip(one.caches, two.caches, strict=True):
        compare.exact(a, b, nan_equal=True)
    check(two, got.view(tokens, case.heads, d))


CODES = [(4, False, True), (4, True, False), (8, False, False), (8, True, True)]


@pytest.mark.parametrize("bits,static,unpacked", CODES)
@pytest.mark.parametrize("case", [COMPOSED[1], COMPOSED[2], COMPOSED[5]], ids=str)
def test_attend_quantize_is_the_composition_of_its_parts(case, bits, static, unpacked, isa):
    """The codes of a row, gathered and shifted, and all that is left in the cache."""
    case = dataclasses.replace(case, lengths=(0, 1, 255, 600))
    one, two = make(case), make(case)
    g = torch.Generator().manual_seed(2)
    qkv = torch.randn(4, (case.heads + 2 * case.kv_heads) * case.d, generator=g).to(one.q.dtype)
    args = (qkv, *rotation(4, case.d // 2 * 2), case.heads, case.kv_heads)
    options = (None, None, 1e-6, case.clip, case.key_block, *(one.prefix or (None, None)))
    columns = case.heads * case.d + 5
    index = torch.randint(case.heads * case.d, (columns,), generator=g).int()
    shift, step = torch.randn(2, columns, generator=g)
    rest = (step.abs() * 9 if static else None, shift, index, static, 1.0 if static else 0.8, unpacked)
    tables = (one.table, one.lengths, case.d**-0.5)
    got = OPS.kv4_attend_quantize(*args, *one.caches, *tables, bits, *options, *rest)
    y = OPS.kv4_attend(*args, *two.caches, *tables, *options)
    if static:
        want = OPS.quantize_static(y, bits, rest[0], shift, index, None, unpacked)
        assert got[1].shape == (0,)
    else:
        v = y.float()[:, index.long()] - shift
        want, scale = (OPS.quantize_int4 if bits == 4 else OPS.quantize_int8)(v, 0.8)
        want = OPS.unpack_int4(want, columns) if bits == 4 and unpacked else want
        compare.exact(got[1], scale)
    compare.exact(got[0], want)
    for a, b in zip(one.caches, two.caches, strict=True):
        compare.exact(a, b, nan_equal=True)


def test_a_prefix_takes_part_in_the_softmax_of_every_sequence(isa):
    """A key of nothing and a value of nothing take their share; where they score far above, all of it."""
    batch = make(Case(lengths=(300, 1, 0)))
    batch.q.zero_()  # all scores equal
    plain = batch.attention()
    batch.prefix = tuple(torch.zeros(4, 3, 64) for _ in "kv")
    share = (batch.lengths / (batch.lengths + 4)).view(-1, 1, 1)
    compare.elementwise(batch.attention(), (plain * share).double().numpy(), 1e-5)
    batch.q.fill_(1.0)
    batch.prefix[0][3] = 1000.0
    batch.prefix[1][3] = torch.arange(3 * 64).view(3, 64)
    want = batch.prefix[1][3].repeat_interleave(3, 0).expand(3, -1, -1)
    compare.elementwise(batch.attention(), want.double().numpy(), 1e-30)  # exp is nowhere below e^-87


# ---- what is not finite, and what is wrong


@pytest.mark.parametrize("which", ["key", "value", "q"])
def test_nan_stays_with_the_heads_that_read_it(which, isa):
    batch = make(Case(lengths=(300, 40)))
    clean = batch.attention()
    if which == "q":
        batch.q[0, 4, 3] = float("nan")
        bad = [4]
    else:
        x = (batch.key if which == "key" else batch.value)[270:271].clone()
        x[0, 1, 5] = float("inf")
        one = torch.zeros_like(x)
        args = (x, one) if which == "key" else (one, x)
        OPS.kv4_append(*args, batch.slots[270:271], *batch.caches)
        bad = [3, 4, 5]
    got = batch.attention()
    assert got[0, bad].isnan().all() and got[1].isfinite().all()
    compare.exact(got[1], clean[1])
    if which == "q":
        good = [h for h in range(9) if h not in bad]
        compare.exact(got[0, good], clean[0, good])


def test_nothing_to_do(isa):
    caches = make(Case()).caches
    empty = torch.empty(0, 3, 64)
    before = snapshot(list(caches))
    OPS.kv4_append(empty, empty, torch.empty(0, dtype=torch.int64), *caches)
    q, k, v = OPS.kv4_rope_append(
        torch.empty(0, 960), *rotation(0, 64), 9, 3, torch.empty(0, dtype=torch.int64), *caches
    )
    assert q.shape == (0, 9, 64) and k.shape == v.shape == (0, 3, 64)
    table, lengths = torch.empty(0, 2, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    assert OPS.kv4_attention(torch.empty(0, 9, 64), *caches, table, lengths, 1.0).shape == (0, 9, 64)
    out = OPS.kv4_attend(torch.empty(0, 960), *rotation(0, 64), 9, 3, *caches, table, lengths, 1.0)
    assert out.shape == (0, 576)
    nothing = torch.empty(2, 0, dtype=torch.int32)
    got = OPS.kv4_attention(torch.ones(2, 9, 64), *caches, nothing, torch.zeros(2, dtype=torch.int32), 1.0)
    assert not got.any()
    assert_unchanged(list(caches), before)
