"""Mistakes planted in a right kernel: each is caught and named on every seed; the right one always passes."""

import numpy as np
import pytest

RACE = "with no synchronisation in between"
SM80 = {
    "no_wait": "no cp.async.wait_group of that thread covers it",
    "one_group_too_few": "no cp.async.wait_group of that thread covers it",
    "no_syncthreads": f"{RACE}|still in flight",
    "no_syncwarp": f"ld.shared reads .*({RACE}|nobody has written)",
    "half_warp": r"divergent warp: calls \S+ while threads .* wait in \S+",
    "divergent": r"divergent warp: calls (mma|ldmatrix)\S* while threads .* wait in (mma|ldmatrix)",
    "misaligned_row": r"lane 5\): ldmatrix of 16 bytes at .* is misaligned",
    "shared_tail": "ld.shared of 16 bytes at .* is out of bounds: the block has 8704 bytes",
    "global_tail": r"cp.async of 16 bytes at x\+\d+ is out of bounds",
    "global_store_tail": r"st.global of 16 bytes at y\+\d+ is out of bounds",
    "leaked_copies": r"thread 3 .* exits with 1 cp.async not waited for",
    "overwritten_stage": f"cp.async writes .* reads with ldmatrix, {RACE}",
    "uninitialised": "thread 9 .* ld.shared reads .* which nobody has written",
    "read_only": r"st.global writes w\+0, which is registered as read-only",
    "read_output": "ld.global reads byte 4 of y, which (nobody has written|thread .* writes)",
    "block_race": rf"st.global writes .* of block \d writes with st.global, {RACE}",
    "bar_count": r"bar 1: (called with \d+ threads|64 threads arrive, expected 32)|deadlock: .* bar.sync 1",
    "deadlock": r"deadlock: .*32 threads \(32 .. 63\) wait in bar.sync 2 \(32 of 64 threads\)",
    "early_exit": "exits in front of bar.sync|calls bar.sync, but 1 threads of its warp have exited",
    "misaligned_global": r"cp.async of 16 bytes from x\+\d+ is misaligned",
    "unregistered": "is in no registered buffer",
    "spin": "deadlock: 64 threads .* wait in ld.acquire.global for another block",
    "syncthreads_in_branch": r"divergent warp: calls bar\.\S+ while threads .* wait in bar\.",
}
SM90 = {
    "double_arrive": r"double arrive|mbarrier.arrive at .* more arrivals",
    "over_arrive": "double arrive|more arrivals|stale phase|copy unit|nobody has written|short or missing",
    "stale_phase": "stale phase",
    "stale_producer": "stale phase",
    "missing_expect": "expect_tx is short or missing|copy unit writes|nobody has written",
    "short_expect": "64 more bytes landed in phase 0 than were expected",
    "long_expect": "deadlock: .* and 64 bytes missing",
    "no_init_fence": "initialised without fence.mbarrier_init",
    "no_init_barrier": "no mbarrier.init has been done there|initialised it with no barrier in between",
    "no_proxy_fence": "wgmma reads .* writes with st.shared, with no fence.proxy.async by that thread",
    "one_proxy_fence": "wgmma reads .* writes with st.shared, with no fence.proxy.async by that thread",
    "early_release": "tensor.load writes .* tensor core of warpgroup 0 reads with wgmma, before a wgmma.wait",
    "rewritten_a": "A registers were (written before the wait|rewritten while)",
    "read_accumulator": "the accumulator is read before wgmma.wait_group",
    "fence_operand": "registers of a wgmma in flight are touched",
    "written_accumulator": "accumulator registers were (written before the wait|rewritten while)",
    "no_wgmma_fence": "wgmma without wgmma.fence",
    "uneven_descriptor": r"descriptor differs inside the warpgroup: warp 0 names shared\+\d+, warp 3",
    "leaked_wgmma": "exits with 4 wgmma not waited for",
    "leaked_store": "exits with 1 bulk stores not waited for",
    "deadlock": r"deadlock: .* wait in mbarrier.try_wait on the mbarrier at shared\+\d+ .*1 of 128 arrivals",
    "partial_warpgroup": "exits in front of wgmma|calls wgmma, but .* have exited|divergent warpgroup",
    "store_reused": "st.shared writes .* reads with cp.async.bulk.tensor.store, which is still in flight",
    "no_store_fence": "bulk.tensor.store reads .* with no fence.proxy.async by that thread",
    "tma_unaligned": "is misaligned: expected a multiple of 128",
    "tma_out_of_shared": "cp.async.bulk.tensor.load of 4096 bytes .* is out of bounds",
    "missing_wait": "copy unit writes with .* no completed wait on its mbarrier|nobody has written",
    "plain_access": r"ld.shared touches the live mbarrier at shared\+0",
}


def apart(array):
    """The same values with 8 KiB of no buffer on either side: a step outside lands in no other array."""
    margin = 8192
    room = np.zeros(array.nbytes + 2 * margin, np.uint8)
    inside = room[margin : margin + array.nbytes].view(array.dtype).reshape(array.shape)
    inside[...] = array
    return inside


def gemm_sm80(emulated, fault, seed, **options):
    rng = np.random.default_rng(seed)
    x, w = (apart(rng.integers(-128, 128, (n, 256)).astype(np.int8)) for n in (50, 8))
    y = apart(np.zeros((50, 8), np.int32))
    report = emulated.fault_sm80(fault, x, w, y, {"seed": seed, **options})
    return np.array_equal(y, x.astype(np.int64) @ w.T.astype(np.int64)), report


def gemm_sm90(emulated, fault, seed, **options):
    rng = np.random.default_rng(seed)
    x, w = (apart(rng.integers(-128, 128, (n, 640)).astype(np.int8)) for n in (32, 64))
    y = apart(np.zeros((32, 64), np.int32))
    report = emulated.fault_sm90(fault, x, w, y, {"seed": seed, **options})
    return np.array_equal(y, x.astype(np.int64) @ w.T.astype(np.int64)), report


def test_every_fault_is_listed(emulated):
    assert set(emulated.faults_sm80) == {"none", "wrong_swizzle", *SM80}
    assert set(emulated.faults_sm90) == {"none", *SM90}


@pytest.mark.parametrize("seed", range(20))
def test_right_kernels_pass(emulated, seed):
    for mod in (0, 128, 256, 512):
        right, report = gemm_sm80(emulated, "none", seed, smem_base_mod=mod)
        assert right
        assert report["shared"]["ldmatrix"]["actual"] == report["shared"]["ldmatrix"]["ideal"]
        right, report = gemm_sm90(emulated, "none", seed, smem_base_mod=mod)
        assert right
    assert report["buffers"]["x"]["read_max"] == report["buffers"]["w"]["read_max"] == 1


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("fault", SM80)
def test_fault_sm80(emulated, fault, early):
    for seed in range(5):
        with pytest.raises(emulated.Violation, match=SM80[fault]):
            gemm_sm80(emulated, fault, seed, async_early=early)


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("fault", SM90)
def test_fault_sm90(emulated, fault, early):
    for seed in range(5):
        with pytest.raises(emulated.Violation, match=SM90[fault]):
            gemm_sm90(emulated, fault, seed, async_early=early)


@pytest.mark.parametrize("seed", range(5))
def test_wrong_swizzle_gives_wrong_sums(emulated, seed):
    assert not gemm_sm80(emulated, "wrong_swizzle", seed)[0]


def test_swizzle_by_offset_fails_off_the_repeat(emulated):
    """The tile lies 128 past the base of the block: only absolute addresses agree with TMA everywhere."""
    x = np.random.default_rng(0).integers(0, 256, (8, 128)).astype(np.uint8)
    for mod in (0, 128, 256, 512, 896):
        out = np.zeros_like(x)
        emulated.relative_swizzle(x, True, out, {"smem_base_mod": mod})
        assert np.array_equal(out, x)
        out = np.zeros_like(x)
        emulated.relative_swizzle(x, False, out, {"smem_base_mod": mod})
        assert np.array_equal(out, x) == (mod == 896)


def test_after_a_violation_the_next_launch_is_clean(emulated):
    with pytest.raises(emulated.Violation):
        gemm_sm80(emulated, "half_warp", 1)
    assert gemm_sm80(emulated, "none", 1)[0]


def test_launch_is_refused_with_a_sentence(emulated):
    with pytest.raises(emulated.Violation, match="smem_bytes: expected at most 1024, got 8704"):
        gemm_sm80(emulated, "none", 1, max_smem_bytes=1024)
