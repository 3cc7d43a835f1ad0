// Each wrapper on data from outside: registers come in from global memory and go out to it. The emulator runs
// these here; on a GPU the same source proves the model (DESIGN 6).
#pragma once

#include "../../csrc/ptx/bits.h"
#include "../../csrc/ptx/cp_async.h"
#include "../../csrc/ptx/ldmatrix.h"
#include "../../csrc/ptx/mbarrier.h"
#include "../../csrc/ptx/memory.h"
#include "../../csrc/ptx/mma.h"
#include "../../csrc/ptx/sync.h"
#include "../../csrc/ptx/tma.h"
#include "../../csrc/ptx/warp.h"
#include "../../csrc/ptx/wgmma.h"

namespace lowbit::wrappers {

using namespace lowbit::ptx;

// a [32][4], b [32][2], d [32][4]; kind as in the list of test_wrappers.py. `repeat` is for timing.
LOWBIT_KERNEL(32, 1) mma_kernel(int kind, const uint32_t* a, const uint32_t* b, uint32_t* d, int repeat) {
  const int lane = lane_index();
  const u32x4 a4 = ld_global(reinterpret_cast<const u32x4*>(a) + lane);
  const u32x2 b2 = ld_global(reinterpret_cast<const u32x2*>(b) + lane);
  const u32x4 c4 = ld_global(reinterpret_cast<const u32x4*>(d) + lane);
  const uint32_t ra[4] = {a4[0], a4[1], a4[2], a4[3]}, rb[2] = {b2[0], b2[1]};
  int32_t i[4];
  float f[4];
  for (int j = 0; j < 4; ++j) i[j] = int32_t(c4[j]), f[j] = bit_cast<float>(c4[j]);
  for (int r = 0; r < repeat; ++r) {
    if (kind == 0) mma_m16n8k64_s32_s4_s4(i, ra, rb);
    if (kind == 1) mma_m16n8k32_s32_s8_s8(i, ra, rb);
    if (kind == 2) mma_m16n8k32_s32_u8_s8(i, ra, rb);
    if (kind == 3) mma_m16n8k32_s32_s8_u8(i, ra, rb);
    if (kind == 4) mma_m16n8k16_f32_f16_f16(f, ra, rb);
    if (kind == 5) mma_m16n8k16_f32_bf16_bf16(f, ra, rb);
  }
  for (int j = 0; j < 4; ++j)
    st_global(d + 4 * lane + j, kind < 4 ? uint32_t(i[j]) : bit_cast<uint32_t>(f[j]));
}

// bytes [512] go to shared memory; lane l names row offset rows[l]; r [32][4].
LOWBIT_KERNEL(32, 1)
ldmatrix_kernel(int matrices, bool trans, const uint8_t* bytes, const int* rows, uint32_t* r) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 128>();
  const int lane = lane_index();
  st_shared((smem + 16 * lane).as<u32x4>(), ld_global(reinterpret_cast<const u32x4*>(bytes) + lane));
  syncwarp();
  const smem_ptr<uint8_t> row = smem + ld_global(rows + lane);
  uint32_t r1[1], r2[2], r4[4];
  if (matrices == 1) {
    if (trans) ldmatrix_x1_trans(r1, row);
    else ldmatrix_x1(r1, row);
    st_global(r + 4 * lane, r1[0]);
  } else if (matrices == 2) {
    if (trans) ldmatrix_x2_trans(r2, row);
    else ldmatrix_x2(r2, row);
    for (int i = 0; i < 2; ++i) st_global(r + 4 * lane + i, r2[i]);
  } else {
    if (trans) ldmatrix_x4_trans(r4, row);
    else ldmatrix_x4(r4, row);
    for (int i = 0; i < 4; ++i) st_global(r + 4 * lane + i, r4[i]);
  }
}

#if !defined(LOWBIT_WRAPPERS_SM80)  // a GPU before 9.0 gets the others
// The store direction: r [32][4] through the rows into bytes [512].
LOWBIT_KERNEL(32, 1) stmatrix_kernel(bool trans, const uint32_t* r, const int* rows, uint8_t* bytes) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 128>();
  const int lane = lane_index();
  uint32_t r4[4];
  for (int i = 0; i < 4; ++i) r4[i] = ld_global(r + 4 * lane + i);
  const smem_ptr<uint8_t> row = smem + ld_global(rows + lane);
  if (trans) stmatrix_x4_trans(row, r4);
  else stmatrix_x4(row, r4);
  syncwarp();
  st_global(reinterpret_cast<u32x4*>(bytes) + lane, ld_shared((smem + 16 * lane).as<u32x4>()));
}
#endif

// out [12][32]: shuffles by n[lane], reductions, votes.
LOWBIT_KERNEL(32, 1) warp_kernel(const uint32_t* value, const int* n, uint32_t* out) {
  const int lane = lane_index();
  const uint32_t v = ld_global(value + lane);
  const int by = ld_global(n + lane);
  auto put = [&](int row, uint32_t x) { st_global(out + 32 * row + lane, x); };
  put(0, shfl_sync_xor(v, by));
  put(1, shfl_sync_idx(v, by));
  put(2, shfl_sync_up(v, by));
  put(3, shfl_sync_down(v, by));
  put(4, bit_cast<uint32_t>(shfl_sync_xor(bit_cast<float>(v), 1)));
  put(5, uint32_t(redux_sync_add_s32(int32_t(v))));
  put(6, uint32_t(redux_sync_max_s32(int32_t(v))));
  put(7, uint32_t(redux_sync_min_s32(int32_t(v))));
  put(8, redux_sync_max_u32(v));
  put(9, redux_sync_or_b32(v));
  put(10, ballot_sync(v & 1));
  put(11, uint32_t(any_sync(v & 1)) * 2 + uint32_t(all_sync(v & 1)));
}

// One lane per source; out [4][32][16]: ca 4, ca 8, ca 16, cg 16, each with src_bytes[lane] clipped to its
// size.
LOWBIT_KERNEL(32, 1) cp_async_kernel(const uint8_t* src, const int* src_bytes, uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t>();
  const int lane = lane_index(), n = ld_global(src_bytes + lane);
  const smem_ptr<uint8_t> mine = smem + 16 * lane;
  for (int s = 0; s < 4; ++s) st_shared(mine.plus_bytes(512 * s).as<u32x4>(), u32x4{});
  cp_async_ca_zfill<4>(mine, src + 16 * lane, n < 4 ? n : 4);
  cp_async_ca_zfill<8>(mine + 512, src + 16 * lane, n < 8 ? n : 8);
  cp_async_commit_group();
  cp_async_ca_zfill<16>(mine + 1024, src + 16 * lane, n);
  cp_async_cg_16_zfill(mine + 1536, src + 16 * lane, n);
  cp_async_commit_group();
  cp_async_wait_group<1>();
  for (int s = 0; s < 4; ++s) {
    if (s == 2) cp_async_wait_all();
    st_global(reinterpret_cast<u32x4*>(out) + 32 * s + lane, ld_shared(mine.plus_bytes(512 * s).as<u32x4>()));
  }
}

// out [12][n] over a, b, c [n]: the integer wrappers, then the float ones on the same bits.
LOWBIT_KERNEL(32, 1)
bits_kernel(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* out, int n) {
  for (int i = lane_index(); i < n; i += 32) {
    const uint32_t x = ld_global(a + i), y = ld_global(b + i), z = ld_global(c + i);
    const float fx = bit_cast<float>(x), fy = bit_cast<float>(y);
    auto put = [&](int row, uint32_t v) { st_global(out + n * row + i, v); };
    put(0, prmt(x, y, z));
    put(1, lop3<0xEA>(x, y, z));
    put(2, lop3<0x96>(x, y, z));
    put(3, uint32_t(dp4a_s32(x, y, int32_t(z))));
    put(4, cvt_pack_sat_s8(int32_t(x) >> 22, int32_t(y) >> 22, z));
    put(5, cvt_pack_sat_s4(int32_t(x) >> 27, int32_t(y) >> 27, z));
    put(6, bit_cast<uint32_t>(mul_rn(fx, fy)));
    put(7, bit_cast<uint32_t>(add_rn(fx, fy)));
    put(8, bit_cast<uint32_t>(div_rn(fx, fy)));
    put(9, uint32_t(cvt_rni_s32_f32(fx)));
    put(10, bit_cast<uint32_t>(cvt_rn_f32_s32(int32_t(x))));
    put(11, cvt_rn_f16x2_f32(fx, fy));
    put(12, cvt_rn_bf16x2_f32(fx, fy));
    put(13, bit_cast<uint32_t>(cvt_f32_f16(uint16_t(x))));
    put(14, bit_cast<uint32_t>(rint_f32(fx)));
    put(15, bit_cast<uint32_t>(max_f32(fx, fy)));
    put(16, fma_rn_f16x2(x, y, z));
    put(17, fma_rn_bf16x2(x, y, z));
  }
}

// Sizes 16, 8, 4, 2, 1 through shared memory: byte for byte a copy of 5 x 512.
template <class T>
LOWBIT_DEVICE void copy_through_shared(const uint8_t* in, uint8_t* out, smem_ptr<uint8_t> smem) {
  const int per_lane = 16 / int(sizeof(T)), lane = lane_index();
  for (int i = 0; i < per_lane; ++i) {
    const int at = 32 * i + lane;
    const T value = i % 2 ? ld_global<Load::kNc>(reinterpret_cast<const T*>(in) + at)
                          : ld_global<Load::kNcNoAllocate>(reinterpret_cast<const T*>(in) + at);
    st_shared(smem.as<T>() + at, value);
    syncwarp();
    st_global(reinterpret_cast<T*>(out) + at, ld_shared(smem.as<T>() + at));
  }
  syncwarp();
}
LOWBIT_KERNEL(32, 1) memory_kernel(const uint8_t* in, uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t>();
  copy_through_shared<u32x4>(in, out, smem);
  copy_through_shared<u32x2>(in + 512, out + 512, smem);
  copy_through_shared<uint32_t>(in + 1024, out + 1024, smem);
  copy_through_shared<uint16_t>(in + 1536, out + 1536, smem);
  copy_through_shared<uint8_t>(in + 2048, out + 2048, smem);
}

// Each block adds to sum [32]; the last one by ticket copies it out, doubled.
LOWBIT_KERNEL(32, 1)
ticket_kernel(const int32_t* x, int32_t* sum, uint32_t* ticket, int32_t* y, bool acquire) {
  const int lane = lane_index();
  red_add_global_s32(sum + lane, ld_global(x + 32 * block_index_x() + lane));
  uint32_t old = 0;
  if (acquire) {
    syncwarp();
    if (lane == 0) threadfence(), old = atom_add_acq_rel_global_u32(ticket, 1);
    syncwarp();
  } else if (lane == 0) {
    red_add_global_s32(reinterpret_cast<int32_t*>(ticket), 1);
    old = uint32_t(grid_size_x()) - 1;
  }
  old = shfl_sync_idx(old, 0);
  if (int(old) == grid_size_x() - 1) st_global(y + lane, 2 * ld_global(sum + lane));
}

#if !defined(LOWBIT_WRAPPERS_SM80)
// A box through TMA: load at (x, y), read back with the swizzle undone by hand in Python: out is the raw
// tile.
LOWBIT_KERNEL(32, 1)
tma_load_kernel(const LOWBIT_GRID_CONSTANT TensorMap map, int x, int y, int bytes, uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 1024>();
  const smem_ptr<uint64_t> full = smem.as<uint64_t>();
  const smem_ptr<uint8_t> tile = smem + 1024;
  if (thread_index() == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  syncthreads();
  if (thread_index() == 0) {
    mbarrier_arrive_expect_tx(full, uint32_t(bytes));
    cp_async_bulk_tensor_2d_load(tile, map, x, y, full);
  }
  mbarrier_wait_parity(full, 0);
  for (int i = 16 * lane_index(); i < bytes; i += 512)
    st_global(reinterpret_cast<u32x4*>(out + i), ld_shared((tile + i).as<u32x4>()));
}

// in -> shared by a bulk load, then out by a 2-D store and a bulk store.
LOWBIT_KERNEL(32, 1)
bulk_kernel(const uint8_t* in, int bytes, const LOWBIT_GRID_CONSTANT TensorMap map, int x, int y,
            uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 1024>();
  const smem_ptr<uint64_t> full = smem.as<uint64_t>();
  const smem_ptr<uint8_t> tile = smem + 1024;
  if (thread_index() == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, uint32_t(bytes));
    cp_async_bulk_load(tile, in, uint32_t(bytes), full);
    while (!mbarrier_try_wait_parity(full, 0)) {}
    cp_async_bulk_tensor_2d_store(map, x, y, tile);
    cp_async_bulk_commit_group();
    cp_async_bulk_store(out, tile, uint32_t(bytes));
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group_read<1>();
    cp_async_bulk_wait_group<0>();
  }
}

// The kinds of wgmma: the type of D and the instruction.
struct Int8 {
  using Sum = int32_t;
  template <int R>
  static LOWBIT_DEVICE void multiply(int32_t (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b, bool add) {
    wgmma_m64k32_s32_s8_s8(d, a, b, add);
  }
};
struct Fp16 {
  using Sum = float;
  template <int R>
  static LOWBIT_DEVICE void multiply(float (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b, bool add) {
    wgmma_m64k16_f32_f16_f16(d, a, b, add);
  }
};
struct Bf16 {
  using Sum = float;
  template <int R>
  static LOWBIT_DEVICE void multiply(float (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b, bool add) {
    wgmma_m64k16_f32_bf16_bf16(d, a, b, add);
  }
};

// d [128][N / 2] = a [kSteps][128][4] * tile, k steps of 32 bytes; tile [N][32 kSteps] comes as plain rows
// and is swizzled here by absolute address, by rows of 32, 64 or 128 bytes, or not at all. `repeat` is for
// timing.
template <int N, int kSteps, class Kind = Int8>
LOWBIT_KERNEL(128, 1)
wgmma_kernel(const uint32_t* a, const uint8_t* tile_rows, typename Kind::Sum* d, bool swizzled,
             bool accumulate, int repeat) {
  constexpr int kWidth = 32 * kSteps, kChunks = 2 * kSteps;
  const smem_ptr<uint8_t> tile = dynamic_smem<uint8_t, 1024>();
  const int t = thread_index();
  for (int i = t; i < N * kChunks; i += 128) {
    // without a swizzle: 16-byte columns of 8-row groups, columns N * 16 apart
    const int r = i / kChunks, c = i % kChunks;
    smem_ptr<uint8_t> to = swizzled ? tile + r * kWidth + 16 * c : tile + c * N * 16 + r * 16;
    if (swizzled) to.address ^= (to.address & (uint32_t(kWidth / 16 - 1) << 7)) >> 3;
    st_shared(to.as<u32x4>(), ld_global(reinterpret_cast<const u32x4*>(tile_rows) + i));
  }
  fence_proxy_async();
  syncthreads();
  typename Kind::Sum acc[N / 2];
  LOWBIT_UNROLL
  for (int i = 0; i < N / 2; ++i) acc[i] = accumulate ? ld_global(d + t * (N / 2) + i) : 0;
  uint32_t ra[kSteps][4];
  LOWBIT_UNROLL
  for (int s = 0; s < kSteps; ++s) LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) ra[s][i] = ld_global(a + (128 * s + t) * 4 + i);
  constexpr Swizzle kMode = kWidth == 128 ? Swizzle::k128B : kWidth == 64 ? Swizzle::k64B : Swizzle::k32B;
  const WgmmaDescriptor b = swizzled ? WgmmaDescriptor::make(tile, kMode, 8 * kWidth)
                                     : WgmmaDescriptor::make(tile, Swizzle::kNone, 128, N * 16);
  const uint32_t k_step = swizzled ? 32 : 2 * N * 16;
  for (int r = 0; r < repeat; ++r) {
    warpgroup_fence_operand(acc);
    wgmma_fence();
    LOWBIT_UNROLL
    for (int s = 0; s < kSteps; ++s)
      Kind::multiply(acc, ra[s], b.plus_bytes(k_step * uint32_t(s)), accumulate || s > 0);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    warpgroup_fence_operand(acc);
  }
  LOWBIT_UNROLL
  for (int i = 0; i < N / 2; ++i) st_global(d + t * (N / 2) + i, acc[i]);
}

// Warp 0 writes and arrives, warp 1 waits and reads: bar.arrive against bar.sync; elect picks the reader.
LOWBIT_KERNEL(64, 1) named_barrier_kernel(uint32_t* out) {
  const smem_ptr<uint32_t> smem = dynamic_smem<uint32_t>();
  if (warp_index() == 0) {
    st_shared(smem + lane_index(), uint32_t(100 + lane_index()));
    bar_arrive(3, 64);
  } else {
    bar_sync(3, 64);
    if (elect_sync())
      for (int i = 0; i < 32; ++i) st_global(out + i, ld_shared(smem + i));
  }
}

// Producers copy with cp.async and tie it to an mbarrier; the consumer warp waits on that alone.
LOWBIT_KERNEL(64, 1) cp_async_mbarrier_kernel(const uint8_t* in, uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 128>();
  const smem_ptr<uint64_t> full = smem.as<uint64_t>();
  if (thread_index() == 0) {
    mbarrier_init(full, 32);
    fence_mbarrier_init();
  }
  syncthreads();
  const int at = 16 * lane_index();
  if (warp_index() == 0) {
    cp_async_cg_16(smem + 128 + at, in + at);
    cp_async_mbarrier_arrive_noinc(full);
    cp_async_wait_all();
  } else {
    mbarrier_wait_parity(full, 0);
    st_global(reinterpret_cast<u32x4*>(out + at), ld_shared((smem + 128 + (496 - at)).as<u32x4>()));
  }
}

// The life of an mbarrier. expect_tx alone keeps a phase open past its last arrival; inval gives the bytes
// back to data; a second init, with another count, begins at phase 0. out: 128 words as loaded, 64 of what
// the bytes held between, 64 handed over under the second barrier.
LOWBIT_KERNEL(64, 1) barrier_life_kernel(const uint8_t* in, uint32_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 128>();
  const smem_ptr<uint64_t> barrier = smem.as<uint64_t>();
  const smem_ptr<uint32_t> bytes = smem.as<uint32_t>(), tile = (smem + 128).as<uint32_t>();
  const int t = thread_index();
  if (t == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(barrier, 512);
  }
  syncthreads();
  if (t == 32) mbarrier_arrive(barrier);
  if (t == 0) {
    cp_async_bulk_load(smem + 128, in, 256, barrier);
    cp_async_bulk_load(smem + 384, in + 256, 256, barrier);
  }
  mbarrier_wait_parity(barrier, 0);
  st_global(out + t, ld_shared(tile + t));
  st_global(out + 64 + t, ld_shared(tile + 64 + t));
  syncthreads();
  if (t == 0) {
    mbarrier_inval(barrier);
    st_shared(bytes, 0xC0FFEEu);
    st_shared(bytes + 1, 0xF00Du);
  }
  syncthreads();
  st_global(out + 128 + t, ld_shared(bytes + t % 2));
  syncthreads();
  if (t == 0) {
    mbarrier_init(barrier, 64);
    fence_mbarrier_init();
  }
  syncthreads();
  st_shared(tile + t, uint32_t(1000 + t));
  mbarrier_arrive(barrier);
  mbarrier_wait_parity(barrier, 0);
  st_global(out + 192 + t, ld_shared(tile + (63 - t)));
}

// Registers move from one warpgroup to two others: values held across the change stay, and the others use
// more than a third of the file. in [384]; out [384]: in + 1, and sums of 160 words of in, stirred.
LOWBIT_KERNEL(384, 1) setmaxnreg_kernel(const uint32_t* in, uint32_t* out) {
  const int t = thread_index();
  const uint32_t held = ld_global(in + t);
  if (t < 128) {
    setmaxnreg_dec<40>();
    st_global(out + t, held + 1);
  } else {
    setmaxnreg_inc<232>();
    uint32_t x[160];
    LOWBIT_UNROLL
    for (int i = 0; i < 160; ++i) x[i] = ld_global(in + (t + i) % 384);
    LOWBIT_UNROLL
    for (int i = 0; i < 160; ++i) x[i] = x[i] * 5u + x[(i + 80) % 160];
    uint32_t sum = held;
    LOWBIT_UNROLL
    for (int i = 0; i < 160; ++i) sum = (sum ^ x[(i * 7) % 160]) * 3u;
    st_global(out + t, sum);
  }
}
#endif

// Loads of `bytes` per lane at address[lane] of shared memory: for the bank-conflict counter.
template <class T>
LOWBIT_DEVICE void load_at(smem_ptr<uint8_t> smem, const int* address, int total, T* out) {
  for (int i = lane_index() * 16; i < total; i += 512) st_shared((smem + i).as<u32x4>(), u32x4{});
  syncwarp();
  const T value = ld_shared(smem.plus_bytes(uint32_t(ld_global(address + lane_index()))).as<T>());
  st_global(out + lane_index(), value);
}
LOWBIT_KERNEL(32, 1) bank_kernel(int bytes, const int* address, int total, uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 1024>();
  if (bytes == 4) load_at(smem, address, total, reinterpret_cast<uint32_t*>(out));
  if (bytes == 8) load_at(smem, address, total, reinterpret_cast<u32x2*>(out));
  if (bytes == 16) load_at(smem, address, total, reinterpret_cast<u32x4*>(out));
}

}  // namespace lowbit::wrappers
